"""The ratios as Markdown tables, for a README."""

import shlex

from benchmarks.figures import Figure, Figures
from benchmarks.report import words
from benchmarks.results import Results


def render(results: Results, baseline: str | None) -> str:
    """One table a family, under the command that made the result.

    Raises UserError where it has no samples or no such baseline.
    """
    figures = Figures(results, baseline)
    labels = [subject.label for subject in figures.subjects]
    machine = results.machine
    lines = [
        f"Cost as a multiple of {figures.baseline}, median of {results.rounds} rounds and the "
        f"interval around it; {machine.processors} processors, {machine.kernel.split(' #')[0]}.",
        "",
        f"    {shlex.join(results.command)}",
    ]
    if not results.complete:
        lines += ["", f"Not complete: {words.ending(results.ended_by)}."]
    for family, rows in figures.families().items():
        lines += ["", f"| {family} | {' | '.join(labels)} |"]
        lines.append("| --- |" + " ---: |" * len(labels))
        for row in rows:
            cells = [_cell(figures.of(row, label), row.unit) for label in labels]
            name = ", ".join(filter(None, [row.title, words.parameters(row), row.base]))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return ""
    if figure.ratio is None:
        return f"{words.number(figure.cost.middle)} {unit}"
    return f"{words.number(figure.ratio.middle)} ({words.span(figure.ratio)})"
