"""The answer to a request for several ranges: multipart/byteranges (RFC 9110, 14.6; RFC 2046, 5.1).

No I/O. Taken as it is most strictly meant: every range that was asked for, in that order. A server may
join ranges or send them in another order; then it is asked for one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from layerstore.oci.assembly import Span

CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)")
_BOUNDARY = re.compile(
    r"multipart/byteranges\s*;\s*boundary=(?:\"([^\"]{1,70})\"|([^\s;\"]{1,70}))", re.I
)
_HEAD_MAX = 4 << 10
"""Bytes between two parts; 160 are usual."""


class NotAsAsked(Exception):
    """An answer that is not what was asked for; the text says how."""


def boundary_of(content_type: str) -> str | None:
    """The boundary that a Content-Type header gives; None if it is of one part."""
    found = _BOUNDARY.match(content_type.strip())
    return found and (found[1] or found[2])


def check_range(said: str, span: Span, size: int) -> None:
    """Compare a Content-Range header with what was asked for.

    Args:
        said: the header.
        span: what was asked for.
        size: of the blob in bytes.

    Raises:
        NotAsAsked: it says something else.
    """
    found = CONTENT_RANGE.fullmatch(said.strip())
    if found is None or (int(found[1]), int(found[2]) + 1) != span:
        raise NotAsAsked(f"asked for bytes {span[0]} to {span[1] - 1}, got {said[:80]!r}")
    if found[3] not in ("*", str(size)):
        raise NotAsAsked(f"the blob has {found[3]} bytes there, the manifest says {size}")


class Multipart:
    """Takes such an answer apart.

    Args:
        boundary: of its parts.
        spans: what was asked for, in that order.
        size: of the blob in bytes.
        take: called with the number of a span and the next bytes of it.
    """

    def __init__(
        self, boundary: str, spans: Sequence[Span], size: int, take: Callable[[int, bytes], None]
    ) -> None:
        self._delimiter = b"--" + boundary.encode("latin-1")
        self._spans = spans
        self._size = size
        self._take = take
        self._number = 0
        self._left = 0  # of the current part
        self._head = b""

    @property
    def is_complete(self) -> bool:
        """Whether every part is there to its end."""
        return self._number == len(self._spans) and not self._left

    def feed(self, data: bytes) -> None:
        """The next bytes of the answer.

        Raises:
            NotAsAsked: see the module.
        """
        at = 0
        while at < len(data) and not self.is_complete:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                self._take(self._number - 1, piece)
                continue
            known = len(self._head)
            self._head += data[at : at + _HEAD_MAX]
            end = self._head.find(b"\r\n\r\n", max(0, known - 3))
            if end < 0:
                if len(self._head) >= _HEAD_MAX:
                    raise NotAsAsked("no part where one was expected")
                at += len(self._head) - known
                continue
            at += end + 4 - known
            self._begin(self._head[:end])
            self._head = b""

    def _begin(self, head: bytes) -> None:
        first, *lines = head.lstrip(b"\r\n").split(b"\r\n")
        if first.rstrip(b" \t") != self._delimiter:
            raise NotAsAsked("no part where one was expected")
        headers = {
            name.strip().lower(): value.strip().decode("latin-1")
            for name, _, value in (line.partition(b":") for line in lines)
        }
        span = self._spans[self._number]
        check_range(headers.get(b"content-range", ""), span, self._size)
        self._left = span[1] - span[0]
        self._number += 1
