"""`commit`: makes an image of a live mount. Blocks until the image is in the store; main thread.

The mount holds still meanwhile, and goes on when this process ends, however it does. The daemon does none of the
work: the upper directory is read by the store, in this process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlayfs_py import mountinfo, registry, syscalls
from overlayfs_py.errors import UserError
from overlayfs_py.freezing import freeze, thaw
from overlayfs_py.options import PROGRAM
from overlayfs_py.registry import Record

if TYPE_CHECKING:
    from layerstore.store import Image, Store


@dataclass(slots=True, frozen=True)
class Wishes:
    """`base`: the image that the mount is over, None: what it was mounted from. `changes`: instructions as
    `layerstore commit --change` has them. The others are its options too."""

    base: str | None = None
    store_root: str | None = None
    tag: str | None = None
    author: str = ""
    message: str = ""
    changes: Sequence[str] = ()


def commit(path: bytes, wishes: Wishes) -> Image:
    """Make an image of what a mount shows.

    Args:
        path: the mountpoint.

    Raises:
        UserError: it is no mount of ours with an upper directory, or the store refuses; nothing was made.
    """
    record = _record(path)
    from layerstore.commit.committing import Committed
    from layerstore.commit.committing import commit as make
    from layerstore.commit.config import Description, parse_change
    from layerstore.errors import StoreError
    from layerstore.store import Store

    name = os.fsdecode(path)
    assert record.upperdir is not None
    try:
        changes = [parse_change(text) for text in wishes.changes]
        root = record.store_root if wishes.store_root is None else os.fsencode(wishes.store_root)
        with Store.open(root) as store:
            base = wishes.base or _base(name, record, store)
            what = Committed(
                record.upperdir, record.workdir, base, name, record.userxattr, quiet=True
            )
            by = f"{PROGRAM} commit"
            made = Description(time.time_ns(), by, wishes.author, wishes.message, changes)
            with _frozen(path, name):
                return make(store, what, made, wishes.tag)
    except StoreError as error:
        raise UserError(str(error)) from None


def _record(path: bytes) -> Record:
    name = os.fsdecode(path)
    mountpoint = mountinfo.real_path(path)
    entry = mountinfo.top(mountpoint)
    record = None if entry is None else registry.find(mountpoint, os.fsdecode(entry.device))
    if record is None:
        raise UserError(
            f"{name} is not a live mount: '{PROGRAM} ps' lists those that are; an upper directory that is not "
            "mounted is for 'layerstore commit'"
        )
    if record.upperdir is None:
        raise UserError(f"{name} has no upper directory: there is nothing to commit")
    if record.engine == "kernel":
        raise UserError(
            f"{name} is served by the kernel, which cannot hold it still: unmount it and use 'layerstore commit'"
        )
    try:
        reached = registry.identity(record.upperdir) == record.upper_id
    except OSError:
        reached = False
    if not reached:
        upper = os.fsdecode(record.upperdir)
        raise UserError(f"{name}: its upper directory {upper} cannot be reached from here")
    return record


def _base(name: str, record: Record, store: Store) -> str:
    if record.upper_name is not None:
        # An image may have lost its tag to another since; a named upper knows which it was.
        known = store.uppers().get(record.upper_name)
        if known is not None:
            return known
    if record.image is None or record.lowerdirs:
        raise UserError(f"{name} is not over an image: say with --base which image its layers are")
    return record.image


@contextlib.contextmanager
def _frozen(path: bytes, name: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            # What was written through mappings is still in the kernel.
            syscalls.syncfs(fd)
            freeze(fd)
        except OSError as error:
            raise UserError(f"{name} {_why(error)}") from None
        try:
            yield
        finally:
            # If the mount is gone, so is what held it still.
            with contextlib.suppress(OSError):
                thaw(fd)


def _why(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "is being committed by somebody else: try again when that is done"
    if error.errno == errno.ESRCH:
        return (
            "is served in a process namespace that does not show this process: commit it from there"
        )
    if error.errno in (errno.ENOTTY, errno.ENOSYS):
        return "cannot be held still (transport=pyfuse3): unmount it and use 'layerstore commit'"
    if error.errno == errno.EPERM:
        return "can be committed by root and whoever mounted it only"
    return f"cannot be committed: {error.strerror}"
