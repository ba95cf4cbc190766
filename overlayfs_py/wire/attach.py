"""Puts a FUSE mount in its place: by mount(2) where that is allowed, else by fusermount3.

What comes out is a descriptor of /dev/fuse that any transport can serve. Blocking; any thread.
Sources: fs/fuse/inode.c (fuse_fs_parameters), fusermount3(1), libfuse's lib/mount.c for the
protocol over _FUSE_COMMFD.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass, field

from overlayfs_py import mount_flags, mountinfo
from overlayfs_py.errors import UserError

DEVICE = "/dev/fuse"
_MS_POSIXACL = 1 << 16
_SELINUX_FORBIDDEN = '"'


@dataclass(frozen=True)
class Wishes:
    """How the kernel is to treat the mount; words as in `mount_flags`."""

    fsname: str
    subtype: str
    flags: tuple[str, ...] = ()
    read_only: bool = False
    allow_other: bool | None = None
    default_permissions: bool = True
    selinux: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Attached:
    """A mount that waits for its daemon.

    `fd`: /dev/fuse. `device`: `major:minor` of its st_dev, by which it is told from other mounts at
    the same place. `masks_here`: new objects come with the caller's mode and umask apart, so that
    default ACLs can be honoured; fusermount3 cannot ask for that.
    """

    fd: int
    mountpoint: bytes
    device: bytes
    masks_here: bool


def attach(mountpoint: bytes, wishes: Wishes) -> Attached:
    """Mount at `mountpoint`, a directory.

    Raises:
        UserError: there is no such directory, no /dev/fuse, no right to mount, or a flag that the
            kernel refuses.
    """
    mountpoint = os.path.realpath(mountpoint)
    try:
        if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
            raise UserError(f"{os.fsdecode(mountpoint)} is not a directory: nothing mounted")
    except OSError as error:
        hint = ""
        if error.errno == errno.ENOTCONN:
            hint = ": the daemon of a former mount is gone, say umount -l first"
        raise UserError(
            f"mountpoint {os.fsdecode(mountpoint)}: {os.strerror(error.errno or 0)}{hint}"
        ) from None
    privileged = _mount_directly(mountpoint, wishes)
    fd = _mount_by_helper(mountpoint, wishes) if privileged is None else privileged
    try:
        entry = mountinfo.top(mountpoint)
    except BaseException:
        os.close(fd)
        raise
    # None: another mount namespace moved it meanwhile.
    device = b"" if entry is None else entry.device
    return Attached(fd, mountpoint, device, privileged is not None)


def _mount_directly(mountpoint: bytes, wishes: Wishes) -> int | None:
    """The descriptor, or None where this process may not mount."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(
            f"no {DEVICE}: load the fuse module (modprobe fuse), or give the container "
            f"--device {DEVICE}"
        ) from None
    except PermissionError:
        return None
    except OSError as error:
        raise UserError(f"{DEVICE}: {error.strerror}: is the fuse module loaded?") from None
    try:
        _mount(mountpoint, wishes, fd)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EPERM and os.geteuid() != 0:
            return None
        raise UserError(_explain(mountpoint, error)) from None
    return fd


def _mount(mountpoint: bytes, wishes: Wishes, fd: int) -> None:
    data = [f"fd={fd}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
    if wishes.default_permissions:
        data.append("default_permissions")
    # Root serves others: without this not even its own setuid children could use the mount.
    if wishes.allow_other or (wishes.allow_other is None and os.geteuid() == 0):
        data.append("allow_other")
    for name, value in wishes.selinux.items():
        if _SELINUX_FORBIDDEN in value:
            raise UserError(f"{name}={value}: a security context cannot hold a quote")
        data.append(f'{name}="{value}"')
    flags = mount_flags.bits(list(wishes.flags)) | _MS_POSIXACL
    if wishes.read_only:
        flags |= mount_flags.MS_RDONLY
    fstype = f"fuse.{wishes.subtype}" if wishes.subtype else "fuse"
    libc = ctypes.CDLL(None, use_errno=True)
    # _MS_POSIXACL: the kernel then leaves the umask to the daemon (fuse_fill_super: dont_mask),
    # without which a default ACL could not take its place.
    failed = libc.mount(
        os.fsencode(wishes.fsname or fstype),
        mountpoint,
        os.fsencode(fstype),
        ctypes.c_ulong(flags),
        os.fsencode(",".join(data)),
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _explain(mountpoint: bytes, error: OSError) -> str:
    where = os.fsdecode(mountpoint)
    if error.errno == errno.EPERM:
        return (
            f"cannot mount at {where}: CAP_SYS_ADMIN is missing here (in a container: --privileged)"
        )
    if error.errno == errno.EINVAL:
        return f"cannot mount at {where}: the kernel refuses one of the mount options (see dmesg)"
    if error.errno == errno.ENODEV:
        return f"cannot mount at {where}: this kernel has no FUSE (modprobe fuse)"
    return f"cannot mount at {where}: {error.strerror}"


def _helper() -> str:
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise UserError("no fusermount3, which users without privilege need: install fuse3")
    return helper


def _mount_by_helper(mountpoint: bytes, wishes: Wishes) -> int:
    helper = _helper()
    if wishes.selinux:
        raise UserError(
            f"{next(iter(wishes.selinux))}= needs the right to mount: fusermount3 does not "
            "pass it on"
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = [helper, "-o", _helper_options(wishes), "--", os.fsdecode(mountpoint)]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        done = subprocess.run(
            command,
            env=environment,
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            check=False,
        )
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if done.returncode or not descriptors:
        said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        raise UserError(
            f"cannot mount at {os.fsdecode(mountpoint)}: {said or 'fusermount3 failed'}"
        )
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _helper_options(wishes: Wishes) -> str:
    options = [*wishes.flags]
    if wishes.read_only:
        options.append("ro")
    if wishes.default_permissions:
        options.append("default_permissions")
    if wishes.allow_other:
        options.append("allow_other")
    for name, value in (("fsname", wishes.fsname), ("subtype", wishes.subtype)):
        if value:
            escaped = value.replace("\\", "\\\\").replace(",", "\\,")
            options.append(f"{name}={escaped}")
    return ",".join(options)
