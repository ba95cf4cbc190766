"""Unions for tests, without a mount: layers in a directory, verbs with their faults run inline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerstore.marks import TRUSTED, Marks
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.layer import Layer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.faults import RESTARTS_MAX, Fault
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.overlay.values import Caller

ROOT = Caller(0, 0)


def run(verb: Callable[..., Any], *arguments: Any) -> Any:
    """A verb with its faults, as dispatch does it."""
    for _ in range(RESTARTS_MAX):
        try:
            return verb(*arguments)
        except Fault as fault:
            result = fault.work()
            if fault.answer:
                return result
    raise AssertionError(f"{verb.__name__} does not progress")


@contextmanager
def union(
    where: Path,
    lowers: list[str],
    data: list[str] | None = None,
    config: Config | None = None,
    marks: Marks = TRUSTED,
) -> Iterator[Overlay]:
    """A union of `where`/upper (with `where`/work beside it) and the named lowers, made where they are missing."""
    for name in ["upper", "work", *lowers, *(data or [])]:
        (where / name).mkdir(exist_ok=True)
    layers: list[Layer] = [DirectoryLayer(os.fsencode(where / name), marks) for name in lowers]
    below: list[Layer] = [DirectoryLayer(os.fsencode(where / name), marks) for name in data or []]
    upper = Upper(os.fsencode(where / "upper"), os.fsencode(where / "work"), marks)
    overlay = Overlay(upper, layers, below, config or Config())
    try:
        yield overlay
    finally:
        overlay.close()


def node(overlay: Overlay, path: str) -> Node:
    """The node at a path; fails if there is none."""
    found = overlay.root
    for name in path.split("/"):
        entry = run(overlay.lookup, found, os.fsencode(name))
        assert entry is not None, path
        found = entry.node
    return found


def write(overlay: Overlay, path: str, data: bytes, offset: int = 0) -> None:
    handle = run(overlay.open, node(overlay, path), os.O_WRONLY, ROOT)
    try:
        assert run(overlay.write, handle, offset, data) == len(data)
    finally:
        run(overlay.release, handle)


def read(overlay: Overlay, path: str) -> bytes:
    handle = run(overlay.open, node(overlay, path), os.O_RDONLY, ROOT)
    try:
        return bytes(run(overlay.read, handle, 0, 1 << 24))
    finally:
        run(overlay.release, handle)


def names(overlay: Overlay, path: str = "") -> set[bytes]:
    where = node(overlay, path) if path else overlay.root
    handle = run(overlay.opendir, where)
    listed = [row.name for row in run(overlay.readdir, handle, 0)]
    run(overlay.releasedir, handle)
    assert len(listed) == len(set(listed))
    return set(listed) - {b".", b".."}
