"""The house as code: who may import whom, and how large a module may grow.

Imports inside functions and under TYPE_CHECKING count as well: they are the same dependency, later.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

ROOMS = {
    "cli": ["cli", "__main__"],
    "daemon": [
        "client",
        "commit",
        "daemon",
        "foreground",
        "guardian",
        "inspect",
        "journal",
        "loop",
        "processes",
        "protection",
        "remount",
    ],
    "mount": ["ending", "engine", "mount"],
    "options": [
        "escaping",
        "holds",
        "option_words",
        "options",
        "preflight",
        "registry",
        "sync",
        "unmount",
    ],
    "wire": ["wire"],
    "overlay": ["overlay"],
    "layers": ["layers"],
    "syscalls": ["syscalls", "errors", "freezing", "mount_api", "mount_flags", "mountinfo"],
}
"""Top-level modules and packages of overlayfs_py by room; a room imports itself and those below it."""

STRANGERS = {
    "options": {"wire", "overlay", "layers"},
    "wire": {"layers"},
}
"""Rooms below that a room does without: options are words, and the wire knows no whiteouts."""

LENGTH_MAX = 500
LONGER: dict[str, str] = {
    "tests/model/tree.py": "one reference model: every operation shares its inodes, names and clocks",
    "tests/model/verbs.py": "one player of the kernel's part, whose operations share its dentries",
}
"""Modules that may be longer, with the reason."""

GRAB_BAGS = {"common", "utils", "util", "helpers", "misc"}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (TOP / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(TOP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names of all that a module imports, anywhere in it; `from a import b` gives a.b."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for statement in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            base = [*base, *(statement.module or "").split(".")]
            names |= {".".join([*filter(None, base), alias.name]) for alias in statement.names}
    return frozenset(names)


def ours(path: Path) -> Iterator[str]:
    """The modules of the two packages that a module imports."""
    for name in imported(path):
        while name:
            here = TOP.joinpath(*name.split("."))
            if here.with_suffix(".py").exists() or (here / "__init__.py").exists():
                yield name
                break
            name = name.rpartition(".")[0]


def room(module: str) -> str | None:
    """The room of a module of overlayfs_py; None for the package itself, which has none."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    for name, members in ROOMS.items():
        if parts[1] in members:
            return name
    pytest.fail(f"{module} has no room: give it one in {Path(__file__).name}, as low as it can be")


@pytest.mark.parametrize("path", sources("overlayfs_py"), ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    here = room(module_name(path))
    if here is None:
        return
    order = list(ROOMS)
    allowed = set(order[order.index(here) :]) - STRANGERS.get(here, set())
    for name in ours(path):
        if name.startswith("overlayfs_py.") and name != "overlayfs_py.__init__":
            there = room(name)
            assert there in allowed, f"{module_name(path)} ({here}) imports {name} ({there})"
        else:
            assert name.split(".")[0] in ("overlayfs_py", "layerstore"), name


@pytest.mark.parametrize("path", sources("layerstore"), ids=module_name)
def test_the_store_does_not_know_the_union(path: Path) -> None:
    strangers = [name for name in imported(path) if name.split(".")[0] == "overlayfs_py"]
    assert not strangers


@pytest.mark.parametrize("path", sources("overlayfs_py", "layerstore"), ids=module_name)
def test_the_product_needs_neither_its_tests_nor_another_event_loop(path: Path) -> None:
    strangers = {"asyncio", "tests", "benchmarks", "pytest", "hypothesis"}
    assert not strangers & {name.split(".")[0] for name in imported(path)}


def test_imports_make_no_circle() -> None:
    graph = {
        module_name(path): {name for name in ours(path) if name != module_name(path)}
        for path in sources("overlayfs_py", "layerstore")
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])), pytrace=False)


@pytest.mark.parametrize(
    "path", sources("overlayfs_py", "layerstore", "benchmarks", "tests"), ids=module_name
)
def test_a_module_has_one_subject(path: Path) -> None:
    assert path.stem not in GRAB_BAGS, "name a module after what is in it"
    name = str(path.relative_to(TOP))
    lines = path.read_bytes().count(b"\n")
    if name in LONGER:
        assert lines > LENGTH_MAX, f"{name} needs no exception any more"
    else:
        assert lines <= LENGTH_MAX, f"{name} has {lines} lines"


def test_the_exceptions_exist() -> None:
    assert all((TOP / name).exists() and reason for name, reason in LONGER.items())
