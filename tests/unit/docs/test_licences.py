"""What is installed: every package has an exact version and a licence that may be shipped."""

import re
from importlib.metadata import distributions

import pytest
from doc_pages import DOCS, ROOT, rows
from packaging.utils import canonicalize_name

PAGE = (DOCS / "licences.md").read_text(encoding="utf-8")
LISTED = {canonicalize_name(name): (version, licence) for name, version, licence in rows(PAGE)}
FORBIDDEN = re.compile(
    r"\b[AL]?GPL|GNU|SSPL|BUSL|Business Source|Commons Clause|Proprietary|NonCommercial|UNKNOWN", re.I
)
OURS = {"plaudit", "pip"}
"""The package itself; and pip, which `make` brings up to date before it reads any constraint."""


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    split = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in split}


def test_whatever_is_installed_has_an_exact_version_in_the_constraints():
    installed = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}
    for name in OURS:
        del installed[name]
    pinned = pins()
    # A local version is how a machine has built it: torch's +cpu and +cu.
    assert installed.items() - pinned.items() <= {("torch", installed["torch"])}
    assert installed["torch"].partition("+")[0] == pinned["torch"]


def test_the_page_lists_what_the_constraints_name():
    assert {name: version.partition("+")[0] for name, (version, _) in LISTED.items()} == pins()


@pytest.mark.parametrize("name", LISTED)
def test_no_licence_forbids_shipping(name):
    licence = LISTED[name][1]
    assert licence
    assert not FORBIDDEN.search(licence), f"{name}: {licence}; replace it, or write the exception down here"


def test_the_test_would_find_one():
    for licence in (
        "GNU General Public License v3 (GPLv3)",
        "AGPL-3.0-only",
        "LGPL-2.1",
        "UNKNOWN",
        "SSPL-1.0",
    ):
        assert FORBIDDEN.search(licence)
    for licence in (
        "MIT",
        "Apache-2.0 WITH LLVM-exception",
        "Mozilla Public License 2.0 (MPL 2.0)",
        "PSF-2.0",
    ):
        assert not FORBIDDEN.search(licence)
