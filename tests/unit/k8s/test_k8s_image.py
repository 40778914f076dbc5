"""The Dockerfile: what it copies is there and enough, what it installs exists, pods run it as its user."""

import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from contextlib import contextmanager

import pytest
from bare_site import link_into
from manifests import K8S, ROOT, containers, kustomize, templates

import plaudit

LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
LET_IN = {
    line[1:]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line.startswith("!")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IMAGES = {"plaudit": "plaudit", "plaudit-gateway": "gateway"}
"""Stage by image."""
LABEL = r'org\.opencontainers\.image\.(\w+)="([^"]+)"'


def stages():
    """Instructions of each stage by its name, those of the stage that it begins from first."""
    found = {}
    for line in LINES:
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            found[name] = list(found.get(base, ()))
        elif found and line and not line.startswith("#"):
            found[name].append(line)
    return found


STAGES = stages()


def copies(stage):
    """(source, target) of what a stage takes from the checkout."""
    taken = (line.split()[1:] for line in STAGES[stage] if re.match(r"COPY (?!--from)", line))
    return [(source, target) for *sources, target in taken for source in sources]


SOURCES = sorted({source for stage in STAGES for source, _ in copies(stage)})


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_copied_is_there_and_let_in(source):
    assert (ROOT / source).exists()
    assert source.split("/")[0] in LET_IN


def test_all_that_is_let_in_is_copied():
    assert {source.split("/")[0] for source in SOURCES} == LET_IN


@pytest.mark.parametrize(
    ("stage", "groups"),
    [("build", ["examples", "gateway", "traces"]), ("build-gateway", ["gateway", "traces"])],
)
def test_the_groups_that_are_installed_exist(stage, groups):
    assert re.findall(r"--group (\S+)", "\n".join(STAGES[stage])) == groups
    assert set(groups) <= PROJECT["dependency-groups"].keys()


def test_without_a_target_the_big_one_is_built():
    assert list(STAGES)[-1] == IMAGES["plaudit"]


def test_pods_run_as_the_images_user():
    found = kustomize(K8S / "overlays" / "local")
    for name, template in templates(found):
        context = template["spec"]["securityContext"]
        for container in containers(template):
            stage = IMAGES[container["image"].partition(":")[0]]
            user = f"USER {context['runAsUser']}:{context['runAsGroup']}"
            assert STAGES[stage][-1] == user, name


def test_caches_and_what_only_the_build_needs_stay_behind():
    for line in LINES:
        if "pip install" in line:
            assert "--no-cache-dir" in line
    for stage in IMAGES.values():
        assert not [line for line in STAGES[stage] if "pip" in line or "/tools" in line]
    assert "RUN python3 -m venv --without-pip /venv" in STAGES["build-gateway"]


@pytest.mark.parametrize("stage", IMAGES.values())
def test_an_image_has_the_list_of_its_own_packages(stage):
    (venv,) = (line for line in STAGES[stage] if line.endswith("/venv /venv"))
    build = re.match(r"COPY --from=(\S+)", venv)[1]
    assert f"COPY --from={build} /app/sbom.cdx.json ./" in STAGES[stage]
    *_, last = STAGES[build]
    assert last.endswith("-o sbom.cdx.json /venv/bin/python")


@pytest.mark.parametrize("image", IMAGES)
def test_labels_say_what_it_is(image):
    labels = dict(re.findall(LABEL, "\n".join(STAGES[IMAGES[image]])))
    assert labels.pop("title") == image
    assert labels.pop("version") == "${VERSION}"
    assert labels.pop("licenses") == PROJECT["project"]["license"]
    assert labels.keys() == {"description"}
    assert f"ARG VERSION={plaudit.__version__}" in STAGES[IMAGES[image]]


def test_make_image_builds_both_and_says_from_what_and_when():
    done = subprocess.run(
        ["make", "--dry-run", "image", "BUILDER=builder", "VERSION=7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    commands = [line for line in done.stdout.splitlines() if line.startswith("builder build ")]
    made = [(re.search(r" -t (\S+) \.$", each)[1], re.search(r" --target (\S+)", each)) for each in commands]
    assert [(tag, target and target[1]) for tag, target in made] == [
        ("plaudit-gateway:7", "gateway"),
        ("plaudit:7", None),
    ]
    for each in commands:
        assert "--build-arg VERSION=7" in each
        assert re.findall(r"--label org\.opencontainers\.image\.(\w+)=", each) == ["revision", "created"]


# --- what the gateway's image holds is enough


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """Starts Python with the files and packages of the gateway's image, and no others."""
    app, site = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("site-packages")
    for source, target in copies("gateway"):
        lay(ROOT / source, app / target)
    groups = PROJECT["dependency-groups"]
    link_into(site, [*PROJECT["project"]["dependencies"], *groups["gateway"], *groups["traces"]])
    start = f"import runpy, sys; sys.path[:0] = [{str(app)!r}, {str(site)!r}]\n"
    return lambda code, *arguments: [sys.executable, "-I", "-S", "-c", start + code, *arguments]


def lay(source, target):
    """As COPY does: a folder's content into `target`; a file into it, too, where that is a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@contextmanager
def served(command):
    """The address that a gateway prints; it is stopped at the end, and must stop well."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), process.stderr.read()
            yield line.split()[-1]
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_gateway_serves_with_what_its_image_holds(gateway):
    module = "runpy.run_module('services.gateway', run_name='__main__', alter_sys=True)"
    command = gateway(module, "--reward", "127.0.0.1:1", "--address", "127.0.0.1:0", "--grace", "1")
    with served(command) as address:
        for path in ("healthz", "openapi.json", "metrics"):
            with urllib.request.urlopen(f"http://{address}/{path}", timeout=20) as answer:
                assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="503"):  # by a real call to nobody
            urllib.request.urlopen(f"http://{address}/readyz", timeout=20)


def test_plaudits_command_is_there_for_a_look_at_the_services(gateway):
    command = gateway("from plaudit.cli import main; sys.exit(main())", "--version")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"plaudit {plaudit.__version__}\n"


def test_it_can_trace(gateway):
    code = (
        "from services.rpc.tracing import is_traced, traced\n"
        "with traced('gateway', {'OTEL_TRACES_EXPORTER': 'otlp'}): print(is_traced())"
    )
    assert subprocess.run(gateway(code), capture_output=True, text=True, check=True).stdout == "True\n"


def test_its_image_has_no_torch_and_no_models(gateway):
    absent = "['torch', 'transformers', 'lm', 'trainer', 'services.policy']"
    code = f"from importlib.util import find_spec; print([each for each in {absent} if find_spec(each)])"
    assert subprocess.run(gateway(code), capture_output=True, text=True, check=True).stdout == "[]\n"
