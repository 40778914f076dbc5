"""`plaudit check`: whether a server fits our contract."""

import dataclasses
from typing import TYPE_CHECKING

import typer

from plaudit.cli.exits import EXIT_FAILED
from plaudit.cli.options import Json, Model, Timeout
from plaudit.cli.printing import print_json

if TYPE_CHECKING:
    from plaudit.conformance import Finding


def check(
    address: str = typer.Argument(help="HOST:PORT of the reward service."),
    model: Model = "",
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Checks whether a reward service keeps the promises of the contract, a line for each."""
    from plaudit.conformance import conformance

    findings = []
    for finding in conformance(address, model, timeout):
        findings.append(finding)
        if not as_json:
            print(_line(finding), flush=True)
    failed = sum(finding.verdict == "fail" for finding in findings)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        print(f"{len(findings)} checks, {failed} failed")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _line(finding: "Finding") -> str:
    found = f": {finding.found}" if finding.found else ""
    return f"{finding.verdict}  {finding.check}: {finding.expected}{found}"
