"""Files and directories that appear under their names whole, or not at all.

A file has no name before it is complete (O_TMPFILE) where the filesystem can do that, so that not
even kill -9 leaves anything. A directory is called `.layerstore-` and something meanwhile, and locked;
the next export to the same place removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from layerstore import session
from layerstore.errors import StoreError, show
from layerstore.export.destination import STDOUT

_HIDDEN = re.compile(rb"\.layerstore-[0-9a-f]{32}")
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


@contextlib.contextmanager
def new_file(path: bytes, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write to from front to back.

    Args:
        path: its name; `-`: standard output. What is there and no regular file (a FIFO, /dev/null) is
            written to directly.
        force: replace a file that is there; an empty one is replaced anyway.

    Raises:
        StoreError: there is one, or standard output is a terminal.
    """
    if path == STDOUT:
        yield from _standard_output()
        return
    status = _status(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{show(path)}: is a directory, not a file")
        with open(path, "wb") as file:
            yield file
        return
    if status is not None and status.st_size and not force:
        raise StoreError(
            f"{show(path)}: is there already: --force replaces it, or choose another name"
        )
    with _unnamed(parent_of(path)) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        _give_name(file.fileno(), path, replace=status is not None)
    sync_directory(parent_of(path))


def _standard_output() -> Iterator[BinaryIO]:
    if sys.stdout.isatty():
        raise StoreError("standard output is a terminal: redirect it, or name a path")
    with open(os.dup(sys.stdout.fileno()), "wb") as file:
        yield file


def _status(path: bytes) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def parent_of(path: bytes) -> bytes:
    """The directory that a path is in."""
    return os.path.dirname(os.path.abspath(path))


@contextlib.contextmanager
def _unnamed(directory: bytes) -> Iterator[BinaryIO]:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        fd = os.open(directory, flags | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno not in _NO_TMPFILE or not os.path.isdir(directory):
            raise
        name = _hidden(directory)
        fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666)
        with open(fd, "w+b") as file:
            try:
                yield file
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        return
    with open(fd, "w+b") as file:
        yield file


def _give_name(fd: int, path: bytes, *, replace: bool) -> None:
    # With a directory it is linkat(2), which follows the link to the file without a name.
    link = functools.partial(os.link, b"/proc/self/fd/%d" % fd, src_dir_fd=fd)
    if not replace:
        with contextlib.suppress(FileExistsError):
            link(path)
            return
        raise StoreError(f"{show(path)}: has come into being meanwhile: choose another name")
    name = _hidden(parent_of(path))
    link(name)
    try:
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def new_directory(path: bytes) -> Iterator[bytes]:
    """A directory to fill; gives the path it has meanwhile.

    Args:
        path: its name in the end. An empty directory may be there.

    Raises:
        StoreError: something else is there.
    """
    target = os.path.abspath(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(target).st_mode) or os.listdir(target):
            raise StoreError(
                f"{show(path)}: is there already, and no empty directory: choose another name"
            )
    parent = os.path.dirname(target)
    with hidden_directory(parent) as name:
        yield name
        os.rename(name, target)
    sync_directory(parent)


@contextlib.contextmanager
def hidden_directory(parent: bytes) -> Iterator[bytes]:
    """A directory inside another for the time being; gives its path. What is left of it goes."""
    name = _hidden(parent)
    # Whoever looks for what killed exports left must not see it before its lock.
    with locked(parent):
        _sweep(parent)
        os.mkdir(name)
        try:
            held = _lock(name)
        except BaseException:
            os.rmdir(name)
            raise
    try:
        yield name
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def locked(directory: bytes) -> Iterator[None]:
    """Keep other exports from changing a directory while the context lasts."""
    held = _lock(directory)
    try:
        yield
    finally:
        os.close(held)


def _lock(directory: bytes) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sweep(parent: bytes) -> None:
    for name in os.listdir(parent):
        if _HIDDEN.fullmatch(name):
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                held = session.try_lock(path)
                if held is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(held)


def _hidden(directory: bytes) -> bytes:
    return os.path.join(directory, b".layerstore-" + uuid.uuid4().hex.encode())


def sync_directory(path: bytes) -> None:
    """Bring the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
