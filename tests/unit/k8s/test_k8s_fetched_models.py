"""What the init container of `fetched-models` does: a whole archive of the right digest, or nothing."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from signal import SIGTERM

import pytest
from kubernetes_tools import missing
from manifests import SERVING, containers, named, rendered, templates


def fetcher():
    pod = named(rendered("base", ("fetched-models",)), "Deployment", "plaudit-policy")["spec"]["template"]
    (container,) = pod["spec"]["initContainers"]
    return container


class Store(BaseHTTPRequestHandler):
    """Gives `body`, after `failures` answers that it can't now; or its first bytes, and then nothing."""

    def do_GET(self):
        self.server.asked += 1
        if self.server.asked <= self.server.failures:
            self.send_error(503)
            return
        if self.path != self.server.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        if self.server.stalls:
            self.wfile.write(self.server.body[:100])
            self.wfile.flush()
            self.server.over.wait(30)
        else:
            self.wfile.write(self.server.body)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def store():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.asked, server.failures, server.stalls, server.over = 0, 0, False, threading.Event()
    server.path = "/models.tar"
    server.body = archive(
        {"sft/config.json": b"{}", "reward/model.safetensors": b"weights", "prompts.jsonl": b""}
    )
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def archive(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def begin(store, folder, digest=None):
    """The script, as the kubelet starts it; `folder` is its workingDir."""
    if shutil.which("curl") is None:
        missing("curl isn't installed (Debian: curl)")
    url = f"http://127.0.0.1:{store.server_port}/models.tar"
    command = [*fetcher()["command"], url, digest or hashlib.sha256(store.body).hexdigest()]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def fetch(store, folder, digest=None):
    """Its exit code, and what it said."""
    with begin(store, folder, digest) as fetching:
        said = "".join(fetching.communicate(timeout=60))
    return fetching.returncode, said


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


MODELS = {"sft/config.json", "reward/model.safetensors", "prompts.jsonl"}


def test_the_archive_is_unpacked_and_fetched_once(store, tmp_path):
    assert fetch(store, tmp_path)[0] == 0
    assert files(tmp_path) == {*MODELS, ".sha256"}
    assert (tmp_path / "reward/model.safetensors").read_bytes() == b"weights"
    assert fetch(store, tmp_path)[0] == 0  # the container was started again
    assert store.asked == 1


def test_another_archive_takes_the_place_of_the_one_that_is_there(store, tmp_path):
    fetch(store, tmp_path)
    store.body = archive({"reward/model.safetensors": b"better"})
    assert fetch(store, tmp_path)[0] == 0
    assert (tmp_path / "reward/model.safetensors").read_bytes() == b"better"


def test_nothing_is_unpacked_of_an_archive_with_another_digest(store, tmp_path):
    code, said = fetch(store, tmp_path, digest="0" * 64)
    assert code != 0 and "did NOT match" in said
    assert files(tmp_path) == {".archive"}
    assert fetch(store, tmp_path)[0] == 0  # the right one is fetched over it
    assert files(tmp_path) == {*MODELS, ".sha256"}


def test_what_was_unpacked_by_half_is_unpacked_again(store, tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/config.json").write_text("{", encoding="utf-8")
    (tmp_path / ".archive").write_bytes(store.body[:1000])
    assert fetch(store, tmp_path)[0] == 0
    assert (tmp_path / "sft/config.json").read_text(encoding="utf-8") == "{}"


def test_a_store_that_cannot_answer_now_is_asked_again(store, tmp_path):
    store.failures = 1
    assert fetch(store, tmp_path)[0] == 0
    assert store.asked == 2


def test_an_archive_that_is_not_there_is_said_to_be_so(store, tmp_path):
    store.path = "/another.tar"
    code, said = fetch(store, tmp_path)
    assert code != 0 and "404" in said
    assert not files(tmp_path)


def test_a_pod_that_fetches_goes_when_it_is_told_to(store, tmp_path):
    store.stalls = True
    with begin(store, tmp_path) as fetching:
        while not store.asked:
            time.sleep(0.01)
        began = time.monotonic()
        fetching.terminate()
        assert fetching.wait(10) == 128 + SIGTERM
        assert time.monotonic() - began < 5
        store.over.set()


def test_all_who_read_models_fetch_them_and_nobody_else_does():
    found = dict(templates(rendered("base", ("fetched-models",))))
    fetching = {name for name, each in found.items() if "initContainers" in each["spec"]}
    assert fetching == {*(f"Deployment plaudit-{name}" for name in SERVING), "Job plaudit-trainer"}
    for name in fetching:
        first, *rest = containers(found[name])
        assert first == fetcher() and first["workingDir"] == "/models"
        (mount,) = (each for each in rest[0]["volumeMounts"] if each["name"] == "models")
        assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
