"""The Dockerfile: what it copies is there, what it installs exists, and pods run it as its own user."""

import re
import tomllib

import pytest
from manifests import K8S, kustomize, templates

import plaudit

ROOT = K8S.parent
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
LET_IN = {
    line[1:]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line.startswith("!")
}
COPIED = [
    word for line in LINES if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]
]  # all but the target


@pytest.mark.parametrize("source", sorted(set(COPIED)))
def test_what_is_copied_is_there_and_let_in(source):
    assert (ROOT / source).exists()
    assert source in LET_IN


def test_all_that_is_let_in_is_copied():
    assert set(COPIED) == LET_IN


def test_the_groups_that_are_installed_exist():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    installed = re.findall(r"--group (\S+)", "\n".join(LINES))
    assert installed == ["examples", "gateway"]
    assert set(installed) <= groups.keys()


def test_it_has_the_version_of_the_package():
    assert f"ARG VERSION={plaudit.__version__}" in LINES


def test_pods_run_as_the_images_user():
    (user,) = (line.split()[1] for line in LINES if line.startswith("USER "))
    found = kustomize(K8S / "overlays" / "local")
    for name, template in templates(found):
        context = template["spec"]["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user, name


def test_it_leaves_no_caches_and_no_root():
    for line in LINES:
        if "pip install" in line:
            assert "--no-cache-dir" in line
    assert LINES[-1].startswith("USER ")
