"""Runs a script whose Python child processes are forks of one that has imported torch and transformers.

    python tests/e2e/warm_start.py SCRIPT ARGUMENT…

An import takes ten seconds of a processor, a quickstart starts a dozen processes, and the README half a
dozen. Each is, as without this, a child of the script's process with an id, a group, an environment, a
folder, an output and an end of its own.
"""

import ctypes
import gc
import inspect
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

IMPORTED = (
    "matplotlib.figure", "trainer.evaluate.run", "trainer.ppo.run", "trainer.reward_model.run",
    "trainer.sft.run", "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    "services.policy.engine", "services.policy.model", "services.policy.service", "services.policy.weights",
    "services.reference.engine", "services.reference.service",
    "services.reward.engine", "services.reward.models", "services.reward.service",
)  # fmt: skip
FORK = multiprocessing.get_context("fork")
MOST_BYTES = 1 << 20
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER


def main(script: str) -> None:
    """Becomes the script, once there is a process to fork from."""
    sys.argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.set_threshold(50_000, 20, 100)
    for module in IMPORTED:
        import_module(module)
    if os.fork() == 0:
        ours.close()
        serve(theirs)
    theirs.close()
    execute = subprocess.Popen._execute_child
    parameters = inspect.signature(execute)

    def start(self, *arguments):
        given = parameters.bind(self, *arguments).arguments
        program, *words = map(str, given["args"])
        if program != sys.executable:
            execute(self, *arguments)
            return
        order = {
            "words": words, "env": dict(given["env"] or os.environ), "group": given["process_group"],
            "folder": str(Path(given["cwd"] or ".").resolve()),
        }  # fmt: skip
        streams = [own if given[to] == -1 else given[to] for own, to in ((1, "c2pwrite"), (2, "errwrite"))]
        socket.send_fds(ours, [json.dumps(order).encode()], streams)
        self.pid = int(ours.recv(MOST_BYTES))
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PIPES))

    subprocess.Popen._execute_child = start
    run(script)


def serve(orders: socket.socket) -> None:
    """Forks a process for each order until nobody can give one; answers its id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        data, streams, *_ = socket.recv_fds(orders, MOST_BYTES, 2)
        if not data:
            os._exit(0)
        parent = os.getppid()
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            orphan = FORK.Process(target=become, args=(json.loads(data), streams, parent))
            orphan.start()
            os.write(writer, str(orphan.pid).encode())
            os._exit(0)
        os.waitpid(middle, 0)  # from now on the script's process, which adopts orphans, is the parent
        orders.send(os.read(reader, MOST_BYTES))
        for stream in (*streams, reader, writer):
            os.close(stream)


def become(order: dict, streams: list[int], parent: int) -> None:
    """Turns this process into `python …` of an order."""
    while os.getppid() != parent:
        time.sleep(0.001)
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    if order["group"] >= 0:
        os.setpgid(0, order["group"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    if order["words"][0] == "-m":
        sys.argv = order["words"][1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = order["words"]
        run(sys.argv[0])


def run(script: str) -> None:
    sys.path.insert(0, str(Path(script).parent.resolve()))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
