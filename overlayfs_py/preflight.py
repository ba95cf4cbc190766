"""What must be true on disk before a mount is tried; every failure is one line that says what to
do.

The rules for layers are the kernel's (ovl_get_layers and ovl_check_overlapping_layers in
fs/overlayfs/super.c). Takes the locks on upper and work. Blocks; run before the event loop starts.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from overlayfs_py import holds, mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.options import MountOptions


def check(options: MountOptions, mountpoint: bytes) -> holds.Hold:
    """Refuse what cannot be mounted, and lock upper and work.

    Args:
        mountpoint: absolute.

    Raises:
        UserError: the reason.
    """
    check_mountpoint(mountpoint)
    check_host(options)
    return check_layers(options)


def check_layers(options: MountOptions) -> holds.Hold:
    """The part of `check` that is about the layers, whoever is to serve them.

    Raises:
        UserError: the reason.
    """
    layers = _layers(options)
    for kind, path in layers:
        _check_directory(kind, path)
    _check_upper(options)
    _check_overlaps(layers)
    _check_in_use(options, layers)
    hold = holds.Hold()
    try:
        for kind, path in layers:
            if kind in ("upperdir", "workdir"):
                hold.take(kind, path)
    except BaseException:
        hold.close()
        raise
    return hold


def check_mountpoint(mountpoint: bytes) -> None:
    """Raises UserError unless a mount can be put there."""
    name = os.fsdecode(mountpoint)
    try:
        status = os.stat(mountpoint)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise UserError(
                f"mountpoint {name} has a mount whose daemon is dead: run 'overlayfs-py umount "
                f"{name}' first"
            ) from None
        if error.errno == errno.ENOENT:
            raise UserError(
                f"mountpoint {name} does not exist: create the directory first"
            ) from None
        raise UserError(f"mountpoint {name}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"mountpoint {name} is not a directory")
    path = mountinfo.real_path(mountpoint)
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    entry = mountinfo.top(path)
    # A record without a device is of a mount that is just coming up.
    record = registry.find(path, device) or registry.find(path)
    ours = record is not None and record.device in ("", device)
    if ours or (entry is not None and entry.fstype == b"fuse.overlayfs-py"):
        process = f" ({record.holder})" if record is not None else ""
        raise UserError(
            f"mountpoint {name} is in use by an overlayfs-py mount{process}: run 'overlayfs-py "
            f"umount {name}' "
            "first, or mount elsewhere"
        )


def check_host(options: MountOptions) -> None:
    """Raises UserError unless this kernel and this user can mount with FUSE, and as the options want it."""
    _check_fuse()
    _check_selinux(options)


def _check_fuse() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(
                "/dev/fuse may not be opened by this user: ask for mode 666, as distributions "
                "set it"
            ) from None
        raise UserError(
            f"/dev/fuse cannot be opened ({error.strerror}): load the module with 'modprobe "
            f"fuse', or pass the "
            "device into the container"
        ) from None
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UserError("fusermount3 is missing: install the package fuse3, or mount as root")


def _check_selinux(options: MountOptions) -> None:
    if not options.selinux:
        return
    with open("/proc/filesystems") as file:
        if "selinuxfs" in file.read():
            return
    name = next(iter(options.selinux))
    raise UserError(
        f"mount option {name} cannot be honoured: this kernel runs without SELinux; leave it out"
    )


def _layers(options: MountOptions) -> list[tuple[str, bytes]]:
    layers: list[tuple[str, bytes]] = []
    if options.upperdir is not None:
        layers.append(("upperdir", options.upperdir))
    if options.workdir is not None:
        layers.append(("workdir", options.workdir))
    layers.extend(("lowerdir", path) for path in options.lowerdirs)
    layers.extend(("lowerdir", path) for path in options.data_lowerdirs)
    return layers


def _check_directory(kind: str, path: bytes) -> None:
    name = os.fsdecode(path)
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise UserError(
                f"{kind} {name} does not exist: create it, or correct the path"
            ) from None
        raise UserError(f"{kind} {name}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{kind} {name} is not a directory")
    if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{kind} {name} may not be read by this user")


def _check_upper(options: MountOptions) -> None:
    upper, work = options.upperdir, options.workdir
    if upper is None or work is None:
        return
    name = os.fsdecode(upper)
    if os.statvfs(upper).f_flag & os.ST_RDONLY:
        raise UserError(
            f"upperdir {name} is on a read-only filesystem: leave upperdir= and workdir= out for "
            f"a read-only mount"
        )
    if os.stat(upper).st_dev != os.stat(work).st_dev:
        raise UserError(
            f"workdir {os.fsdecode(work)} is on another filesystem than upperdir {name}: "
            "put both on the same one, files are moved between them"
        )
    if _mount_id(upper) != _mount_id(work):
        raise UserError(
            f"workdir {os.fsdecode(work)} is under another mount than upperdir {name}: "
            "reach both through the same mount, files are moved between them"
        )


def _mount_id(path: bytes) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            for line in file:
                if line.startswith("mnt_id:"):
                    return int(line.split()[1])
    finally:
        os.close(fd)
    return 0


def _check_overlaps(layers: list[tuple[str, bytes]]) -> None:
    """No layer may be another, and none but upper and work may lie in another."""
    roots: dict[str, tuple[str, bytes]] = {}
    for kind, path in layers:
        identity = registry.identity(path)
        if identity in roots:
            other_kind, other = roots[identity]
            raise UserError(
                f"{kind} {os.fsdecode(path)} is the same directory as {other_kind} "
                f"{os.fsdecode(other)}: "
                "each layer must be a directory of its own"
            )
        roots[identity] = (kind, path)
    above = _Above(roots)
    for kind, path in layers:
        found = above.nearest(path)
        # The kernel allows upper and work inside a lower (since Linux 5.12): an overlay of / needs
        # it.
        if found is not None and (kind == "lowerdir" or found[0] != "lowerdir"):
            raise UserError(
                f"{kind} {os.fsdecode(path)} lies inside {found[0]} {os.fsdecode(found[1])}: "
                "layers must be separate trees"
            )


class _Above:
    """Which of some directories lies above a path; remembers what it has seen, layers being
    neighbours.
    """

    def __init__(self, roots: dict[str, tuple[str, bytes]]) -> None:
        self._roots = roots
        self._seen: dict[bytes, tuple[str, bytes] | None] = {}

    def nearest(self, path: bytes) -> tuple[str, bytes] | None:
        """The first of the directories strictly above `path`."""
        parent = os.path.dirname(os.path.realpath(path))
        return self._at(parent)

    def _at(self, directory: bytes) -> tuple[str, bytes] | None:
        if directory not in self._seen:
            found = self._roots.get(registry.identity(directory))
            if found is None and directory != b"/":
                found = self._at(os.path.dirname(directory))
            self._seen[directory] = found
        return self._seen[directory]


def _check_in_use(options: MountOptions, layers: list[tuple[str, bytes]]) -> None:
    """Layers inside another live mount's upper or work: refused for upper and work, and under index=on."""
    held: dict[str, tuple[str, bytes]] = {}
    records: dict[str, registry.Record] = {}
    for record in registry.live():
        for identity in (record.upper_id, record.work_id):
            if identity:
                records[identity] = record
                held[identity] = (record.holder, record.mountpoint)
    for mountpoint, identity in holds.kernel_overlays():
        held[identity] = ("the kernel", mountpoint)
    above = _Above({identity: (identity, b"") for identity in held})
    for kind, path in layers:
        found = above.nearest(path)
        identity = found[0] if found is not None else ""
        if found is None and kind == "lowerdir":
            identity = registry.identity(path)
        if identity not in held:
            continue
        # Asked only now: it reads the mount table of the other daemon.
        if identity in records and not holds.still_mounted(records[identity]):
            continue
        who, mountpoint = held[identity]
        what = (
            f"{kind} {os.fsdecode(path)} is or lies in the upper or work directory of the mount on "
            f"{os.fsdecode(mountpoint)} ({who})"
        )
        if kind == "lowerdir" and not options.index:
            # The kernel warns as well, and for the same reason: runtimes do it and take care themselves.
            options.notes.append(f"{what}: what changes there has no defined effect here")
        else:
            raise UserError(f"{what}: unmount that first, or use another directory")
