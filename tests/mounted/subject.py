"""What is under test: a union of one lower and one upper directory, by the kernel or by us.

The kernel's overlayfs is the oracle: a test that fails there is a wrong test, unless it names what
the kernel does otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MNT_DETACH = 1, 32, 2


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    failed = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _unmount(target: str) -> None:
    deadline = time.monotonic() + 5
    while _libc.umount2(target.encode(), 0):
        number = ctypes.get_errno()
        if number != errno.EBUSY or time.monotonic() > deadline:
            _libc.umount2(target.encode(), _MNT_DETACH)
            raise OSError(number, os.strerror(number), target)
        time.sleep(0.01)


@dataclass
class Subject:
    """One mount below `scratch`; `lowers` are top first.

    `limits` are the things it is known to do otherwise, each asserted by a test.
    """

    scratch: Path
    read_only: bool = False
    lowers: list[Path] = field(default_factory=list)
    name: ClassVar[str]
    limits: ClassVar[frozenset[str]]
    environment: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        for directory in ("lower", "upper", "work", "merged"):
            (self.scratch / directory).mkdir()
            (self.scratch / directory).chmod(0o755)
        if not self.lowers:
            self.lowers = [self.scratch / "lower"]

    @property
    def lower(self) -> Path:
        return self.lowers[0]

    @property
    def upper(self) -> Path:
        return self.scratch / "upper"

    @property
    def mountpoint(self) -> Path:
        return self.scratch / "merged"

    def options(self) -> str:
        lowers = ":".join(map(str, self.lowers))
        return f"lowerdir={lowers},upperdir={self.upper},workdir={self.scratch / 'work'}"

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def remount(self) -> None:
        """Unmount and mount again."""
        self.stop()
        self.start()

    def forget(self) -> None:
        """Make the kernel drop the names and inodes of this mount that nobody holds."""
        flags = _MS_REMOUNT | (_MS_RDONLY if self.read_only else 0)
        _mount("none", str(self.mountpoint), "none", flags, "")


class Kernel(Subject):
    name = "kernel"
    # What it does otherwise than a local filesystem. unlinked_lower: a lower object that was
    # removed shows the st_nlink it had, and cannot be changed through a descriptor. idmap: no
    # idmapped mounts of an overlay.
    limits = frozenset({"rename_whiteout", "whiteout_device", "unlinked_lower", "idmap"})

    def start(self) -> None:
        options = self.options() + ",index=on,redirect_dir=on,xino=auto,metacopy=off"
        flags = _MS_RDONLY if self.read_only else 0
        _mount("overlay", str(self.mountpoint), "overlay", flags, options)

    def stop(self) -> None:
        _unmount(str(self.mountpoint))


class Ours(Subject):
    """Served by pyfuse3 in a process of its own."""

    name = "pyfuse3"
    transport = "pyfuse3"
    limits = frozenset({"fallocate", "tmpfile", "seek_data", "inode_flags", "birth", "idmap"})
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = (
            self.options() + (",ro" if self.read_only else "") + f",transport={self.transport}"
        )
        command = [sys.executable, "-m", "tests.mounted.serve", options, str(self.mountpoint)]
        log = (self.scratch / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **self.environment},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"live\n":
            self._process.wait(10)
            self._process.stdout.close()
            raise RuntimeError((self.scratch / "log").read_text())

    def stop(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            _unmount(str(self.mountpoint))
            status = self._process.wait(30)
        except BaseException:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()
        said = (self.scratch / "log").read_text()
        assert status == 0, said
        assert "WARNING" not in said, said
        assert "ERROR" not in said, said


class Device(Ours):
    """Served through /dev/fuse directly."""

    name = "device"
    transport = "device"
    limits = frozenset()


class Plain(Device):
    """The same where nothing was compiled: Python answers everything."""

    name = "plain"
    environment: ClassVar[dict[str, str]] = {"OVERLAYFS_PY_PURE": "1"}


SUBJECTS: dict[str, type[Subject]] = {
    subject.name: subject for subject in (Kernel, Ours, Device, Plain)
}
