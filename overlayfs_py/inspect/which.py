"""`which`: the layer that a path of a live mount comes from, what it hides, and whether it was
copied up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from overlayfs_py import mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.inspect import open_stack
from overlayfs_py.inspect.diff import type_of
from overlayfs_py.inspect.stack import UPPER, Piece, Shown, Stack
from overlayfs_py.registry import Record


@dataclass(slots=True)
class Place:
    """An object in one layer: `layer` is its kind, `number` counts lowers from 1 at the top,
    `path` is where it is.
    """

    layer: str
    number: int
    place: str
    path: str
    type: str

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer": self.layer,
            "number": self.number,
            "place": self.place,
            "path": self.path,
            "type": self.type,
        }

    def __str__(self) -> str:
        title = self.layer if self.layer == UPPER else f"{self.layer} {self.number}"
        return f"{title} {self.place}, at {self.path}"


@dataclass(slots=True)
class Which:
    """`merged`: further directories that show through; `data`: where a metacopy's content is."""

    path: str
    mountpoint: str
    origin: Place
    merged: list[Place] = field(default_factory=list)
    shadowed: list[Place] = field(default_factory=list)
    data: Place | None = None
    copied_up: bool = False

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "mountpoint": self.mountpoint,
            "from": self.origin.as_data(),
            "merged": [place.as_data() for place in self.merged],
            "shadows": [place.as_data() for place in self.shadowed],
            "data": None if self.data is None else self.data.as_data(),
            "copied_up": self.copied_up,
        }

    def as_lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.path}: {self.origin.type} from {self.origin}"]
        if self.copied_up:
            lines.append("  copied up")
        lines += [f"  merged with {place}" for place in self.merged]
        if self.data is not None:
            lines.append(f"  content from {self.data}")
        lines += [f"  shadows {place.type} in {place}" for place in self.shadowed]
        return lines


def which(path: bytes) -> Which:
    """Find out about one path; a symlink at its end is not followed.

    Raises:
        UserError: not in a live mount, or not there.
    """
    name = os.fsdecode(path)
    real = mountinfo.real_path(path)
    record = _record_of(real)
    if record is None:
        raise UserError(f"{name} is not in a mount of overlayfs-py: 'overlayfs-py ps' lists them")
    stack = open_stack.of_record(record)
    inside = os.path.relpath(real, record.mountpoint) if real != record.mountpoint else b""
    try:
        parent = stack.at(os.path.dirname(inside))
        shown = stack.at(inside)
        if not shown.pieces:
            raise UserError(f"{name} does not exist{_why_absent(stack, shown)}")
        return _answer(name, record, stack, parent, shown, at_root=not inside)
    except OSError as error:
        raise UserError(f"{name}: a layer cannot be read: {error.strerror}") from None
    finally:
        stack.close()


def _record_of(real: bytes) -> Record | None:
    """The live mount that shows at this path: the nearest mountpoint above counts, whatever it is."""
    mountpoint = real
    while True:
        entry = mountinfo.top(mountpoint)
        if entry is not None:
            return registry.find(mountpoint, os.fsdecode(entry.device))
        if mountpoint == b"/":
            return None
        mountpoint = os.path.dirname(mountpoint)


def _why_absent(stack: Stack, shown: Shown) -> str:
    if shown.whiteout is None:
        return ""
    return f": removed by a whiteout in {stack.sources[shown.whiteout].title}"


def _answer(
    name: str, record: Record, stack: Stack, parent: Shown, shown: Shown, *, at_root: bool
) -> Which:
    top = shown.top
    answer = Which(
        path=name,
        mountpoint=os.fsdecode(record.mountpoint),
        origin=_place(stack, top),
        merged=[_place(stack, piece) for piece in shown.pieces[1:]],
        shadowed=[_place(stack, piece) for piece in shown.shadowed],
    )
    if top.found.metacopy:
        data = stack.data(parent, top)
        answer.data = None if data is None else _place(stack, data)
    if stack.source(top).kind == UPPER and not at_root:
        # fuse-overlayfs leaves no origin; then a file of the same name below tells as much.
        below = len(shown.pieces) > 1 or bool(shown.shadowed)
        answer.copied_up = "origin" in top.found.marks or (
            below and top.is_directory and not top.found.opaque
        )
    return answer


def _place(stack: Stack, piece: Piece) -> Place:
    source = stack.source(piece)
    return Place(
        source.kind,
        source.number,
        source.place,
        "/" + os.fsdecode(piece.path),
        type_of(piece.found.stat.st_mode),
    )
