"""What the commands print: JSON, tables, sizes, errors and progress bars."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from layerstore.store import Image

if TYPE_CHECKING:
    from layerstore.importer import Progress
    from layerstore.registry.push import Pushed


def complain(message: str, status: int = 1) -> int:
    """Say in one line on standard error what went wrong; returns the exit status."""
    print("layerstore:", " ".join(message.split("\n")), file=sys.stderr)
    return status


def summary(image: Image) -> dict[str, Any]:
    """An image as `--json` lists it."""
    return {
        "id": image.id,
        "tags": image.tags,
        "layers": [layer.diff_id for layer in image.layers],
        "size": image.size,
        "imported": image.imported_ns / 1e9,
        "source": image.source,
    }


def print_pushed(pushed: Pushed, as_json: bool) -> int:
    """Print what a registry has now; returns the exit status."""
    if as_json:
        print_json({"manifest": pushed.digest, "is_original": pushed.is_original})
    else:
        print(pushed.digest)
    return 0


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def size(count: int) -> str:
    """A number of bytes as podman and docker show one."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def when(image: Image) -> str:
    """The time of an image's import, in this place's time."""
    time = datetime.datetime.fromtimestamp(image.imported_ns / 1e9).astimezone()
    return time.strftime("%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress | None]:
    """Bars on the terminal, nothing anywhere else."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int | None) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield report
