"""The services as processes, each behind a proxy; they are stopped, killed and started again."""

import os
import signal
import threading
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

from chaos_proxy import ChaosProxy
from fault_schedule import LINE_SCENES, Scene

from services.local import LocalService, ServiceProcess

READY_S = 120.0
OPTIONS = ("--device", "cpu", "--dtype", "float32", "--threads", "1", "--metrics-address", "127.0.0.1:0")
TASKS = "plaudit_event_loop_tasks"
SCRAPE_S = 10.0


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    pid: int
    memory: int
    """Resident bytes."""
    files: int
    threads: int
    tasks: int
    """Of its event loop."""

    @classmethod
    def of(cls, pid, metrics):
        """Of a process, whose metrics are at HOST:PORT."""
        folder = Path(f"/proc/{pid}")
        pages = int((folder / "statm").read_text().split()[1])
        files = len(list((folder / "fd").iterdir()))
        threads = len(list((folder / "task").iterdir()))
        return cls(pid, pages * os.sysconf("SC_PAGE_SIZE"), files, threads, _tasks(metrics))


def _tasks(metrics):
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=SCRAPE_S) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith(f"{TASKS} "))


class Served:
    """A service and the line to it. Its address, and the line's, never change."""

    def __init__(self, service, folder):
        self.name, self._folder = service.name or service.kind, folder
        self._process = ServiceProcess(service, folder)
        self._process.wait_listening(time.monotonic() + READY_S)
        self.address = self._process.address
        self._service = replace(service, address=self.address)
        self.proxy = ChaosProxy(self.address).__enter__()
        self.wait_ready()

    @property
    def pid(self):
        return self._process.pid

    def footprint(self):
        return Footprint.of(self.pid, self._process.printed("metrics on "))

    def wait_ready(self):
        self._process.wait_ready(time.monotonic() + READY_S)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait_ended(time.monotonic() + READY_S)

    def start(self):
        self._process = ServiceProcess(self._service, self._folder)
        self._process.wait_listening(time.monotonic() + READY_S)
        self.wait_ready()

    def close(self):
        self.proxy.__exit__()
        os.kill(self.pid, signal.SIGCONT)
        self._process.terminate()
        return self._process.wait_ended(time.monotonic() + 30)


class Site:
    """Policy, reward and reference on the tiny models in `folder`."""

    def __init__(self, folder):
        wanted = [
            LocalService("policy", str(folder / "sft"), options=OPTIONS),
            LocalService("reward", str(folder / "reward"), options=OPTIONS),
            LocalService("reference", str(folder / "sft"), options=OPTIONS),
        ]
        self.services = {}
        for service in wanted:
            self.services[service.kind] = Served(service, folder)

    def play(self, scene: Scene, over: threading.Event) -> None:
        """Lets a scene happen, and puts everything right after it; sooner if it is `over`."""
        service = self.services[scene.service]
        if scene.what in LINE_SCENES:
            scene.begin(service.proxy)
            over.wait(scene.lasts)
            scene.end(service.proxy)
        elif scene.what == "stop":
            os.kill(service.pid, signal.SIGSTOP)
            over.wait(scene.lasts)
            os.kill(service.pid, signal.SIGCONT)
        else:
            service.kill()
            over.wait(scene.lasts)
            service.start()

    def footprints(self):
        return {name: service.footprint() for name, service in self.services.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.codes = {name: service.close() for name, service in self.services.items()}
