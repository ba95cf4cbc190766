"""Named uppers: upper directories that the store keeps, each on one image.

    ROOT/uppers/NAME/upper, work    the directories of the mount
    ROOT/uppers/NAME/metacopy       the kernel has mounted it: it may have files without data

Blocking; one thread per store.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from layerstore import names, session
from layerstore.errors import StoreError, show
from layerstore.index.reader import Index
from layerstore.leases import Leases
from layerstore.marks import TRUSTED
from layerstore.refs import Refs, short_id

_METACOPY = b"metacopy"


class Ground(NamedTuple):
    """What an upper or a mount is on: an image's id, its name for messages, and the path of its
    index."""

    id: str
    name: str
    index_path: bytes


class Uppers:
    """The named uppers of a store; `Store` has the verbs.

    Args:
        root: of the store.
        refs: its database.
        leases: its leases.
    """

    def __init__(self, root: bytes, refs: Refs, leases: Leases) -> None:
        self._root = root
        self._refs = refs
        self._leases = leases

    def directory(self, name: str) -> bytes:
        """Where it is, or would be.

        Raises:
            StoreError: the name cannot be one.
        """
        return os.path.join(self._root, b"uppers", names.check_upper_name(name).encode())

    def get(self, name: str, ground: Ground) -> tuple[bytes, bytes]:
        """See `Store.named_upper`."""
        directory = self.directory(name)
        with self._refs.transaction():
            known = self._refs.uppers().get(name)
            if known is not None and known != ground.id:
                raise StoreError(
                    f"the named upper {name} is on image {short_id(known)}, not {ground.name}"
                    f" ({short_id(ground.id)}): choose another name, or remove it"
                    f" (layerstore rm --upper {name})"
                )
            if not os.path.exists(directory):
                self._make(directory, ground.index_path)
            if known is None:
                self._refs.add_upper(name, ground.id)
        return os.path.join(directory, b"upper"), os.path.join(directory, b"work")

    def _make(self, directory: bytes, index_path: bytes) -> None:
        with session.Session(self._root) as making:
            made = os.path.join(making.directory, b"upper")
            os.mkdir(made, 0o700)
            os.mkdir(os.path.join(made, b"upper"), 0o755)
            os.mkdir(os.path.join(made, b"work"), 0o700)
            with Index(index_path) as index:
                _copy_attributes(index, os.path.join(made, b"upper"))
            os.rename(made, directory)

    def mark_metacopies(self, name: str) -> None:
        """See `Store.mark_metacopies`."""
        path = os.path.join(self.directory(name), _METACOPY)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def has_metacopies(self, name: str) -> bool:
        """See `Store.has_metacopies`."""
        return os.path.exists(os.path.join(self.directory(name), _METACOPY))

    def remove(self, name: str) -> None:
        """See `Store.remove_upper`."""
        directory = self.directory(name)
        with contextlib.ExitStack() as stack, self._refs.transaction():
            if name not in self._refs.uppers():
                raise StoreError(f"there is no named upper {name} in {show(self._root)}")
            mountpoint = self._leases.mount_of_upper(name)
            if mountpoint is not None:
                raise StoreError(
                    f"the named upper {name} is mounted by the kernel on {show(mountpoint)}:"
                    " unmount it first"
                )
            if os.path.exists(directory):
                # A mount holds a lock on both for as long as it lives.
                for part in filter(os.path.exists, (directory + b"/upper", directory + b"/work")):
                    held = session.try_lock(part)
                    if held is None:
                        raise StoreError(f"the named upper {name} is mounted: unmount it first")
                    stack.callback(os.close, held)
                trash = stack.enter_context(session.Session(self._root)).directory
                os.rename(directory, os.path.join(trash, b"upper"))
            self._refs.remove_upper(name)


def _copy_attributes(index: Index, path: bytes) -> None:
    """Give a directory the attributes of an image's root, as far as this process may."""
    status = index.stat(index.root_nid)
    with contextlib.suppress(OSError):
        os.chown(path, status.uid, status.gid)
    os.chmod(path, stat.S_IMODE(status.mode))
    for name, value in index.xattrs(index.root_nid).items():
        if TRUSTED.is_private(name):
            continue
        with contextlib.suppress(OSError):
            os.setxattr(path, TRUSTED.unescape(name), value)
    with contextlib.suppress(OSError, OverflowError):
        os.utime(path, ns=(status.mtime_ns, status.mtime_ns))
