"""Merge directories: all names of several directories as one, and what can be known from having read them.

The lower layers do not change, so the names of a directory's lowers are remembered once they have been read in one
sweep: from then on a lookup asks only the layers that have the name, and none for a name that is nowhere. The upper is
never remembered.

Thread: the one that runs the verbs; `Listing` may be filled elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from overlayfs_py.layers.layer import Layer, Ref
from overlayfs_py.layers.tree import DT_DIR, DT_WHT, Row
from overlayfs_py.overlay.cookies import in_order
from overlayfs_py.overlay.faults import Fault, Shared
from overlayfs_py.overlay.node import Lower, Node
from overlayfs_py.overlay.state import State

SWEEP_AFTER_LOOKUPS = 2
SWEEP_INLINE_BYTES = 1 << 17
"""A directory whose own size is over this (some 3,000 names on ext4) is read in a worker thread, not in a verb."""


def positions(state: State, parent: Node, name: bytes) -> int:
    """Which of the parent's lower directories may have `name`, as a bit mask; -1 where that is not known."""
    if parent.swept is not None:
        return parent.swept.get(name, 0)
    if len(parent.lowers) < 2 or not state.config.caching:
        return -1
    parent.lookups += 1
    if parent.lookups * len(parent.lowers) <= SWEEP_AFTER_LOOKUPS * 2:
        return -1
    if _is_large(parent.lowers):
        # Reading it would hold up everybody else; asking each layer costs only those who ask.
        return -1
    parent.swept = sweep(parent.lowers)
    return parent.swept.get(name, 0)


def sweep(lowers: Iterable[Lower]) -> dict[bytes, int]:
    """All names of the lower directories, each with the mask of the directories that have it (or a whiteout)."""
    masks: dict[bytes, int] = {}
    for position, (layer, ref) in enumerate(lowers):
        bit = 1 << position
        for row in layer.rows(ref):
            masks[row.name] = masks.get(row.name, 0) | bit
    return masks


def _is_large(lowers: Iterable[Lower]) -> bool:
    return any(layer.stat(ref).st_size > SWEEP_INLINE_BYTES for layer, ref in lowers)


def directories(state: State, node: Node) -> list[tuple[Layer, Ref]]:
    """The real directories that make up `node`, top first."""
    result: list[tuple[Layer, Ref]] = []
    if node.upper and node.linked:
        assert state.upper is not None
        result.append((state.upper, state.path(node)))
    result.extend(node.lowers)
    return result


def listing(parts: list[tuple[Layer, Ref]], *, quiet: bool = True) -> list[tuple[Row, int]]:
    """The names that show in a merge of real directories, each with the position of the directory it comes from.

    A name that is there in several counts for the topmost; a whiteout hides what is below it.
    """
    if len(parts) == 1:
        layer, ref = parts[0]
        return [(row, 0) for row in layer.rows(ref, quiet=quiet) if row.type != DT_WHT]
    seen: set[bytes] = set()
    result: list[tuple[Row, int]] = []
    for position, (layer, ref) in enumerate(parts):
        # A directory may name a thing twice: a file and the `.wh.` of what it stands over. The file counts.
        own = {}
        for row in layer.rows(ref, quiet=quiet):
            if row.type != DT_WHT or row.name not in own:
                own[row.name] = row
        for name, row in own.items():
            if name in seen:
                continue
            seen.add(name)
            if row.type != DT_WHT:
                result.append((row, position))
    return result


class Listing:
    """The rows of a directory as they were at one moment, read in a verb or, where that may take long, in a fault.

    They are in the order of `state.cookie`, which is made from their names: so the offset of one stays good in every
    other listing of the directory, while names come and go.

    Attributes:
        cookies: of each row; the offset after it.
    """

    def __init__(self, state: State, node: Node) -> None:
        self.parts = directories(state, node)
        self.cookies: list[int] = []
        self._cookie = state.cookie
        self._devices: list[Hashable | None] = [None] * len(self.parts)
        self.rows: list[tuple[Row, int]] = []
        self._read = Shared(self._fill)

    def _fill(self) -> None:
        self.rows, self.cookies = in_order(listing(self.parts, quiet=False), self._cookie)

    def get(self) -> list[tuple[Row, int]]:
        """The rows; raises Fault the first time if reading them may take long."""
        if not self._read.done and self._is_large():
            raise Fault(self._read)
        self._read()
        return self.rows

    def device(self, position: int) -> Hashable:
        """What the inode numbers of the rows from directory `position` belong to."""
        known = self._devices[position]
        if known is None:
            layer, ref = self.parts[position]
            known = self._devices[position] = layer.device(layer.stat(ref))
        return known

    def _is_large(self) -> bool:
        return any(
            not layer.local or layer.stat(ref).st_size > SWEEP_INLINE_BYTES
            for layer, ref in self.parts
        )


def has_children(state: State, node: Node) -> bool:
    """Whether a directory shows any name."""
    parts = directories(state, node)
    if len(parts) == 1:
        layer, ref = parts[0]
        return any(row.type != DT_WHT for row in layer.rows(ref))
    return bool(listing(parts))


def count_subdirectories(state: State, node: Node) -> int:
    """How many directories a directory shows; st_nlink is that and two.

    One real directory says it itself. Of several, most have none: then nothing needs to be read.
    """
    parts = directories(state, node)
    counts = [layer.stat(ref).st_nlink for layer, ref in parts]
    if len(parts) == 1 and counts[0] >= 2:
        return counts[0] - 2
    if all(count == 2 for count in counts[1:]) and counts[0] >= 2:
        return counts[0] - 2
    return sum(1 for row, _ in listing(parts) if row.type == DT_DIR)
