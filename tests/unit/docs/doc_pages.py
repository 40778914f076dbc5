"""Reads the project's Markdown: sections, tables, fenced blocks, links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


def pages():
    """Every page of ours, by its path from the root."""
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(found)}


def sections(text):
    """Heading → what stands below it, up to the next heading of any level."""
    found, current, fenced = {}, "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")  # a # in code is no heading
        if line.startswith("#") and not fenced:
            current = line.strip("# \n")
            assert current not in found, f"two headings {current!r}"
            found[current] = ""
        else:
            found[current] = found.get(current, "") + line
    return found


def rows(text):
    """Cells of every body row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {at - 1 for at, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for at, row in enumerate(cells) if at not in heads and at - 1 not in heads]


def codes(text):
    """What stands in `code` spans."""
    return re.findall(r"`([^`]+)`", text)


def expand(text):
    """ "{a,b}/x" as ["a/x", "b/x"]; the one pair of braces there may be."""
    match = re.search(r"\{([^}]+)\}", text)
    return [text.replace(match[0], one) for one in match[1].split(",")] if match else [text]


def fences(text, language):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def links(text):
    """Targets of [text](target)."""
    return re.findall(r"\]\(([^)\s]+)\)", text)
