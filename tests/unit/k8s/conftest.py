"""What kustomize makes is made once in a test run, not once in each of its processes."""

import os

import pytest
from manifests import SHARED


@pytest.fixture(scope="session", autouse=True)
def shared_manifests(tmp_path_factory, worker_id):
    if worker_id == "master":  # alone; its folder's parent is that of other runs, too
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent / "kustomized"
    folder.mkdir(exist_ok=True)
    os.environ[SHARED] = str(folder)
    yield
    del os.environ[SHARED]
