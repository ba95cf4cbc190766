"""The self-contained HTML page: no script, no font, no picture from elsewhere; prints on paper."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from benchmarks.figures import Figure, Figures
from benchmarks.report import plots, words
from benchmarks.results import Results, Row

ROOMY_SUBJECTS_MAX = 5
"""With so many columns there is room for two figures side by side in one."""
TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True, slots=True)
class _Line:
    row: Row
    parameters: str
    cells: list[Figure | None]


def render(results: Results, baseline: str | None) -> str:
    """The page of one result. Raises UserError where it has no samples or no such baseline."""
    figures = Figures(results, baseline)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=words.number,
        span=words.span,
        ending=words.ending,
        join_words=shlex.join,
        breakable=_breakable,
    )
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(
        figures=figures,
        results=results,
        machine=results.machine,
        families={
            family: [_line(figures, row) for row in rows]
            for family, rows in figures.families().items()
        },
        overall=_overall(figures),
        overviews=[
            (family, Markup(svg))
            for family, rows in figures.families().items()
            if (svg := plots.overview(figures, rows)) is not None
        ],
        plots=[(title, Markup(svg)) for title, svg in plots.along_axes(figures)],
        legend=[_legend(figures, subject.label) for subject in figures.subjects],
        duration=words.duration(results.duration_s),
        reproduce=lambda row: reproduce(results, row),
        confidence=_confidence(figures),
        roomy=len(figures.subjects) <= ROOMY_SUBJECTS_MAX,
    )


def reproduce(results: Results, row: Row) -> str:
    """The command that takes one row again."""
    return shlex.join(["python", "-m", "benchmarks", "run", "--only", row.id, "--json", "row.json"])


def _legend(figures: Figures, label: str) -> tuple[str, str, str]:
    colour, marker = plots.style_of(figures, label)
    return label, colour, plots.SIGNS[marker]


def _line(figures: Figures, row: Row) -> _Line:
    cells = [figures.of(row, subject.label) for subject in figures.subjects]
    return _Line(row, words.parameters(row), cells)


def _overall(figures: Figures) -> list[tuple[str, list[tuple[float, int] | None]]]:
    """For each family the mean ratio of every subject; a family without any is left out."""
    lines = []
    for family, rows in figures.families().items():
        means = [figures.overall(rows, subject.label) for subject in figures.subjects]
        if any(means):
            lines.append((family, means))
    return lines


def _confidence(figures: Figures) -> str:
    """What the intervals are worth, in brackets."""
    found = [
        figure.cost.confidence
        for row in figures.rows
        for subject in figures.subjects
        if (figure := figures.of(row, subject.label)) is not None
    ]
    low, high = min(found) * 100, max(found) * 100
    if high == 0:
        return "(one round has none)"
    span = f"{low:.0f} %" if round(low) == round(high) else f"{low:.0f} to {high:.0f} %"
    return f"(with a confidence of {span})"


def _breakable(label: str) -> Markup:
    """A subject's label that a narrow column may break behind its commas and equals signs."""
    return Markup("<wbr>").join(re.split(r"(?<=[,=])", label))
