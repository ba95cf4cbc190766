"""A comparison as text on the terminal."""

from rich.console import Console
from rich.table import Table

from benchmarks.compare import Change, Comparison, Verdict
from benchmarks.report import words


def show(comparison: Comparison) -> None:
    """Prints what changed, what did not, and what could not be compared."""
    console = Console(highlight=False, soft_wrap=True)
    for remark in comparison.remarks:
        console.print(f"note: {remark}", markup=False)
    for verdict in (Verdict.SLOWER, Verdict.FASTER):
        changes = comparison.called(verdict)
        if changes:
            console.print(_table(f"{len(changes)} {verdict.value}", changes))
    for verdict in (Verdict.SAME, Verdict.UNDECIDED):
        if count := len(comparison.called(verdict)):
            console.print(f"{count} rows: {verdict.value}")
    for name, missing in (("OLD", comparison.only_old), ("NEW", comparison.only_new)):
        for line in missing:
            console.print(f"only in {name}: {line}", markup=False)


def _table(title: str, changes: list[Change]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("row", "subject"):
        table.add_column(name, overflow="fold")
    for name in ("old", "new", "", "new/old", "interval"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for change in changes:
        table.add_row(
            change.row.id,
            change.subject,
            words.number(change.old_median),
            words.number(change.new_median),
            change.row.unit,
            f"{change.ratio.middle:.3f}",
            f"{change.ratio.low:.3f} to {change.ratio.high:.3f}",
        )
    return table
