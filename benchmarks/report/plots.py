"""The plots of the page, as SVG text that can stand inside HTML.

Colours are Okabe and Ito's, told apart by most colour-blind readers; markers differ too, so that a
black-and-white print can be read.
"""

import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.figures import Figures
from benchmarks.report import words
from benchmarks.results import Row

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIGNS = dict(zip(MARKERS, "●■▲◆▼✚✖★", strict=True))  # the same in text
STYLE: Any = {  # its own type is the list of all its keys
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


_numbers = itertools.count(1)


def style_of(figures: Figures, label: str) -> tuple[str, str]:
    """The colour and marker of a subject, the same in every plot of a page."""
    index = [subject.label for subject in figures.subjects].index(label)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def overview(figures: Figures, rows: Sequence[Row]) -> str | None:
    """Every row's ratio to the baseline; None where there is only the baseline."""
    others = [s.label for s in figures.subjects if s.label != figures.baseline]
    shown = [
        row
        for row in rows
        if any((f := figures.of(row, label)) and f.ratio is not None for label in others)
    ]
    if not shown:
        return None
    with pyplot.rc_context(STYLE):
        canvas, axes = pyplot.subplots(figsize=(7.2, 0.9 + 0.19 * len(shown)))
        for label in others:
            colour, marker = style_of(figures, label)
            points = [
                (figure.ratio, index)
                for index, row in enumerate(shown)
                if (figure := figures.of(row, label)) and figure.ratio is not None
            ]
            axes.errorbar(
                [ratio.middle for ratio, _ in points],
                [index for _, index in points],
                xerr=[
                    [ratio.middle - ratio.low for ratio, _ in points],
                    [ratio.high - ratio.middle for ratio, _ in points],
                ],
                fmt=marker,
                color=colour,
                markersize=4,
                elinewidth=0.9,
                label=label,
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}\N{MULTIPLICATION SIGN}")
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(shown)), [row.id for row in shown], fontsize=7)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(f"cost as a multiple of {figures.baseline} (less is better)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=4)
        return _svg(canvas)


def along_axes(figures: Figures) -> list[tuple[str, str]]:
    """A plot for every workload that has an axis: its title, and the SVG."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in figures.rows:
        if row.axis:
            rest = [f"{k}={v}" for k, v in row.parameters.items() if k != row.axis]
            groups.setdefault((row.workload, row.base, row.axis, *rest), []).append(row)
    plots = []
    for rows in groups.values():
        if len(rows) >= 2:
            plots.append((_title(rows[0]), _along(figures, rows)))
    return plots


def _title(row: Row) -> str:
    rest = [words.parameter(k, v) for k, v in row.parameters.items() if k != row.axis]
    return ", ".join([row.title, *rest, f"on {row.base}"])


def _along(figures: Figures, rows: list[Row]) -> str:
    axis = rows[0].axis
    with pyplot.rc_context(STYLE):
        canvas, axes = pyplot.subplots(figsize=(3.5, 2.6))
        for subject in figures.subjects:
            colour, marker = style_of(figures, subject.label)
            points = sorted(
                (int(row.parameters[axis]), figure.cost)
                for row in rows
                if (figure := figures.of(row, subject.label)) and figure.cost.middle > 0
            )
            if points:
                axes.errorbar(
                    [at for at, _ in points],
                    [cost.middle for _, cost in points],
                    yerr=[
                        [cost.middle - cost.low for _, cost in points],
                        [cost.high - cost.middle for _, cost in points],
                    ],
                    fmt=marker + "-",
                    color=colour,
                    markersize=4,
                    linewidth=1,
                    elinewidth=0.9,
                    label=subject.label,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({int(row.parameters[axis]) for row in rows})
        axes.set_xticks(ticks, [_tick(axis, tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(_minor_label))
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.set_xlabel(axis)
        axes.set_ylabel(rows[0].unit)
        return _svg(canvas)


def _tick(axis: str, value: int) -> str:
    if axis == "bytes":
        return words.size(value).replace(" ", "\n")
    return f"{value // 1000}k" if value >= 10_000 else str(value)


def _minor_label(value: float, _: object) -> str:
    first = int(f"{value:e}"[0])
    return f"{value:,g}" if first in (2, 5) else ""


def _svg(canvas: Canvas) -> str:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(canvas)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Several of them stand in one page: what they refer to by name must not be another's.
    prefix = f"p{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
