"""Where tests write: one directory a run, below TMPDIR, under a name that nothing else uses.

A run holds a lock on its directory for as long as it lives. A directory whose lock is free was left
behind by a run that was killed: `sweep` takes the mounts below it away and then the directory. It
touches nothing outside such directories.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "overlayfs-py-test-"
_LOCK = "lock"


def create() -> tuple[Path, int]:
    """Make this run's directory.

    Returns:
        The directory, readable to every user since some tests act as one; and the descriptor whose
        lock says that the run lives. It is closed with the process at the latest.
    """
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    directory.chmod(0o755)
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


def sweep(parent: Path | None = None) -> list[Path]:
    """Remove what killed runs left behind.

    Args:
        parent: where to look; default: the directory for temporary files.

    Returns:
        The directories that were removed.
    """
    removed = []
    for directory in sorted((parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        if directory.is_symlink() or directory.lstat().st_uid != os.geteuid():
            continue
        if _abandoned(directory):
            remove(directory)
            removed.append(directory)
    return removed


def remove(directory: Path) -> None:
    """Detach every mount below a directory, then delete it."""
    for mountpoint in mounts_below(directory):
        subprocess.run(["umount", "-l", mountpoint], check=False, stderr=subprocess.DEVNULL)
    if left := mounts_below(directory):
        # Deleting now would delete through the mount.
        raise OSError(f"{left[0]} is still mounted: umount -l {left[0]}")
    shutil.rmtree(directory, onerror=_delete_anyway)


def mounts_below(directory: Path) -> list[str]:
    """The mountpoints at and below a directory, the one mounted last first."""
    top = os.fsencode(directory.resolve())
    found = [
        point
        for point in _mountpoints()
        if point == top or point.startswith(top.rstrip(b"/") + b"/")
    ]
    return [os.fsdecode(point) for point in reversed(found)]


def _mountpoints() -> Iterator[bytes]:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        escaped = line.split(b" ")[4]
        yield re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), escaped)


def _abandoned(directory: Path) -> bool:
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Killed, or not yet there, in the instant between the directory and its lock.
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _delete_anyway(function: object, path: str, _error: object) -> None:
    """Directories without permission bits, and files that are immutable or append-only."""
    subprocess.run(["chattr", "-ia", path], check=False, stderr=subprocess.DEVNULL)
    os.chmod(os.path.dirname(path), 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)
