"""What became of the tests that a page's tables name: the last column of those that have "latest figure".

    PYTHONPATH=tests .venv/bin/python -m soak.figures docs/reliability.md COMMIT tests.xml [more.xml …]

The files are of pytest's --junitxml; what several have of a test counts once, as the last has it. Exit codes:
0 all passed, 1 a test that is named failed or wasn't run; its row is printed, and stays as it is if none ran.
"""

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import machine
from soak import verdict

COLUMN = "| latest figure |"
TEST = re.compile(r"(test_\w+)\.py(?:::(\w+))?")


def main(page, commit, *files):
    """Fills the column and the line above it; the exit code."""
    found = outcomes(files)
    lines, bad, is_ours = [], [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        is_ours = line.startswith("|") and (is_ours or line.endswith(COLUMN))
        row, _, _ = line.removesuffix(" |").rpartition(" | ")
        if is_ours and (named := TEST.findall(row)):
            counts = sum((found[each] for each in named), Counter())
            if counts["failed"] or not all(found[each] for each in named):
                bad.append(line)
            line = f"{row} | {told(counts)} |" if counts else line
        lines.append(line)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    verdict.write(page, "figures", f"Latest figures: commit {commit}, {machine.now()}.")
    print(*bad, sep="\n")
    return 1 if bad else 0


def outcomes(files):
    """Counts of passed, failed and skipped by (module, test), and by (module, "") for all of its tests."""
    cases = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            cases[case.get("classname"), case.get("name")] = outcome(case)
    found = defaultdict(Counter)
    for (place, name), became in cases.items():
        module = place.rpartition(".")[2]
        for test in (name.partition("[")[0], ""):
            found[module, test][became] += 1
    return found


def outcome(case):
    """Of one testcase."""
    tags = {child.tag for child in case}
    return "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"


def told(counts):
    """In words."""
    return ", ".join(f"{counts[each]} {each}" for each in ("passed", "failed", "skipped") if counts[each])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
