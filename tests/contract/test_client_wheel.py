"""The wheel holds the client and its licence, nothing else, and scores text with what it declares."""

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from bare_site import link_into, needed
from packaging.requirements import Requirement

import plaudit
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*command, "--no-index"], check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


def test_it_holds_only_the_client(wheel, names):
    assert wheel.name == f"plaudit-{plaudit.__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"plaudit", f"plaudit-{plaudit.__version__}.dist-info"}


def test_it_holds_all_of_the_client(names):
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "plaudit").rglob("*.py*")
        if path.suffix != ".pyc"
    }
    assert sources <= set(names)
    assert {"plaudit/py.typed", "plaudit/v1/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_asks_for_light_things_only(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    lines = archive.read(metadata).decode().splitlines()
    required = [Requirement(line.split(":", 1)[1]) for line in lines if line.startswith("Requires-Dist:")]
    assert {each.name for each in required if not each.marker} == {
        "grpcio",
        "grpcio-status",
        "grpcio-health-checking",
        "grpcio-reflection",
        "protobuf",
        "numpy",
        "typer",
    }
    assert {each.name: str(each.marker) for each in required if each.marker} == {
        "pyarrow": 'extra == "parquet"'
    }


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """A site-packages with the wheel and what it declares, and nothing more."""
    site = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (info,) = site.glob("*.dist-info")
    link_into(site, PathDistribution(info).requires)
    return site


FIVE_LINES = """
from plaudit import RewardClient
pairs = [("the film", " is good"), ("the film", " is bad")]
with RewardClient(sys.argv[1]) as reward:
    for result in reward.score(pairs):
        print(result.reward)
"""


def run_bare(site, code, *arguments):
    start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_five_lines_in_a_bare_environment(bare, tiny_reward):
    options = ModelOptions(str(tiny_reward), "cpu", "float32", 1)
    with serve_in_background(lambda: reward_service(options)) as server:
        lines = run_bare(bare, FIVE_LINES, server.address).splitlines()
        with plaudit.RewardClient(server.address) as reward:
            expected = reward.score([("the film", " is good"), ("the film", " is bad")]).rewards
    assert [float(line) for line in lines] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_command_in_a_bare_environment(bare):
    out = run_bare(bare, "from plaudit.cli import main; sys.exit(main())", "--version")
    assert out == f"plaudit {plaudit.__version__}\n"


def test_the_bare_environment_is_bare(bare):
    assert not (bare / "torch").exists()
    assert not (bare / "services").exists()


def test_all_that_it_brings_is_at_most_120_megabytes(bare):
    """Compiled, as pip leaves it."""
    (info,) = bare.glob("plaudit-*.dist-info")
    brought = [distribution(name) for name in needed(PathDistribution(info).requires)]
    files = {file.locate() for each in brought for file in each.files}
    own = sum(path.stat().st_size for path in bare.glob("plaudit/**/*") if path.is_file())
    total = own + sum(Path(file).stat().st_size for file in files if Path(file).is_file())
    assert total <= 120_000_000


def test_every_dependency_is_pinned_for_the_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [project["project"]["dependencies"], *project["dependency-groups"].values()]
    wanted = {name_of(spec) for group in groups for spec in group if isinstance(spec, str)}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in pin and "/" not in pin and "+" not in pin for pin in pins)
    assert wanted <= {name_of(pin) for pin in pins}


def name_of(spec):
    name = spec.split(";")[0].strip()
    for sign in "<>=!~[ ":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-")
