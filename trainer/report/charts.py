"""Charts as inline SVG: readable on a light and on a dark page, small, with nothing to fetch."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

# matplotlib takes a second, which a run can spare until there is something to draw.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#123456"
"""Stands for the page's own text colour until the SVG is written; `currentColor` replaces it."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's palette: told apart by colour-blind readers, readable on white and on black."""
STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MAX_POINTS = 500
"""Points a line is drawn with at most; a page of many runs stays small."""


@dataclass(frozen=True)
class Line:
    """One curve: x and y of the same length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """A mean with its interval."""

    label: str
    mean: float
    low: float
    high: float


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, log_y: bool = False) -> str:
    """Curves over steps as an <svg> element."""
    figure, axes = _axes(5.2, 2.6)
    figure.subplots_adjust(left=0.17, right=0.98, top=0.96, bottom=0.19)  # finding them is a second drawing
    for index, line in enumerate(lines):
        (drawn,) = axes.plot(thinned(line.x), thinned(line.y), label=line.label, linewidth=1.4, markersize=4)
        drawn.set_color(COLOURS[index % 4])
        drawn.set_linestyle(STYLES[index % 4])
        drawn.set_marker("o" if len(line.x) < 30 else "")  # a line of one point would not be seen
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if log_y:
        axes.set_yscale("log")
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _svg(figure, f"{y_label} over {x_label}: " + ", ".join(line.label for line in lines))


def interval_chart(
    bars: Sequence[Bar],
    x_label: str,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Means with 95 % intervals, one row each; `reference` is a dotted vertical line."""
    figure, axes = _axes(5.2, 0.9 + 0.32 * len(bars))
    figure.set_layout_engine("constrained")  # labels of any length
    for row, bar in enumerate(reversed(bars)):
        axes.plot([bar.low, bar.high], [row, row], color=COLOURS[0], linewidth=2)
        axes.plot([bar.mean], [row], "o", color=COLOURS[0], markersize=5)
        axes.annotate(f"{bar.mean:.3g}", (bar.mean, row), (0, 5), textcoords="offset points",
                      color=INK, fontsize=8, ha="center")  # fmt: skip
    axes.set_yticks(range(len(bars)), [bar.label for bar in reversed(bars)])
    axes.set_ylim(-0.6, len(bars) - 0.2)
    axes.set_xlabel(x_label)
    if reference is not None:
        axes.axvline(reference, color=INK, linestyle=":", linewidth=1)
    if limits is not None:
        axes.set_xlim(*limits)
    values = ", ".join(f"{bar.label} {bar.mean:.3g} ({bar.low:.3g} to {bar.high:.3g})" for bar in bars)
    return _svg(figure, f"{x_label}: {values}")


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    return figure, axes


def thinned(values: Sequence[float]) -> Sequence[float]:
    """Every k-th value and the last one, so that at most MAX_POINTS are drawn."""
    every = -(-len(values) // MAX_POINTS)
    return values if every <= 1 else [*values[:-1:every], values[-1]]


def _svg(figure: "Figure", description: str) -> str:
    """The figure as an accessible <svg> whose ids clash with no other figure's on the page."""
    import matplotlib as mpl

    out = io.StringIO()
    # Ids are hashed from the salt: with the description in it, two charts of one page never share them,
    # and the same data gives the same page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    label = html.escape(description)
    return f'<svg role="img" aria-label="{label}" ' + _lean(out.getvalue())


def _lean(document: str) -> str:
    """What follows "<svg", without sizes, names of groups, font lists and white space nobody reads."""
    svg = document[document.index("<svg") + len("<svg") :].replace(INK, "currentColor")
    for pattern, instead in (
        (r"<style.*?</style>|<metadata>.*?</metadata>", ""),  # the page's own rules say the style once
        (r'^([^>]*?) height="[^"]*"', r"\1"),
        (r'^([^>]*?) width="[^"]*"', r"\1"),
        (r'<g id="[^"]*"', "<g"),
        (r"font-family: [^;]*; ?", ""),
        (r"\s*\n\s*", " "),
    ):
        svg = re.sub(pattern, instead, svg, flags=re.DOTALL)
    return svg.lstrip()
