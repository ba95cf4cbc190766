"""How each implementation is mounted."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from typing import Any, ClassVar

from layerstore.store import Store
from tests.model import observe
from tests.model.layers import Layer
from tests.model.mounted import MS_RDONLY, Mounted, escape_option, mount, unmount


def await_mount(mountpoint: bytes, daemon: subprocess.Popen[Any]) -> None:
    """Return once something is mounted at `mountpoint`; AssertionError if its daemon ends first."""
    parent = os.stat(os.path.dirname(mountpoint)).st_dev
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if os.stat(mountpoint).st_dev != parent:
            return
        assert daemon.poll() is None, f"the daemon ended with {daemon.returncode}"
        time.sleep(0.005)
    raise AssertionError(f"nothing was mounted at {mountpoint!r}")


class Kernel(Mounted):
    """The kernel's overlayfs."""

    name = "kernel"
    dialect = observe.Dialect(
        directory_nlink=False,
        removed_nlink=False,
        removed_copy_up=False,
        linked_d_ino=False,
        held_listing=False,
    )
    kernel_options = b"redirect_dir=on,index=on,xino=auto,metacopy=off"

    def start(self) -> None:
        data = self.directories() + b"," + self.kernel_options
        # A mount namespace that another test made may hold a copy of the mount that just ended, and
        # with it the upper directory, for as long as it lives.
        deadline = time.monotonic() + 300
        while True:
            try:
                mount(b"overlay", self.merged, b"overlay", 0, data)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


class Served(Mounted):
    """Mounted by a command that serves it in the foreground; its output is kept beside."""

    command: ClassVar[tuple[str, ...]]
    options = b""
    daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = self.directories() + (b"," + self.options if self.options else b"")
        self.serve("-f", "-o", options, self.merged)

    def serve(self, *arguments: str | bytes) -> None:
        """Start the daemon, and wait for the mount."""
        self.log = os.path.join(self.scratch, b"log")
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=b"/",
            )
        try:
            await_mount(self.merged, self.daemon)
        except BaseException:
            self.daemon.kill()
            self.daemon.wait()
            raise AssertionError(self.said()) from None

    def said(self) -> str:
        with open(self.log, errors="replace") as log:
            return log.read()

    def stop(self) -> None:
        assert self.daemon is not None
        try:
            unmount(self.merged)
            status = self.daemon.wait(90)
        except BaseException:
            self.daemon.kill()
            self.daemon.wait()
            raise
        assert status == 0, f"the daemon ended with {status}: {self.said()}"


class FuseOverlayfs(Served):
    """Debian's fuse-overlayfs, for comparison; it fails much of this."""

    name = "fuse-overlayfs"
    dialect = observe.Dialect(stable_ino=False)
    command = ("fuse-overlayfs",)


# The reply to a release that the end of the mount overtook.
_QUIET = re.compile(r" (DEBUG|INFO) |fuse_release\(\): fuse_reply_\* failed with No such file")


class Ours(Served):
    """overlayfs-py, as a user mounts it. Any warning is a failure."""

    name = "mounted"
    command = (sys.executable, "-m", "overlayfs_py")

    def stop(self) -> None:
        super().stop()
        loud = [line for line in self.said().splitlines() if not _QUIET.search(line)]
        assert not loud, "\n".join(loud)


class Device(Ours):
    """The same through /dev/fuse directly."""

    name = "device"
    options = b"transport=device"


class Imaged(Device):
    """overlayfs-py over an image of the lower layers, which the kernel merges for it."""

    name = "imaged"
    # An image that is made anew numbers its inodes anew, and knows of no names that were hidden in what it was made of.
    dialect = observe.Dialect(stable_ino=False, hidden_links=False)

    def __init__(self, scratch: bytes, stack: list[Layer], umask: int) -> None:
        self._images = 0
        self._imaged: list[bytes] = []
        super().__init__(scratch, stack, umask)

    def start(self) -> None:
        if self.lowers != self._imaged:
            self._make_image()
        self.serve(
            *("mount", "--root", os.path.join(self.scratch, b"store"), "--upper", self.upper),
            *("--work", self.work, "-f", f"model{self._images}", self.merged),
        )

    def _make_image(self) -> None:
        """Have an image of what the lower layers show."""
        whole = self._new_directory(b"whole")
        # The kernel takes no single lower directory.
        lowers = b":".join(map(escape_option, [*self.lowers, self._new_directory(b"nothing")]))
        mount(b"overlay", whole, b"overlay", MS_RDONLY, b"redirect_dir=follow,lowerdir=" + lowers)
        self._images += 1
        try:
            with Store.open(os.path.join(self.scratch, b"store"), create=True) as store:
                store.import_image(f"dir:{os.fsdecode(whole)}", f"model{self._images}")
        finally:
            unmount(whole)
        self._imaged = list(self.lowers)


class Alternating(Ours, Kernel):
    """Kernel and overlayfs-py in turn on the same directories: each mounts what the other wrote."""

    name = "alternating"
    # What the weaker of the two shows; st_ino need not agree between them.
    dialect = observe.Dialect(
        directory_nlink=False,
        removed_nlink=False,
        removed_copy_up=False,
        linked_d_ino=False,
        held_listing=False,
        stable_ino=False,
    )

    def __init__(self, scratch: bytes, stack: list[Layer], umask: int) -> None:
        self._kernel_next = os.path.basename(scratch)[-1] in b"aeimquy0246"
        super().__init__(scratch, stack, umask)

    def start(self) -> None:
        self._kernel_now = self._kernel_next
        self._kernel_next = not self._kernel_now
        if self._kernel_now:
            Kernel.start(self)
        else:
            Ours.start(self)

    def stop(self) -> None:
        if self._kernel_now:
            Kernel.stop(self)
        else:
            Ours.stop(self)
