"""What can go wrong in the store. Every message is one line: what, where, what to do."""

from __future__ import annotations

import os


class StoreError(Exception):
    """A mistake of the user's or damage in what was read: shown as one line, without a
    traceback.
    """


class SourceInvalid(StoreError):
    """An image or layer that cannot be taken as it is; nothing of it was imported."""


class NoRoom(StoreError):
    """The disk is full.

    Args:
        root: of the store.
        outcome: what that means for whoever asked.
    """

    def __init__(self, root: bytes, outcome: str) -> None:
        super().__init__(
            f"{show(root)}: no space left for the store: {outcome}; free some and try again"
        )


class IndexCorrupt(StoreError):
    """An index that is not what it should be.

    Args:
        path: the file.
        offset: where in it, in bytes.
        expected: what should have been there, and what was.
    """

    def __init__(self, path: bytes, offset: int, expected: str) -> None:
        super().__init__(f"{show(path)}: byte {offset}: {expected}")
        self.path = path
        self.offset = offset
        self.expected = expected


class SplitCorrupt(StoreError):
    """A layer's tar that cannot be rebuilt, because what was kept of it is damaged.

    Args:
        path: the file.
        offset: where in its plain content, in bytes.
        expected: what should have been there, and what was.
    """

    def __init__(self, path: bytes, offset: int, expected: str) -> None:
        super().__init__(f"{show(path)}: byte {offset}: {expected}")
        self.path = path
        self.offset = offset
        self.expected = expected


class SplitMissing(StoreError):
    """A layer's tar that cannot be rebuilt, because nothing was kept of it.

    Args:
        path: the file that should be there.
    """

    def __init__(self, path: bytes) -> None:
        super().__init__(
            f"{show(path)}: missing: the layer mounts but cannot be exported; remove its images and"
            " import them again"
        )
        self.path = path


class ObjectMissing(StoreError):
    """An object that an index refers to and the store does not hold.

    Args:
        digest: "sha256:" and 64 hexadecimal digits.
    """

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"object {digest} is missing from the store: layerstore fsck --repair-from SOURCE brings"
            " it back from an archive or registry that has one of its images"
        )
        self.digest = digest


class ObjectCorrupt(StoreError):
    """An object whose content is not what its name says.

    Args:
        digest: its name, as in `ObjectMissing`.
        found: the digest of its content.
    """

    def __init__(self, digest: str, found: str) -> None:
        super().__init__(f"object {digest} is damaged: its content has the digest {found}")
        self.digest = digest
        self.found = found


class ImageUnknown(StoreError):
    """A name that no image in the store answers to."""


class ImageInUse(StoreError):
    """An image that cannot be removed because a mount or a named upper needs it."""


def show(name: bytes | str) -> str:
    """A file's name for a message: on one line and printable, whatever its bytes are."""
    return "".join(
        character if character.isprintable() else _escape(character)
        for character in os.fsdecode(name)
    )


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
