"""Scratch directories for runs outside of pytest."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from tests.model.mounted import mount, unmount


@contextlib.contextmanager
def scratch_directory(kind: str = "tmpfs") -> Iterator[str]:
    """An empty directory; "tmpfs" mounts one there, "disk" takes the temporary directory's own."""
    path = tempfile.mkdtemp(prefix="overlayfs-py-model-")
    if kind == "tmpfs":
        mount(b"scratch", os.fsencode(path), b"tmpfs", 0, b"mode=755")
    try:
        yield path
    finally:
        if kind == "tmpfs":
            unmount(os.fsencode(path))
        shutil.rmtree(path)
