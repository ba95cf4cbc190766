"""How numbers and parameters are written."""

from benchmarks.results import Parameter, Row
from benchmarks.statistics import Interval


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def span(interval: Interval) -> str:
    """The two ends of an interval; one round has none."""
    if interval.confidence == 0:
        return "one round"
    return f"{number(interval.low)} to {number(interval.high)}"


def size(count: int) -> str:
    """A number of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024 or count % 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"


def parameter(name: str, value: Parameter) -> str:
    """One parameter for people: 10 layers, 4 KiB, chmod."""
    if isinstance(value, str):
        return f"{name} {value}" if name in ("of", "cache", "daemon") else value
    if name in ("bytes", "block"):
        return size(value)
    return f"{value:,} {name if value != 1 else name.removesuffix('s')}".replace(
        ",", "\N{NO-BREAK SPACE}"
    )


def parameters(row: Row) -> str:
    """All parameters of a row."""
    return ", ".join(parameter(name, value) for name, value in row.parameters.items())


def ending(ended_by: str) -> str:
    """How a run ended that is not complete, as a sentence without its full stop."""
    how = {"interrupted": "was interrupted", "time limit": "reached its time limit"}
    return f"the run {how.get(ended_by, 'failed')}"


def duration(seconds: float) -> str:
    """About how long: 40 s, 12 min, 1 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
