"""What a process holds; and those of a site that aren't gRPC services: the gateway, and a trainer."""

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.local import LocalService, ServiceProcess

PROBE_S, SCRAPE_S = 5.0, 10.0
TASKS = {"gateway": "http_server_active_requests"}
"""The metric of what a process has begun and not ended, where that isn't the tasks of its event loop."""


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    pid: int
    memory: int
    """Resident bytes."""
    files: int
    threads: int
    tasks: int | None
    """Of its event loop, of the gateway the requests that it answers; None where nothing tells."""

    @classmethod
    def of(cls, pid, tasks=None):
        """Of a process."""
        folder = Path(f"/proc/{pid}")
        pages = int((folder / "statm").read_text().split()[1])
        files = len(list((folder / "fd").iterdir()))
        threads = len(list((folder / "task").iterdir()))
        return cls(pid, pages * os.sysconf("SC_PAGE_SIZE"), files, threads, tasks)


def scraped(metrics, name):
    """The value of that name at HOST:PORT."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=SCRAPE_S) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith(f"{name} "))


class CommandProcess(ServiceProcess):
    """`python -m` some other command; `command` has its words."""

    def command(self):
        raise NotImplementedError

    def ended(self):
        """Its exit code; None while it runs."""
        return self._process.poll()

    def kill(self):
        self._process.kill()
        self._process.wait()

    def last_words(self):
        return self._last_words()

    def _start(self):
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )


class GatewayProcess(CommandProcess):
    """In front of the reward service whose address stands as the model."""

    @classmethod
    def before(cls, reward):
        """What to start."""
        return LocalService("gateway", reward, options=("--metrics-address", "127.0.0.1:0"))

    def command(self):
        wanted = self.service
        at = ("--reward", wanted.model, "--address", wanted.address)
        return ["services.gateway", *at, *wanted.options]

    def wait_ready(self, deadline):
        with httpx.Client(base_url=f"http://{self.address}", timeout=PROBE_S) as http:
            self._wait(lambda: is_ready(http) or None, "to be ready", deadline)


def is_ready(http):
    """Whether the gateway says so."""
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False
