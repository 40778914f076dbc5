"""`submit --follow`: a run's steps as they end, through WatchRun where its pod answers, else by its log."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainer.cluster import workloads
from trainer.cluster.calls import Cluster, Object
from trainer.cluster.errors import ApiUnreachable, ClusterError, Misused, NotThere, TimedOut
from trainer.cluster.reasons import exit_code
from trainer.cluster.status import ASK_S, grpc_address, misuse_told
from trainer.cluster.waiting import TRAINER, Grace, Tell, Teller, events_about

if TYPE_CHECKING:
    from plaudit.clients import RunEvent


def follow(cluster: Cluster, name: str, timeout: float, tell: Tell) -> int:
    """Tells of the Job's run until it has ended; returns 0 if it is complete, else its last pod's exit code.

    Raises WorkloadFailed if its pod can't start, Misused if the Job is deleted, TimedOut.
    """
    end = cluster.clock.monotonic() + timeout
    grace, teller, listener = Grace(cluster.clock), Teller(tell), Listener(cluster, end, tell)
    for pods in cluster.follow("Pod", labels=f"batch.kubernetes.io/job-name={name}"):
        job = cluster.get("Job", name)
        if job is None:
            raise Misused(f"the Job {name} has been deleted")
        standing = workloads.job(job, pods, events_about(cluster), until_ready=True)
        teller.say([f"{standing.name}: {standing.progress}", *map(str, standing.troubles)])
        if workloads.condition(job, "Complete"):
            return 0
        mine = workloads.owned_by(job, pods)
        if workloads.condition(job, "Failed"):
            return (exit_code(mine[-1]) if mine else None) or ClusterError.exit_code
        grace.check(standing.troubles)
        if cluster.clock.monotonic() >= end:
            raise TimedOut(f"the run goes on after {timeout:.0f} s; follow it by kubectl logs -f job/{name}")
        if standing.done:
            listener.listen(next(pod for pod in reversed(mine) if workloads.condition(pod, "Ready")))
    raise AssertionError("the cluster is followed without end")


class Listener:
    """Passes on what a run says, from where it can be heard, and nothing twice."""

    def __init__(self, cluster: Cluster, end: float, tell: Tell) -> None:
        """`end` by the cluster's clock."""
        self._cluster = cluster
        self._end = end
        self._tell = tell
        self._answers: bool | None = None
        self._told = ("", 0)
        self._logged: dict[str, str] = {}

    def listen(self, pod: Object) -> None:
        """Returns when the run has ended, or there is no more to hear for now."""
        if self._answers is not False:
            address = grpc_address(pod)
            refusal = "it has no address" if address is None else self._watch(address)
            if not refusal:
                self._answers = True
            if self._answers:  # if it is silent now, it is on its way out
                return
            self._tell(f"its pod doesn't answer from here ({refusal}); what it logs:")
            self._answers = False
        self._read_log(pod["metadata"]["name"])

    def _watch(self, address: str) -> str:
        """Why nobody answers; empty when somebody has, and there is no more to hear."""
        from plaudit.clients import PlauditError, TrainerClient

        with misuse_told():
            client = TrainerClient(address, timeout=ASK_S, tls_name=TRAINER)
        with client as trainer:
            try:
                trainer.get_run()
            except PlauditError as error:
                return error.reason
            left = max(0.1, self._end - self._cluster.clock.monotonic())
            alarm = threading.Timer(left, trainer.close)
            alarm.daemon = True
            alarm.start()
            try:
                self._tell_of(trainer.watch_run())
            except PlauditError as error:
                self._tell(f"{address}: {error.reason}")
            finally:
                alarm.cancel()
        return ""

    def _tell_of(self, events: Iterator["RunEvent"]) -> None:
        from plaudit.cli.run import run_line

        for event in events:
            run_id, number = event.run.run_id, event.number
            if run_id != self._told[0] or number > self._told[1]:
                self._told = (run_id, number)
                self._tell(run_line(event.run))

    def _read_log(self, pod: str) -> None:
        try:
            for when, line in self._cluster.log(pod, self._logged.get(pod, "")):
                if when > self._logged.get(pod, ""):  # opened anew, it begins with what was read last
                    self._logged[pod] = when
                    self._tell(line)
        except (NotThere, ApiUnreachable) as error:  # the pod, or its node, has just gone
            self._tell(str(error))
