"""The services as processes, each behind a proxy; they are stopped, killed and started again."""

import os
import signal
import threading
import time
from dataclasses import replace

from chaos_proxy import ChaosProxy
from fault_schedule import LINE_SCENES, Scene

from services.local import LocalService, ServiceFailed, ServiceProcess
from soak.learner import POLICY, Learner
from soak.processes import TASKS, Footprint, GatewayProcess, scraped

READY_S = 120.0
OPTIONS = ("--device", "cpu", "--dtype", "float32", "--threads", "1", "--metrics-address", "127.0.0.1:0")


class Served:
    """A service and the line to it. Its address, and the line's, never change."""

    def __init__(self, service, folder, process=ServiceProcess):
        self.name, self._folder, self._kind = service.name or service.kind, folder, process
        self._service = service
        try:
            self.start()
        except BaseException:
            self._process.wait_ended(time.monotonic())
            raise
        self.address = self._process.address
        self._service = replace(service, address=self.address)
        self.proxy = ChaosProxy(self.address).__enter__()

    @property
    def pid(self):
        return self._process.pid

    def footprint(self):
        name = TASKS.get(self.name, "plaudit_event_loop_tasks")
        return Footprint.of(self.pid, scraped(self._process.printed("metrics on "), name))

    def wait_ready(self):
        self._process.wait_ready(time.monotonic() + READY_S)

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self._process.wait_ended(time.monotonic() + READY_S)

    def start(self):
        self._process = self._kind(self._service, self._folder)
        self._process.wait_listening(time.monotonic() + READY_S)
        self.wait_ready()

    def close(self):
        self.proxy.__exit__()
        self.signal(signal.SIGCONT)
        self._process.terminate()
        return self._process.wait_ended(time.monotonic() + 30)


class Site:
    """Policy, reward and reference on the tiny models in `folder`; gateway and trainer where added."""

    def __init__(self, folder):
        self._folder, self.services, self.trainer = folder, {}, None
        for kind, model in (("policy", "sft"), ("reward", "reward"), ("reference", "sft")):
            self._serve(kind, model)

    def _serve(self, kind, model, name=""):
        service = LocalService(kind, str(self._folder / model), name, options=OPTIONS)
        self.services[name or kind] = Served(service, self._folder)

    def add_gateway(self, reward):
        """In front of the reward service at that address."""
        gateway = Served(GatewayProcess.before(reward), self._folder, GatewayProcess)
        self.services["gateway"] = gateway
        return gateway

    def add_trainer(self):
        """And a policy of its own: another's pushes would end its run. It has taken some steps then.

        Raises ServiceFailed.
        """
        self._serve("policy", "sft", POLICY)
        self.trainer = Learner(self, self._folder)
        if not self.trainer.goes_on():
            raise ServiceFailed(f"the trainer takes no steps: {self.trainer.problems}")

    @property
    def victims(self):
        """What things happen to, by name."""
        return self.services | ({"trainer": self.trainer} if self.trainer else {})

    def play(self, scene: Scene, over: threading.Event) -> None:
        """Lets a scene happen, and puts everything right after it; sooner if it is `over`."""
        service = self.victims[scene.service]
        if scene.what in LINE_SCENES:
            scene.begin(service.proxy)
            over.wait(scene.lasts)
            scene.end(service.proxy)
        elif scene.what == "stop":
            service.signal(signal.SIGSTOP)
            over.wait(scene.lasts)
            service.signal(signal.SIGCONT)
        else:
            service.kill()
            over.wait(scene.lasts)
            service.start()

    def footprints(self):
        return {name: service.footprint() for name, service in self.services.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.trainer:
            self.trainer.close()
        self.codes = {name: service.close() for name, service in self.services.items()}
