"""Data that may be more than memory should hold, on its way through a temporary file: `Spool` in the
order in which it came, `Sorted` in order. One thread per object; the file has no name and goes
with the object.
"""

from __future__ import annotations

import heapq
import io
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

_MEMORY_MAX = 1 << 20
"""Bytes that a spool keeps from the file until they are worth a write."""
RUN_MAX = 1 << 16
"""Records that are sorted at a time: some 6 MB of them."""
_READ_MAX = 1 << 16


class Spool:
    """Bytes that are written first and read afterwards.

    Args:
        directory: where the file is made; None: where `tempfile` does.
    """

    def __init__(self, directory: bytes | None = None) -> None:
        self._directory = directory
        self._file: BinaryIO | None = None
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        """Append data."""
        self._buffer += data
        if len(self._buffer) >= _MEMORY_MAX:
            self._drain()

    def rewound(self) -> BinaryIO:
        """All that was written, as a file at its beginning; it is the spool's own, and there is only
        one."""
        if self._file is None:
            return io.BytesIO(self._buffer)
        self._drain()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give the room back."""
        self._buffer.clear()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drain(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
        self._file.write(self._buffer)
        self._buffer.clear()


class Sorted:
    """Records of one size, read back in the order of their bytes any number of times.

    Args:
        size: of a record in bytes.
        directory: as for `Spool`.
        run_max: records that are kept in memory at once.
    """

    def __init__(self, size: int, directory: bytes | None = None, run_max: int = RUN_MAX) -> None:
        self._size = size
        self._directory = directory
        self._run_max = run_max
        self._recent: list[bytes] = []
        self._runs: list[int] = []  # where each starts in the file
        self._file: BinaryIO | None = None
        self._end = 0

    def __len__(self) -> int:
        return self._end // self._size + len(self._recent)

    def add(self, record: bytes) -> None:
        """Add a record."""
        self._recent.append(record)
        if len(self._recent) >= self._run_max:
            self._keep_run()

    def _keep_run(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                dir=self._directory, buffering=0
            )
        self._recent.sort()
        self._runs.append(self._end)
        data = memoryview(b"".join(self._recent))
        while data:
            written = os.pwrite(self._file.fileno(), data, self._end)
            self._end += written
            data = data[written:]
        self._recent.clear()

    def __iter__(self) -> Iterator[bytes]:
        self._recent.sort()
        if not self._runs:
            return iter(self._recent)
        ends = [*self._runs[1:], self._end]
        runs = [self._run(start, end) for start, end in zip(self._runs, ends, strict=True)]
        return heapq.merge(*runs, self._recent)

    def _run(self, start: int, end: int) -> Iterator[bytes]:
        assert self._file is not None
        size = self._size
        step = max(_READ_MAX // size, 1) * size
        for offset in range(start, end, step):
            data = os.pread(self._file.fileno(), min(step, end - offset), offset)
            for at in range(0, len(data), size):
                yield data[at : at + size]

    def close(self) -> None:
        """Give the room back."""
        self._recent.clear()
        if self._file is not None:
            self._file.close()
