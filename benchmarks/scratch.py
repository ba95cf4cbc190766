"""Where a run works: one temporary directory, the file systems laid out in it, and its end.

Everything that a run mounts is mounted below its directory, so closing it unmounts all and
removes all, whatever happened. A directory is locked while its run lives; `sweep` clears those
whose run was killed.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import commands
from benchmarks.errors import CannotMeasure, UserError
from benchmarks.results import Base

PREFIX = "overlayfs-bench-"
LOOP_BYTES = 12 << 30  # sparse: a 1 GiB lower, its upper and the plain copy, with room
UNMOUNT_TIMEOUT_S = 10.0
SHARED_MEMORY = Path("/dev/shm")


class Scratch:
    """The directory of one run and the bases in it, each made when first asked for."""

    def __init__(self, parent: Path) -> None:
        """Makes the directory below `parent`. Raises UserError where that is impossible."""
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
            # The directory itself is locked: it is there until the very end of its removal.
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"cannot work in {parent}: {error.strerror}") from None
        if re.search(rb"[:,\\\s]", os.fsencode(self.path)):
            os.close(self._lock)
            os.rmdir(self.path)
            raise UserError(f"cannot work in {parent}: mount options need a plain path")
        self._bases: dict[str, tuple[Base, Path] | CannotMeasure] = {}

    def base(self, name: str) -> tuple[Base, Path]:
        """The base `name` (tmpfs, disk, ext4, xfs or btrfs) and its directory.

        Raises CannotMeasure where this machine cannot have it, each time it is asked for.
        """
        if name not in self._bases:
            try:
                self._bases[name] = self._make_base(name)
            except CannotMeasure as reason:
                self._bases[name] = reason
        made = self._bases[name]
        if isinstance(made, CannotMeasure):
            raise made
        return made

    def bases(self) -> list[Base]:
        """The bases that were made so far."""
        return [made[0] for made in self._bases.values() if not isinstance(made, CannotMeasure)]

    def _make_base(self, name: str) -> tuple[Base, Path]:
        directory = self.path / name
        directory.mkdir()
        if name == "disk":
            kind = filesystem_type(directory)
            return Base(name, kind, f"{kind} that holds {self.path.parent}"), directory
        if os.geteuid() != 0:
            return self._unprivileged_base(name, directory)
        if name == "tmpfs":
            words = ["mount", "-t", "tmpfs", "-o", "mode=755,size=75%", "overlayfs-bench"]
            commands.must(commands.run([*words, directory]))
            return Base(name, "tmpfs", "a tmpfs of its own"), directory
        image = self.path / f"{name}.image"
        with open(image, "wb") as file:
            file.truncate(LOOP_BYTES)
        if shutil.which(f"mkfs.{name}") is None:
            raise CannotMeasure(f"mkfs.{name} is not installed")
        commands.must(commands.run([f"mkfs.{name}", "-q", image]))
        commands.must(commands.run(["mount", "-t", name, "-o", "loop", image, directory]))
        return Base(name, name, f"{name} in a loop file on {filesystem_type(self.path)}"), directory

    def _unprivileged_base(self, name: str, directory: Path) -> tuple[Base, Path]:
        if name != "tmpfs" or not os.access(SHARED_MEMORY, os.W_OK):
            raise CannotMeasure(f"a {name} of its own needs root")
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SHARED_MEMORY))
        directory.rmdir()
        directory.symlink_to(place)
        return Base(name, "tmpfs", "/dev/shm"), place

    def close(self) -> list[str]:
        """Unmounts and removes everything; returns what could not be, one line each."""
        left = clear(self.path)
        os.close(self._lock)
        return left


@contextlib.contextmanager
def working(parent: Path) -> Iterator[Path]:
    """The directory of a `Scratch`, cleared at the end. Raises UserError where it cannot be made."""
    place = Scratch(parent)
    try:
        yield place.path
    finally:
        place.close()


def sweep(parent: Path) -> list[Path]:
    """Clears the directories below `parent` whose run is no more; returns them.

    Only our own private ones: in a /tmp that all may write to, anyone can make one of that name.
    """
    swept = []
    for directory in sorted(parent.glob(PREFIX + "*")):
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(lock)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its run lives
        else:
            clear(directory)
            swept.append(directory)
        finally:
            os.close(lock)
    return swept


def clear(directory: Path) -> list[str]:
    """Unmounts all below `directory`, deepest first, and removes it; returns what stayed."""
    left = []
    for mountpoint in mounts_below(directory):
        try:
            unmount(mountpoint)
        except CannotMeasure as reason:
            left.append(str(reason))
    if not left:
        for path in [*_in_shared_memory(directory), directory]:
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                left.append(f"{path} could not be removed")
    return left


def _in_shared_memory(directory: Path) -> list[Path]:
    """What an unprivileged run has outside its directory: a base in /dev/shm, linked from it."""
    links = [path for path in directory.glob("*") if path.is_symlink()]
    targets = [Path(os.readlink(link)) for link in links]
    return [t for t in targets if t.parent == SHARED_MEMORY and t.name.startswith(PREFIX)]


def mounts_below(directory: Path) -> list[Path]:
    """The mountpoints at or below `directory`, the latest first."""
    found = []
    for mountpoint in _mountpoints():
        with contextlib.suppress(ValueError):
            mountpoint.relative_to(directory)
            found.append(mountpoint)
    return found[::-1]


def _mountpoints() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        field = line.split(b" ")[4]
        plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
        yield Path(os.fsdecode(plain))


def is_mounted(directory: Path) -> bool:
    """Whether something is mounted on `directory` itself."""
    return directory in _mountpoints()


def unmount(mountpoint: Path) -> None:
    """Unmounts with umount(8), or fusermount3 without privilege; lazily if it stays busy.

    Raises CannotMeasure where even that fails.
    """
    privileged = os.geteuid() == 0
    argv = ["umount"] if privileged else ["fusermount3", "-u"]
    end = time.monotonic() + UNMOUNT_TIMEOUT_S
    while True:
        finished = commands.run([*argv, mountpoint], timeout_s=60)
        if finished.status == 0 or not is_mounted(mountpoint):
            return
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    lazily = ["umount", "-l"] if privileged else ["fusermount3", "-u", "-z"]
    commands.must(commands.run([*lazily, mountpoint], timeout_s=60))


def filesystem_type(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/self/mountinfo names it."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kind = "unknown"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == wanted:
            kind = after.split(" ")[0]
    if kind == "unknown":  # btrfs subvolumes have devices of their own
        finished = commands.run(["stat", "-f", "-c", "%T", path])
        kind = finished.output.decode().strip() or kind
    return kind
