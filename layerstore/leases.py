"""Leases: an image that somebody needs stays, whatever happens to its tags.

A lease has a name, an owner (free text, for people and for programs that look for their own) and
perhaps an end. One that stands for a mount of the kernel's overlayfs (`overlayfs-py mount
--engine=kernel`), which has no process to hold a lock, ends with that mount: once nobody has the
image's index open (`in_use`), or the machine was started anew. Blocking; one thread per store.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from typing import NamedTuple

from layerstore import in_use, names
from layerstore.collect import IMAGES, index_path
from layerstore.errors import ImageInUse, ImageUnknown, StoreError, show
from layerstore.refs import ImageRow, LeaseRow, Refs, short_id


class Lease(NamedTuple):
    """A lease. `made_ns`, `expires_ns` in nanoseconds since 1970, the latter None: for good.
    `mountpoint`: where the kernel had the image mounted when the lease was made; `upper`: the named
    upper of that mount."""

    name: str
    image_id: str
    owner: str
    made_ns: int
    expires_ns: int | None
    mountpoint: bytes | None
    upper: str | None


class Leases:
    """The leases of a store; `Store.leases` gives them.

    Args:
        root: of the store.
        refs: its database.
    """

    def __init__(self, root: bytes, refs: Refs) -> None:
        self._root = root
        self._refs = refs

    def all(self) -> list[Lease]:
        """Those that count, the oldest first."""
        return [_lease(row) for row in self._live(self._refs.leases())]

    def add(
        self,
        image_id: str,
        *,
        name: str | None = None,
        owner: str = "",
        seconds: float | None = None,
    ) -> Lease:
        """Keep an image.

        Args:
            image_id: as `Image.id`.
            name: of the lease; None: one is made up.
            owner: whose it is.
            seconds: for how long; None: until it is removed.

        Raises:
            StoreError: the name cannot be one, or is taken; the image has just gone.
        """
        if seconds is not None and not 0 < seconds < 1e10:
            raise StoreError(
                f"a lease of {seconds:g} seconds: its length must be more than nothing"
            )
        now = time.time_ns()
        ends = None if seconds is None else now + int(seconds * 1e9)
        row = LeaseRow(name or _made_up(), image_id, owner, now, ends, None, None, None)
        names.check_lease_name(row.name)
        self._add(row)
        return _lease(row)

    def add_mount(self, image_id: str, mountpoint: bytes, upper: str | None) -> Lease:
        """Keep an image for a mount of the kernel's, which comes after; see the module.

        Args:
            image_id: as `Image.id`; who mounts has its index open until the mount is there.
            mountpoint: for people.
            upper: the named upper that is mounted with it.
        """
        boot = in_use.boot_id()
        row = LeaseRow(
            _made_up(), image_id, "kernel mount", time.time_ns(), None, boot, mountpoint, upper
        )
        self._add(row)
        return _lease(row)

    def _add(self, row: LeaseRow) -> None:
        with self._refs.transaction():
            self._settle()
            if any(row.name == other.name for other in self._refs.leases()):
                raise StoreError(
                    f"there is a lease {row.name} already: remove it, or choose another"
                )
            try:
                self._refs.add_lease(row)
            except sqlite3.IntegrityError:
                raise ImageUnknown(
                    f"image {short_id(row.image_id)} has just been removed: import it again"
                ) from None

    def remove(self, name: str, *, force: bool = False) -> None:
        """Give up a lease.

        Args:
            force: also one of a mount that may still be there.

        Raises:
            StoreError: there is none of this name, or its mount is there.
        """
        with self._refs.transaction():
            found = [row for row in self._refs.leases() if row.name == name]
            if not found:
                raise StoreError(f"there is no lease {show(name)}: layerstore lease ls lists them")
            if found[0].mountpoint is not None and not force and self._live(found):
                raise StoreError(
                    f"the lease {name} is of the kernel's mount on {show(found[0].mountpoint)}:"
                    " unmount that, and it goes by itself"
                )
            self._refs.remove_lease(name)

    def settle(self) -> None:
        """Forget the leases that have ended."""
        with self._refs.transaction():
            self._settle()

    def _settle(self) -> None:
        rows = self._refs.leases()
        live = self._live(rows)
        for row in rows:
            if row not in live:
                self._refs.remove_lease(row.name)

    def refuse_held(self, image: ImageRow) -> None:
        """Say why an image cannot go. Inside a transaction; what has ended is forgotten.

        Raises:
            ImageInUse: a lease is on it.
        """
        self._settle()
        for row in self._refs.leases():
            if row.image_id == image.id:
                raise ImageInUse(f"image {short_id(image.id)} {_reason(row)}")

    def mount_of_upper(self, upper: str) -> bytes | None:
        """Where the kernel has a named upper mounted, or may have; None: nowhere."""
        for row in self._live(self._refs.leases()):
            if row.upper == upper:
                return row.mountpoint
        return None

    def _live(self, rows: list[LeaseRow]) -> list[LeaseRow]:
        now = time.time_ns()
        chains: dict[str, str] = {}
        if any(row.mountpoint is not None for row in rows):
            chains = {image.id: image.chain_id for image in self._refs.images()}
        boot = in_use.boot_id()
        unused: dict[str, bool] = {}

        def has_ended(row: LeaseRow) -> bool:
            if row.expires_ns is not None and row.expires_ns <= now:
                return True
            if row.mountpoint is None:
                return False
            if row.boot_id != boot:
                return True
            chain = chains[row.image_id]
            if chain not in unused:
                unused[chain] = _is_unused(index_path(self._root, IMAGES, chain))
            return unused[chain]

        return [row for row in rows if not has_ended(row)]


def _is_unused(path: bytes) -> bool:
    """Whether it is proven that nobody has the index open."""
    try:
        held = in_use.claim(path, proven=True)
    except OSError:
        return False
    if held is None:
        return False
    os.close(held)
    return True


def _reason(row: LeaseRow) -> str:
    if row.mountpoint is not None:
        return f"is mounted by the kernel on {show(row.mountpoint)}: unmount it first"
    owner = f" of {show(row.owner)}" if row.owner else ""
    return f"is kept by the lease {row.name}{owner}: remove that first (layerstore lease rm)"


def _lease(row: LeaseRow) -> Lease:
    return Lease(*row[:5], row.mountpoint, row.upper)


def _made_up() -> str:
    return uuid.uuid4().hex[:12]
