"""What a soak must show, and its report as Markdown."""

import subprocess
from dataclasses import dataclass

MEMORY_FACTOR, MEMORY_MIB, FILES, THREADS, TASKS = 1.2, 64, 32, 8, 32
"""How much of each a process may hold at the end beyond what it had, warm, before the first fault since it
was started."""
MIB = 1 << 20


@dataclass(frozen=True)
class Growth:
    """Of one process, from when it was warm to the end."""

    name: str
    before: object
    after: object

    @property
    def problems(self):
        before, after = self.before, self.after
        if after.memory > before.memory * MEMORY_FACTOR + MEMORY_MIB * MIB:
            yield f"{self.name}: {before.memory / MIB:.0f} MiB grew to {after.memory / MIB:.0f}"
        if after.files > before.files + FILES:
            yield f"{self.name}: {before.files} open files grew to {after.files}"
        if after.threads > before.threads + THREADS:
            yield f"{self.name}: {before.threads} threads grew to {after.threads}"
        if after.tasks is not None and after.tasks > before.tasks + TASKS:
            yield f"{self.name}: {before.tasks} tasks grew to {after.tasks}"


def of_calls(kinds):
    """Problems with what was called."""
    for kind in kinds:
        tally = kind.tally
        if not tally.adds_up:
            yield f"{kind.name}: {dict(tally.counts)} doesn't add up: a call has no end"
        if tally.wrong:
            yield f"{kind.name}: {len(tally.wrong)} wrong answers, such as {tally.wrong[0]}"
        if tally.late:
            yield f"{kind.name}: {len(tally.late)} calls later than may be, up to {max(tally.late):.1f} s"
        if not tally.counts["rejected" if kind.is_bad else "answered"]:
            yield f"{kind.name}: not one call went as it should"


def table(head, rows):
    """Lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def ending(problems):
    """Lines that say how it went."""
    return ["**Passed.**"] if not problems else ["**Failed:**", *(f"- {problem}" for problem in problems)]


def report(setting, kinds, growths, played, problems):
    """All of it."""
    calls = [
        [kind.name, *(kind.tally.counts[each] for each in ("sent", "answered", "rejected", "failed")),
         ", ".join(f"{name} {count}" for name, count in kind.tally.causes.most_common()) or "–"]
        for kind in kinds
    ]  # fmt: skip
    held = [
        [g.name, f"{g.before.memory / MIB:.0f} → {g.after.memory / MIB:.0f}",
         f"{g.before.files} → {g.after.files}", f"{g.before.threads} → {g.after.threads}",
         "–" if g.after.tasks is None else f"{g.before.tasks} → {g.after.tasks}"]
        for g in growths
    ]  # fmt: skip
    happened = [[what, count] for what, count in sorted(played.items())]
    return "\n".join([
        *(f"- {line}" for line in setting), "",
        *table(["calls", "sent", "answered", "rejected", "failed", "failed by"], calls), "",
        *table(["process", "memory, MiB", "open files", "threads", "tasks"], held), "",
        *table(["what happened", "times"], happened), "",
        *ending(problems),
    ])  # fmt: skip


def commit():
    """Of this checkout; "-dirty" behind it where more than pages of documentation have changed."""
    name, changed = (
        subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", ".", ":!docs"))
    )
    return (name or "unknown") + ("-dirty" if changed else "")


def markers(name):
    """The lines around a report."""
    return f"<!-- {name}: written by tests/soak -->", f"<!-- {name}: end -->"


def write(page, name, text):
    """Puts the report of that name in the place of the last one."""
    first, last = markers(name)
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not end:
        raise SystemExit(f"{page} has to have the lines\n{first}\n{last}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
