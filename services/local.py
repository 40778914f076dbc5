"""Starts services as child processes of this machine and stops every one of them again.

They take their settings from this environment, TLS, certificates of callers and tokens included; whether
they are ready is asked at the plaintext health port that each has on this machine, whatever those say.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

FULL_NAMES = {
    "policy": "plaudit.v1.PolicyService",
    "reward": "plaudit.v1.RewardService",
    "reference": "plaudit.v1.ReferenceService",
}
POLL_S = 0.05
LAST_LINES = 15

T = TypeVar("T")


class ServiceFailed(Exception):
    """A child process ended, or wasn't ready in time; the message has the last lines it wrote."""


@dataclass(frozen=True)
class LocalService:
    """A service to start on a free port of this machine."""

    kind: str
    """policy, reward or reference: the module `services.KIND` is run."""
    model: str
    """Hugging Face folder or hub id."""
    name: str = ""
    """Names the log file and is the key it is found under; the kind if empty."""
    address: str = "127.0.0.1:0"
    options: tuple[str, ...] = ()
    """More command-line options, such as ("--threads", "1")."""
    environment: dict[str, str] = field(default_factory=dict)


def check_tls(environ: Mapping[str, str] = os.environ) -> None:
    """Raises ServiceFailed where clients of this environment couldn't reach services of this environment."""
    serves, trusts = (bool(environ.get(name)) for name in ("PLAUDIT_TLS_CERT", "PLAUDIT_TLS_CA"))
    trusts = trusts or (serves and Path(environ["PLAUDIT_TLS_CERT"]).is_dir())  # which has a ca.crt
    if serves is not trusts:
        there, absent = ("CERT", "CA") if serves else ("CA", "CERT")
        raise ServiceFailed(
            f"PLAUDIT_TLS_{there} is set and PLAUDIT_TLS_{absent} isn't, so services and clients of this "
            "machine wouldn't speak the same: set both (and PLAUDIT_TLS_KEY), with a certificate for "
            f"127.0.0.1, or unset PLAUDIT_TLS_{there}"
        )


class ServiceProcess:
    """One child process. Its address is known once `wait_listening` has returned."""

    def __init__(self, service: LocalService, log_folder: Path) -> None:
        """Starts the process in a process group of its own, so that Ctrl-C reaches only the parent."""
        self.service = service
        self.name = service.name or service.kind
        self.log_path = log_folder / f"{self.name}.log"
        self.address = ""
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_listening(self, deadline: float) -> None:
        """Reads the address it prints. Raises ServiceFailed."""
        self.address = self._wait(partial(self.printed, "listening on "), "to listen", deadline)

    def wait_ready(self, deadline: float) -> None:
        """Asks its health until it serves. Raises ServiceFailed."""
        address = self._wait(partial(self.printed, "health on "), "to tell its health", deadline)
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            self._wait(lambda: _is_serving(health, FULL_NAMES[self.service.kind]), "to be ready", deadline)

    def printed(self, beginning: str) -> str | None:
        """The address in the line of its log that begins so, such as "metrics on "; None without one."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        whole = (line for line in lines if line.startswith(beginning) and line.endswith("\n"))
        return next((line.split()[-1] for line in whole), None)

    def check(self) -> None:
        """Raises ServiceFailed if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise ServiceFailed(f"the {self.name} service ended with code {code}; {self._last_words()}")

    def terminate(self) -> None:
        """Asks it to drain."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait_ended(self, deadline: float) -> int:
        """Its exit code; kills its whole group if it is still there at the deadline."""
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", f"services.{self.service.kind}",
            "--model", self.service.model, "--address", self.service.address,
            "--health-address", "127.0.0.1:0", "--exit-with-parent", str(os.getpid()), *self.service.options,
        ]  # fmt: skip
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **self.service.environment}
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )

    def _wait(self, found: Callable[[], T | None], what: str, deadline: float) -> T:
        while time.monotonic() < deadline:
            self.check()
            if (result := found()) is not None:
                return result
            time.sleep(POLL_S)
        raise ServiceFailed(f"the {self.name} service took too long {what}; {self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return f"its last lines in {self.log_path}:\n" + "\n".join(f"  {line}" for line in lines)


class LocalServices:
    """Services that run, by name."""

    def __init__(self, processes: Sequence[ServiceProcess]) -> None:
        self._processes = {process.name: process for process in processes}

    def __getitem__(self, name: str) -> ServiceProcess:
        """The process of that name."""
        return self._processes[name]

    def check(self) -> None:
        """Raises ServiceFailed if one has ended."""
        for process in self._processes.values():
            process.check()

    def stop(self, grace_s: float) -> dict[str, int]:
        """SIGTERM to all, SIGKILL to what is left after the grace; exit codes by name."""
        deadline = time.monotonic() + grace_s
        for process in self._processes.values():
            process.terminate()
        return {name: process.wait_ended(deadline) for name, process in self._processes.items()}


@contextlib.contextmanager
def local_services(
    services: Sequence[LocalService],
    log_folder: Path,
    *,
    ready_within_s: float = 120.0,
    grace_s: float = 30.0,
) -> Iterator[LocalServices]:
    """Runs services for the length of a block; they are ready when it begins and gone when it ends.

    They start at once and also end when this process is killed. Raises ServiceFailed.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + ready_within_s
    processes: list[ServiceProcess] = []
    try:
        processes.extend(ServiceProcess(service, log_folder) for service in services)
        for process in processes:
            process.wait_listening(deadline)
        for process in processes:
            process.wait_ready(deadline)
        yield LocalServices(processes)
    finally:
        LocalServices(processes).stop(grace_s)


def _is_serving(health: health_pb2_grpc.HealthStub, full_name: str) -> bool | None:
    try:
        answer = health.Check(health_pb2.HealthCheckRequest(service=full_name), timeout=5)
    except grpc.RpcError:
        return None
    return True if answer.status == health_pb2.HealthCheckResponse.SERVING else None
