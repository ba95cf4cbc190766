"""buildah and podman with storage of their own; as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from image_recipes.programs import Failed

LIMITS = ["--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:1000", "--network=none"]
"""For `podman run` and `build`: what a container inside another container is allowed."""


@contextlib.contextmanager
def storage(place: Path) -> Iterator[list[str]]:
    """Options that keep an engine's storage in a directory of its own, on the kernel's overlayfs."""
    if os.geteuid() != 0:
        raise Failed("buildah and podman images are built as root: sudo tools/images")
    (place / "empty").mkdir()
    store = place / "storage"
    # podman takes no path over 50 characters for its state.
    with tempfile.TemporaryDirectory(prefix="images-") as state:
        try:
            yield [f"--root={store}", f"--runroot={state}", "--storage-driver=overlay"]
        finally:
            # The engines leave this bind mount behind, by design.
            subprocess.run(
                ["umount", "-l", store / "overlay"], check=False, stderr=subprocess.DEVNULL
            )
