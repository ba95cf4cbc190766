"""Numbers that callers see: inode numbers that are unique over all layers, and user and group ids.

An inode number must not change when a file is copied up nor over a remount, so it is made from the lower object's
number and the place of its filesystem among the layers, as the kernel's xino does. Any thread.
"""

from __future__ import annotations

from collections.abc import Hashable

import xxhash

from overlayfs_py.overlay.config import Config, IdRange

OVERFLOW_ID = 65534
"""What an id without a mapping is shown as (/proc/sys/kernel/overflowuid)."""

ROOT_INO = 1

_FILESYSTEM_SHIFT = 48
_HASHED = 1 << 62


class InodeNumbers:
    """Filesystem and inode number -> st_ino.

    The first filesystem that is registered (the upper's) keeps its numbers as they are; others get their position
    in bits 48 and up. Numbers that do not fit, and the root's own number 1, are hashed into a range of their own.
    """

    def __init__(self) -> None:
        self._positions: dict[Hashable, int] = {}
        self._spare = 0

    def register(self, device: Hashable) -> int:
        return self._positions.setdefault(device, len(self._positions))

    def number(self, device: Hashable, ino: int) -> int:
        position = self._positions.get(device)
        if position is None:
            position = self.register(device)
        if 1 < ino < 1 << _FILESYSTEM_SHIFT and position < 1 << 14:
            if position == 0:
                # The very object: each node keeps both numbers.
                return ino
            return position << _FILESYSTEM_SHIFT | ino
        return self._hashed(b"%d:%d" % (position, ino))

    def broken_link(self, parent: int, name: bytes, ino: int) -> int:
        """For one name of a lower hard link that copy-up will break (index=off): its number is its own."""
        return self._hashed(b"%d:%d:%s" % (parent, ino, name))

    def spare(self) -> int:
        """A number nobody has, for an object whose own number is taken; not the same after a remount."""
        self._spare += 1
        return _HASHED | 1 << 61 | self._spare

    @staticmethod
    def _hashed(key: bytes) -> int:
        return _HASHED | xxhash.xxh3_64_intdigest(key) >> 3


class Ids:
    """Owner ids as the layers store them <-> as callers see them (uidmapping, gidmapping, squash)."""

    def __init__(self, config: Config) -> None:
        self._uids = config.uid_map
        self._gids = config.gid_map
        self._squash_uid = config.squash_uid
        self._squash_gid = config.squash_gid
        self.plain = not (
            config.uid_map
            or config.gid_map
            or config.squash_uid is not None
            or config.squash_gid is not None
        )

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        if self.plain:
            return uid, gid
        shown_uid = self._squash_uid if self._squash_uid is not None else _shown(self._uids, uid)
        shown_gid = self._squash_gid if self._squash_gid is not None else _shown(self._gids, gid)
        return shown_uid, shown_gid

    def stored_uid(self, uid: int) -> int:
        """Whom an object belongs to on disk; squashed ids are squashed there too, as fuse-overlayfs does."""
        return self._squash_uid if self._squash_uid is not None else _stored(self._uids, uid)

    def stored_gid(self, gid: int) -> int:
        return self._squash_gid if self._squash_gid is not None else _stored(self._gids, gid)


def _shown(ranges: tuple[IdRange, ...], value: int) -> int:
    if not ranges:
        return value
    for entry in ranges:
        if entry.stored <= value < entry.stored + entry.count:
            return value - entry.stored + entry.shown
    return OVERFLOW_ID


def _stored(ranges: tuple[IdRange, ...], value: int) -> int:
    if not ranges:
        return value
    for entry in ranges:
        if entry.shown <= value < entry.shown + entry.count:
            return value - entry.shown + entry.stored
    return OVERFLOW_ID
