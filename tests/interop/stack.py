"""A stack of layers that any of the three implementations mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.interop import same
from tests.interop.same import Tree
from tests.model.layers import Layer, write_layer
from tests.model.mounted import escape_option, mount, unmount
from tests.model.mounts import FuseOverlayfs, Ours, await_mount

KERNEL, OURS, FUSE_OVERLAYFS = "kernel", "ours", "fuse-overlayfs"


class Stack:
    """Lower directories (top first), upper and work below `directory`, and a mountpoint."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lowers: list[Path] = []
        self.data: list[Path] = []
        self.upper: Path | None = directory / "upper"
        self.work = directory / "work"
        self.merged = directory / "merged"
        for path in (self.upper, self.work, self.merged):
            path.mkdir(parents=True)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._mounted = False

    def write(self, layers: list[Layer], prefix: bytes = b"trusted.overlay.") -> None:
        """Write lower layers, the top one first."""
        for layer in layers:
            write_layer(layer, os.fsencode(self.lower()), prefix)

    def lower(self) -> Path:
        """One more lower directory, below those there are."""
        path = self.directory / f"lower{len(self.lowers)}"
        path.mkdir()
        self.lowers.append(path)
        return path

    def options(self, more: str) -> bytes:
        lowers = b":".join(escape_option(os.fsencode(path)) for path in self.lowers)
        for path in self.data:
            lowers += b"::" + os.fsencode(path)
        words = [b"lowerdir=" + lowers]
        if self.upper is not None:
            words.append(b"upperdir=" + escape_option(os.fsencode(self.upper)))
            words.append(b"workdir=" + escape_option(os.fsencode(self.work)))
        return b",".join([*words, *([os.fsencode(more)] if more else [])])

    @contextlib.contextmanager
    def mounted(self, by: str, options: str = "") -> Iterator[bytes]:
        """The mountpoint while `by` (KERNEL, OURS, FUSE_OVERLAYFS) has it."""
        target = os.fsencode(self.merged)
        words = self.options(options)
        if by == KERNEL:
            mount(b"overlay", target, b"overlay", 0, words)
        else:
            self._serve(by, words, target)
        self._mounted = True
        try:
            yield target
        finally:
            self.unmount()

    def _serve(self, by: str, words: bytes, target: bytes) -> None:
        command = (Ours if by == OURS else FuseOverlayfs).command
        with (self.directory / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [*command, "-f", "-o", words, target],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            await_mount(target, self._daemon)
        except AssertionError:
            raise AssertionError((self.directory / "log").read_text(errors="replace")) from None

    def seen(self, by: str, options: str = "") -> Tree:
        """Everything `by` shows."""
        with self.mounted(by, options) as root:
            return same.seen(root)

    def unmount(self) -> None:
        if self._mounted:
            unmount(os.fsencode(self.merged))
            self._mounted = False
        if self._daemon is not None:
            assert self._daemon.wait(30) == 0
            self._daemon = None

    def fresh_work(self) -> None:
        """An empty work directory: the index of hard links goes with the old one."""
        shutil.rmtree(self.work)
        self.work.mkdir()
