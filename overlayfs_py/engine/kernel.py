"""Mounts an image with the kernel's own overlayfs: no daemon, and nothing to end but the mount.

What keeps the image in the store is a lease (`layerstore.leases`); what lets `ps`, `umount`, `diff`
and `which` know the mount is a record without a process (`registry`). Order: lease, mount, record;
a crash in between leaves a lease that ends by itself, or a mount that `ps` does not name.

`metacopy=on` is what makes the kernel follow the index to the objects. It also makes it leave files
without data in the upper where only attributes changed, so a named upper is marked: the daemon reads
such files only with `metacopy=on`, too. `index=off`, the kernel's own default: the index of an upper
that a daemon has written names origins that only a daemon finds.
"""

from __future__ import annotations

import errno
import logging
import os

from layerstore.errors import StoreError
from layerstore.index.reader import Index
from layerstore.store import Store
from overlayfs_py import mount_api, mount_flags, mountinfo, preflight, registry
from overlayfs_py.engine import choice, stacking
from overlayfs_py.errors import UserError
from overlayfs_py.options import MountOptions

log = logging.getLogger(__name__)


class KernelRefused(Exception):
    """The kernel does not mount it, and why; nothing is left behind."""


def mount(engine: str, options: MountOptions, mountpoint: bytes) -> bool:
    """Mount an image, if the kernel is to serve it.

    Args:
        engine: kernel or auto.
        options: with an image.
        mountpoint: absolute.

    Returns:
        False: it is to be a daemon; a note in the options says why. Nothing is left behind.

    Raises:
        UserError: it cannot be mounted; nothing is left behind.
    """
    reason = choice.against(options)
    if reason is None:
        try:
            _mount_image(options, mountpoint)
            return True
        except KernelRefused as error:
            reason = str(error)
    if engine == "kernel":
        raise UserError(f"--engine=kernel: {reason}; --engine=fuse may do it")
    options.notes.append(f"engine auto: the daemon serves this mount, not the kernel: {reason}")
    return False


def _mount_image(options: MountOptions, mountpoint: bytes) -> None:
    preflight.check_mountpoint(mountpoint)
    mountpoint = mountinfo.real_path(mountpoint)
    try:
        with Store.open(options.store_root, create=False) as store:
            _mount(store, options, mountpoint)
    except StoreError as error:
        raise UserError(str(error)) from None


def _mount(store: Store, options: MountOptions, mountpoint: bytes) -> None:
    assert options.image is not None
    image = store.ground_of(options.image)
    # Open, it cannot be removed before the lease is there and the mount after it.
    with Index(image.index_path):
        if options.upper_name is not None:
            options.upperdir, options.workdir = store.named_upper(options.upper_name, image)
        hold = preflight.check_layers(options)
        try:
            lease = store.leases.add_mount(image.id, mountpoint, options.upper_name)
            try:
                made = _build(_recipe(options, image.index_path, store.objects_dir), mountpoint)
                try:
                    if options.upper_name is not None:
                        store.mark_metacopies(options.upper_name)
                    _place(made, mountpoint)
                finally:
                    os.close(made)
            except BaseException:
                store.leases.remove(lease.name, force=True)
                raise
        finally:
            hold.close()
    _record(options, mountpoint, lease.name)


def _recipe(options: MountOptions, index: bytes, objects: bytes) -> stacking.Recipe:
    chosen: list[tuple[str, bytes | None]] = [("metacopy", b"on"), ("xino", options.xino.encode())]
    if options.upperdir is None or options.workdir is None:
        chosen.append(("redirect_dir", b"follow"))
    else:
        chosen.append(("redirect_dir", options.redirect_dir.encode()))
        chosen.append(("upperdir", _escaped(options.upperdir)))
        chosen.append(("workdir", _escaped(options.workdir)))
        chosen.append(("index", b"on" if options.index else b"off"))
        if options.volatile:
            chosen.append(("volatile", None))
    chosen += [(name, os.fsencode(value)) for name, value in options.selinux.items()]
    return stacking.Recipe(
        source=os.fsencode(options.fsname),
        index=index,
        objects=objects,
        options=chosen,
        words=options.kernel_flags,
        read_only=options.read_only,
    )


def _escaped(path: bytes) -> bytes:
    """As overlayfs takes upperdir and workdir: with a backslash before one."""
    return path.replace(b"\\", b"\\\\")


def _build(recipe: stacking.Recipe, mountpoint: bytes) -> int:
    try:
        return stacking.build(recipe, mountpoint)
    except OSError as error:
        raise KernelRefused(_reason(error)) from None


def _place(made: int, mountpoint: bytes) -> None:
    try:
        mount_api.place(made, mountpoint)
    except OSError as error:
        name = os.fsdecode(mountpoint)
        raise UserError(f"{name} cannot be mounted on: {error.strerror}") from None


def _reason(error: OSError) -> str:
    what = os.fsdecode(error.filename or "mount")
    if what == "erofs" and error.errno == errno.ENOTBLK:
        return "this kernel mounts EROFS from devices only (Linux 6.12 and later: from files)"
    if error.errno == errno.EBUSY:
        return "the upper or work directory is in use by another mount: unmount that first"
    return f"the kernel refuses the {what} mount: {error.strerror}"


def _record(options: MountOptions, mountpoint: bytes, lease: str) -> None:
    """Apply what comes after the mount, and let the other commands know of it."""
    for word in options.propagation:
        try:
            mount_flags.mount(None, mountpoint, None, mount_flags.PROPAGATION[word])
        except OSError as error:
            options.notes.append(f"mount option {word} has no effect: {error.strerror}")
    entry = mountinfo.top(mountpoint)
    if entry is None:
        options.notes.append("ps and umount will not know this mount: it is not in the mount table")
        return
    record = registry.record_of(options, mountpoint)
    record.pid = 0
    record.engine = "kernel"
    record.lease = lease
    record.metacopy = True
    record.transport = ""
    record.fstype = "overlay"
    record.device = os.fsdecode(entry.device)
    try:
        registry.keep(record)
    except OSError as error:
        options.notes.append(f"ps and umount will not know this mount: {error}")
