"""`diff`: what an upper directory adds, changes and deletes, in `docker diff`'s terms.

A directory counts as changed where its owner, mode or xattrs changed or something in it did; a
file where anything but its access and change time did. With the lower layers at hand every answer
is exact; without them, the marks of the upper tell what they can.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from layerstore.difference import ADDED, CHANGED, DELETED, TYPES, Change
from overlayfs_py import mountinfo
from overlayfs_py.errors import UserError
from overlayfs_py.inspect import needs, open_stack
from overlayfs_py.inspect.needs import Needs
from overlayfs_py.inspect.stack import ABSENT, LOWER, UPPER, Piece, Shown, Stack
from overlayfs_py.layers.layer import Layer
from overlayfs_py.layers.tree import DT_WHT

_COMPARED_AT_ONCE = 1 << 20


@dataclass(slots=True)
class Diff:
    """`exact`: the lower layers were at hand."""

    upper: bytes | None
    changes: list[Change]
    exact: bool
    needs: Needs

    def notes(self) -> list[str]:
        """Lines for people beside the list."""
        lines = self.needs.as_lines()
        if not self.exact:
            lines.append(
                "the lower layers are not known: A and C are told by the marks in the upper "
                "directory; "
                "name the layers with --lower, top first, for an exact answer"
            )
        return lines

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "upperdir": None if self.upper is None else os.fsdecode(self.upper),
            "exact": self.exact,
            "changes": [
                {"kind": kind, "path": os.fsdecode(path), "type": type_}
                for kind, path, type_ in self.changes
            ],
            "kernel": self.needs.as_data(),
        }


def diff(path: bytes, lowers: list[bytes]) -> Diff:
    """Compare an upper directory with what lies below it.

    Args:
        path: a live mount's mountpoint or upper directory, or any upper directory.
        lowers: the lower directories of an upper that nobody mounts, top first.

    Raises:
        UserError: neither a mount nor a directory, or a layer cannot be read.
    """
    record = None if lowers else open_stack.record_at(path)
    if record is not None:
        if record.upperdir is None:
            return Diff(None, [], True, Needs())
        upper, exact = record.upperdir, True
        stack = open_stack.of_record(record)
    else:
        _refuse_other_mount(path)
        upper, exact = os.path.join(os.getcwdb(), path), bool(lowers)
        stack = open_stack.of_upper(path, lowers)
    try:
        changes = _Comparison(stack).changes() if exact else _by_marks(stack)
        return Diff(upper, sorted(changes, key=_order), exact, needs.of_upper(stack))
    except OSError as error:
        where = os.fsdecode(error.filename or path)
        raise UserError(f"{where} cannot be read: {error.strerror}") from None
    finally:
        stack.close()


def _order(change: Change) -> list[bytes]:
    # By components: a directory stands right before what is in it.
    return change.path.split(b"/")


def _refuse_other_mount(path: bytes) -> None:
    name = os.fsdecode(path)
    entry = mountinfo.top(mountinfo.real_path(path))
    if entry is not None and entry.fstype == b"fuse.overlayfs-py":
        raise UserError(f"the daemon of {name} is dead: name the upper directory instead")
    if not os.path.isdir(path):
        raise UserError(f"{name} is neither a mount of overlayfs-py nor a directory")


class _Comparison:
    """Compares the union with and without its upper layer, going only where the upper has been."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._found: list[Change] = []

    def changes(self) -> list[Change]:
        self._directory(b"", self._stack.root(), self._stack.root(1))
        return self._found

    def _directory(self, path: bytes, new: Shown, old: Shown) -> None:
        for name in self._names(new, old):
            now = self._stack.child(new, name)
            before = self._stack.child(old, name) if old.pieces else ABSENT
            self._entry(path + b"/" + name, now, before)

    def _names(self, new: Shown, old: Shown) -> set[bytes]:
        """The names that may differ."""
        only_upper = Shown(tuple(piece for piece in new.pieces if piece.layer == 0))
        below = [piece.key for piece in new.pieces if piece.layer != 0]
        if below == [piece.key for piece in old.pieces]:
            return self._stack.names(only_upper)
        return self._stack.names(new) | self._stack.names(old)

    def _entry(self, path: bytes, now: Shown, before: Shown) -> None:
        if not now.pieces:
            if before.pieces:
                self._note(DELETED, path, before.top)
            return
        if [piece.key for piece in now.pieces] == [piece.key for piece in before.pieces]:
            return
        if not before.pieces:
            self._note(ADDED, path, now.top)
            if now.top.is_directory:
                self._directory(path, now, ABSENT)
            return
        if not now.top.is_directory:
            if self._differs(now.top, before.top):
                self._note(CHANGED, path, now.top)
            return
        count = len(self._found)
        self._directory(path, now, before if before.top.is_directory else ABSENT)
        if len(self._found) > count or self._differs(now.top, before.top):
            self._note(CHANGED, path, now.top)

    def _note(self, kind: str, path: bytes, piece: Piece) -> None:
        self._found.append(Change(kind, path, type_of(piece.found.stat.st_mode)))

    def _differs(self, new: Piece, old: Piece) -> bool:
        now, before = new.found.stat, old.found.stat
        if (now.st_mode, now.st_uid, now.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
            return True
        layers = self._stack.source(new).layer, self._stack.source(old).layer
        kind = stat.S_IFMT(now.st_mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and now.st_rdev != before.st_rdev:
            return True
        if kind != stat.S_IFDIR and now.st_mtime_ns != before.st_mtime_ns:
            return True
        if kind == stat.S_IFREG and now.st_size != before.st_size:
            return True
        if _xattrs(layers[0], new) != _xattrs(layers[1], old):
            return True
        if kind == stat.S_IFLNK:
            return layers[0].readlink(new.found.ref) != layers[1].readlink(old.found.ref)
        # A copy-up of the metadata alone has the lower's content by definition.
        whole = not new.found.metacopy and not old.found.metacopy
        return kind == stat.S_IFREG and whole and not _same_content(layers, new, old)


def _xattrs(layer: Layer, piece: Piece) -> dict[str, bytes]:
    """The xattrs that are the object's own, marks left out."""
    ref = piece.found.ref
    try:
        names = layer.listxattr(ref)
    except OSError:
        return {}
    marks = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "user.containers.override")
    return {name: layer.getxattr(ref, name) for name in names if not name.startswith(marks)}


def _same_content(layers: tuple[Layer, Layer], new: Piece, old: Piece) -> bool:
    contents = [
        layer.open(piece.found.ref) for layer, piece in zip(layers, (new, old), strict=True)
    ]
    try:
        offset = 0
        while True:
            now, before = (content.pread(_COMPARED_AT_ONCE, offset) for content in contents)
            if now != before:
                return False
            if not now:
                return True
            offset += len(now)
    finally:
        for content in contents:
            content.close()


def _by_marks(stack: Stack) -> list[Change]:
    """What an upper directory says on its own.

    An object that was copied up carries an origin; a directory that was made here is opaque, or
    lies in one that was.
    """
    layer = stack.sources[0].layer
    found: list[Change] = []
    pending: list[tuple[bytes, Shown, bool]] = [(b"", stack.root(), True)]
    while pending:
        path, directory, merges = pending.pop()
        for row in layer.rows(directory.top.found.ref):
            below = path + b"/" + row.name
            if row.type == DT_WHT:
                found.append(Change(DELETED, below, "unknown"))
                continue
            shown = stack.child(directory, row.name)
            if not shown.pieces:
                continue
            kind = _kind(shown.top, merges)
            found.append(Change(kind, below, type_of(shown.top.found.stat.st_mode)))
            if shown.top.is_directory:
                pending.append((below, shown, kind == CHANGED))
    return found


def _kind(piece: Piece, parent_merges: bool) -> str:
    marks = piece.found.marks
    if piece.is_directory:
        if piece.found.redirect is not None:
            # Renamed: new under this name, and what it brings from below cannot be listed.
            return ADDED
        if "origin" in marks:
            return CHANGED
        return CHANGED if parent_merges and not piece.found.opaque else ADDED
    return CHANGED if parent_merges and ("origin" in marks or piece.found.metacopy) else ADDED


def type_of(mode: int) -> str:
    """A word for the type in st_mode."""
    return TYPES.get(stat.S_IFMT(mode), "unknown")


__all__ = ["ADDED", "CHANGED", "DELETED", "LOWER", "UPPER", "Change", "Diff", "diff", "type_of"]
