"""Digests as OCI writes them: "sha256:" and 64 hexadecimal digits. Pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Protocol

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_ANY = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")


def is_sha256(digest: object) -> bool:
    """Whether `digest` is a well-formed SHA-256 digest."""
    return isinstance(digest, str) and _SHA256.fullmatch(digest) is not None


def is_other(digest: object) -> bool:
    """Whether `digest` is a digest by the OCI grammar, of an algorithm that is not SHA-256."""
    return (
        isinstance(digest, str)
        and _ANY.fullmatch(digest) is not None
        and not digest.startswith("sha256:")
    )


def of_bytes(data: bytes) -> str:
    """The digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def of_stream(stream: _Readable) -> tuple[str, int]:
    """The digest and the length of what is left of a stream."""
    hasher = hashlib.sha256()
    size = 0
    while data := stream.read(1 << 20):
        hasher.update(data)
        size += len(data)
    return "sha256:" + hasher.hexdigest(), size


def of_file(path: bytes) -> str:
    """The digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return of_stream(file)[0]


def hex_of(digest: str) -> str:
    """The hexadecimal part."""
    return digest.partition(":")[2]


def chain_id(diff_ids: Iterable[str]) -> str:
    """The chain id of layers, bottom first (OCI image spec, config.md, "Layer ChainID").

    No layers at all have no chain id in the spec; here it is the digest of nothing.
    """
    chain = ""
    for diff_id in diff_ids:
        chain = of_bytes(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain or of_bytes(b"")
