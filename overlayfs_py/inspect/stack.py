"""The layers of a union opened for reading, and what they show at a path.

A second, much smaller reading of the rules of overlayfs.rst than `overlay`: nothing is remembered,
nothing changes, and what is hidden is kept, since that is what `which` is asked for. Any thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any, NamedTuple

from layerstore.marks import MarkInvalid, parse_redirect
from overlayfs_py.errors import UserError
from overlayfs_py.layers.layer import Found, Layer

UPPER = "upper"
LOWER = "lower"
DATA = "data-only lower"


class Source(NamedTuple):
    """One layer: `kind` is UPPER, LOWER or DATA, `number` counts the lowers from 1 at the top,
    `place` says where the
    layer is (a directory, or the digest of an image's layer)."""

    kind: str
    number: int
    place: str
    layer: Layer

    @property
    def title(self) -> str:
        """For people."""
        return self.place if self.kind == UPPER else f"{self.place} ({self.kind} {self.number})"


class Piece(NamedTuple):
    """An object of one layer: `layer` is its position in the stack, `path` where it is in that
    layer.
    """

    layer: int
    path: bytes
    found: Found

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.found.stat.st_mode)

    @property
    def key(self) -> tuple[int, bytes]:
        """What makes two pieces the same object."""
        return self.layer, self.path


class Shown(NamedTuple):
    """What the union shows at one path.

    `pieces`: the topmost object, and for a directory all that merge into it. `shadowed`: objects
    of the same path in lower layers that do not show. `whiteout`: the layer that removes the path;
    `pieces` is empty then.
    """

    pieces: tuple[Piece, ...]
    shadowed: tuple[Piece, ...] = ()
    whiteout: int | None = None

    @property
    def top(self) -> Piece:
        return self.pieces[0]


ABSENT = Shown(())


class Stack:
    """Layers, top first.

    Args:
        sources: the merged layers and below them the data-only ones.
        follow: whether redirects are followed.
    """

    def __init__(self, sources: list[Source], *, follow: bool = True) -> None:
        self.sources = sources
        self._merged = [source for source in sources if source.kind != DATA]
        self._follow = follow

    def root(self, first: int = 0) -> Shown:
        """The root directory of the union of the layers from `first` down."""
        pieces: list[Piece] = []
        for number in range(first, len(self._merged)):
            layer: Any = self._merged[number].layer
            found = layer.find_root() if hasattr(layer, "find_root") else _root_found(layer)
            pieces.append(Piece(number, b"", found))
            if found.opaque:
                break
        return Shown(tuple(pieces))

    def at(self, path: bytes, first: int = 0) -> Shown:
        """What shows at `path`, relative to the root, without `.` and `..`; symlinks are not
        followed.

        Raises:
            UserError: a layer has a mark that makes no sense.
        """
        shown = self.root(first)
        for name in filter(None, path.split(b"/")):
            if not shown.pieces or not shown.top.is_directory:
                return ABSENT
            shown = self.child(shown, name)
        return shown

    def child(self, parent: Shown, name: bytes) -> Shown:
        """What shows at `name` in a directory."""
        pieces: list[Piece] = []
        shadowed: list[Piece] = []
        merging = True
        for position, place in enumerate(parent.pieces):
            found = self._merged[place.layer].layer.find(place.found.ref, name, True)
            if found is None:
                continue
            if found.whiteout:
                if not pieces:
                    return Shown((), whiteout=place.layer)
                break
            piece = Piece(place.layer, _join(place.path, name), found)
            if pieces and not (merging and piece.is_directory):
                merging = False
                shadowed.append(piece)
                continue
            pieces.append(piece)
            merging = piece.is_directory and not found.opaque
            if merging and self._follow and found.redirect is not None:
                pieces += self._redirected(parent, position, piece)
                merging = False
        return Shown(tuple(pieces), tuple(shadowed))

    def _redirected(self, parent: Shown, position: int, piece: Piece) -> tuple[Piece, ...]:
        """The directories below that a redirected one merges with."""
        assert piece.found.redirect is not None
        try:
            redirect = parse_redirect(piece.found.redirect)
        except MarkInvalid as error:
            source = self._merged[piece.layer]
            raise UserError(
                f"{source.place}/{os.fsdecode(piece.path)}: {error}: this layer is damaged"
            ) from None
        if redirect.absolute:
            shown = self.at(b"/".join(redirect.components), piece.layer + 1)
        else:
            below = Shown(parent.pieces[position + 1 :])
            shown = self.child(below, redirect.components[0])
        return shown.pieces if shown.pieces and shown.top.is_directory else ()

    def names(self, shown: Shown) -> set[bytes]:
        """The names in a directory that some layer has, whiteouts included."""
        return {
            row.name
            for piece in shown.pieces
            for row in self._merged[piece.layer].layer.rows(piece.found.ref)
        }

    def source(self, piece: Piece) -> Source:
        """The layer that a piece is of."""
        return self.sources[piece.layer]

    def data(self, parent: Shown, piece: Piece) -> Piece | None:
        """Where the content of a metacopy is; None where it is missing.

        Args:
            parent: the directory that `piece` shows in.
        """
        name = os.path.basename(piece.path)
        path = None
        if piece.found.redirect is not None:
            redirect = parse_redirect(piece.found.redirect)
            name = redirect.components[-1]
            path = b"/".join(redirect.components) if redirect.absolute else None
        if path is not None:
            shown = self.at(path, piece.layer + 1)
            below = Shown(())
        else:
            below = Shown(tuple(place for place in parent.pieces if place.layer > piece.layer))
            shown = self.child(below, name)
        if not shown.pieces:
            return self._data_only(path) if path is not None else None
        return self.data(below, shown.top) if shown.top.found.metacopy else shown.top

    def _data_only(self, path: bytes) -> Piece | None:
        for number, source in enumerate(self.sources):
            if source.kind != DATA:
                continue
            found: Found | None = None
            ref = source.layer.root()
            for name in path.split(b"/"):
                found = source.layer.find(ref, name, False)
                if found is None:
                    break
                ref = found.ref
            if found is not None:
                return Piece(number, path, found)
        return None

    def close(self) -> None:
        """Close the layers."""
        for source in self.sources:
            with contextlib.suppress(OSError):
                source.layer.close()


def _root_found(layer: Layer) -> Found:
    ref = layer.root()
    return Found(ref, layer.stat(ref))


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
