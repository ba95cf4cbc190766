"""An image's mount, built by the kernel out of sight: the index as EROFS, over it overlayfs with the
objects as data-only lower layer.

The EROFS never has a place in anybody's mount table; it lives and ends with the overlay. Kernels
since 6.13 take a layer as a descriptor. For an older one a child builds the same in a mount
namespace of its own, where the EROFS has a place until the child ends: whoever is killed at any
moment leaves nothing mounted.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from overlayfs_py import mount_api, mount_flags
from overlayfs_py.mount_api import Filesystem


@dataclass(slots=True, frozen=True)
class Recipe:
    """`options`: name and value of options of the kernel's overlayfs, value None: a flag. `words`:
    settled words of `mount_flags`."""

    source: bytes
    index: bytes
    objects: bytes
    options: list[tuple[str, bytes | None]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    read_only: bool = False


def build(recipe: Recipe, mountpoint: bytes) -> int:
    """The mount; `mount_api.place` gives it its place.

    Args:
        recipe: what to mount.
        mountpoint: a directory that the older way covers in a namespace of its own.

    Returns:
        its descriptor.

    Raises:
        OSError: the kernel refuses, in its own words.
    """
    erofs = _erofs(recipe)
    try:
        return _overlay(recipe, lambda overlay: overlay.descriptor("lowerdir+", erofs))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(erofs)
    return build_apart(recipe, mountpoint)


def build_apart(recipe: Recipe, mountpoint: bytes) -> int:
    """`build`, the way for kernels before 6.13."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _send_from_apart(recipe, mountpoint, theirs)
        theirs.close()
        message, fds, _, _ = socket.recv_fds(ours, 4096, 1)
        os.waitpid(child, 0)
    if fds:
        return fds[0]
    number, _, text = os.fsdecode(message).partition(" ")
    raise OSError(int(number or errno.EIO), text or "the child that mounts has died", "overlay")


def _send_from_apart(recipe: Recipe, mountpoint: bytes, peer: socket.socket) -> None:
    """Never returns: the forked process ends here."""
    try:
        mount_api.leave_mount_namespace()
        flags = mount_flags.MS_PRIVATE | mount_flags.MS_REC
        mount_flags.mount(None, b"/", None, flags)
        mount_api.place(_erofs(recipe), mountpoint)
        # Reached anew: a descriptor from before shows what is below the mount.
        made = _overlay(recipe, lambda overlay: overlay.string("lowerdir+", mountpoint))
        socket.send_fds(peer, [b"mount"], [made])
    except OSError as error:
        peer.send(os.fsencode(f"{error.errno} {error.strerror}"))
    finally:
        os._exit(0)


def _erofs(recipe: Recipe) -> int:
    with Filesystem("erofs") as erofs:
        erofs.string("source", recipe.index)
        erofs.flag("ro")
        return erofs.mount(["ro"])


def _overlay(recipe: Recipe, add_lower: Callable[[Filesystem], None]) -> int:
    with Filesystem("overlay") as overlay:
        overlay.string("source", recipe.source)
        add_lower(overlay)
        overlay.string("datadir+", recipe.objects)
        for name, value in recipe.options:
            if value is None:
                overlay.flag(name)
            else:
                overlay.string(name, value)
        for word in recipe.words:
            if word in ("sync", "dirsync", "lazytime"):
                overlay.flag(word)
        if recipe.read_only:
            overlay.flag("ro")
        own = [word for word in recipe.words if word in mount_api.ATTRIBUTES]
        return overlay.mount([*own, *(["ro"] if recipe.read_only else [])])
