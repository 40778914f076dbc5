"""`make sbom` and the images' SBOM list every package that is installed, with its version."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, version

import pytest
from manifests import ROOT
from packaging.utils import canonicalize_name

import plaudit

MADE_BY = r"cyclonedx-py environment (--.*) -o (?:build/)?sbom\.cdx\.json"


def options_in(name):
    return re.findall(MADE_BY, (ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sbom():
    """Of the environment that the tests run in."""
    (options,) = options_in("Makefile")
    command = [sys.executable, "-m", "cyclonedx_py", "environment", *options.split(), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def listed(sbom):
    return {canonicalize_name(each["name"]): each["version"] for each in sbom["components"]}


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("==")[0] for line in lines if not line.startswith("#")]


def test_images_get_theirs_with_the_same_options():
    (options,) = options_in("Makefile")
    assert options_in("Dockerfile") == [options, options]


def test_every_pinned_package_that_is_installed_is_listed_with_its_version(listed):
    installed = {}
    for name in pins():
        try:
            installed[canonicalize_name(name)] = version(name)
        except PackageNotFoundError:
            continue  # for another Python or machine
    assert len(installed) > 100
    assert installed.items() <= listed.items()


def test_nothing_that_is_installed_is_missing(listed):
    assert listed == {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}


def test_it_lists_plaudit_and_what_it_needs(sbom, listed):
    assert listed["plaudit"] == plaudit.__version__
    (needs,) = (
        each["dependsOn"] for each in sbom["dependencies"] if each["ref"] == f"plaudit=={plaudit.__version__}"
    )
    assert {"grpcio", "protobuf", "numpy"} <= {each.partition("==")[0] for each in needs}


def test_it_says_its_format_and_where_each_package_is_from(sbom):
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    for each in sbom["components"]:
        if each["name"] != "plaudit":  # an editable checkout, which no index has
            assert each["purl"].startswith("pkg:pypi/"), each["name"]
