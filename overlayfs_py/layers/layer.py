"""What the union asks of a layer, whatever the layer is made of.

A layer hands out references to its objects; what a reference is only the layer knows (a path, an index entry). Lower
layers do not change while they are mounted, so references stay good.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple, Protocol

from overlayfs_py.layers.tree import Row

Ref = Any


class Found(NamedTuple):
    """A name in one layer, with the marks that decide how layers combine there.

    `whiteout`: nothing at this name, and nothing below. `opaque`: nothing below is merged in. `redirect`: where to go
    on in the layers below. `metacopy`: the data is further down. `device`: an escaped 0/0 character device, kept as an
    empty file since a real one would be a whiteout. `marks` has the raw values of the others, by their bare names.
    """

    ref: Ref
    stat: os.stat_result
    whiteout: bool = False
    opaque: bool = False
    redirect: bytes | None = None
    metacopy: bool = False
    device: bool = False
    marks: dict[str, bytes] = {}  # noqa: RUF012 (never changed)


class Content(Protocol):
    """The data of one open regular file. `fd` is None where it is not a plain file of the host."""

    @property
    def fd(self) -> int | None: ...
    @property
    def size(self) -> int: ...
    def pread(self, size: int, offset: int) -> bytes: ...
    def pread_cached(self, size: int, offset: int) -> bytes: ...
    def close(self) -> None: ...


class Layer(Protocol):
    """One directory tree. `local` False: any call may be slow."""

    local: bool

    def root(self) -> Ref: ...

    def find(self, parent: Ref, name: bytes, below: bool) -> Found | None:
        """The object `name` in the directory `parent`; `below`: whether other layers lie below this one here,
        so that marks matter."""

    def stat(self, ref: Ref) -> os.stat_result: ...
    def rows(self, ref: Ref, *, quiet: bool = True) -> Iterable[Row]:
        """The names in a directory, whiteouts as DT_WHT. Not `quiet`: on behalf of a caller who lists it, so that a
        writable layer updates the access time.
        """

    def readlink(self, ref: Ref) -> bytes: ...
    def listxattr(self, ref: Ref) -> list[str]: ...
    def getxattr(self, ref: Ref, name: str | bytes) -> bytes: ...
    def open(self, ref: Ref) -> Content: ...

    def device(self, status: os.stat_result) -> Hashable:
        """What makes st_ino unique: the filesystem that the object is on."""

    def handle(self, ref: Ref) -> bytes | None:
        """The object's file handle in the kernel's overlay form, None where there is none."""

    @property
    def statfs_fd(self) -> int:
        """A descriptor for fstatvfs(3)."""

    def close(self) -> None: ...
