"""Which mounts are live: one small file per mount, and locks that the kernel drops with their
holder.

A mount that the kernel serves (`engine.kernel`) has no process to hold a lock: its record counts
for as long as the mount is in the mount table it was made in.

Owns the runtime directory and the records in it, not the mounts themselves. A record is locked
(flock(2)) by its daemon for as long as it lives, so one that can be locked is stale, whatever
became of the process or its number. Functions block for a few file operations; any thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from overlayfs_py import mountinfo
from overlayfs_py.options import MountOptions

ENVIRONMENT = "OVERLAYFS_PY_RUNTIME_DIR"
_SYSTEM_DIRECTORY = "/run/overlayfs-py"
_KERNELS = ".kernel"


@dataclass(slots=True)
class Record:
    """What others may know of a live mount.

    `device` is st_dev as major:minor, empty until the mount is live. `upper_id` and `work_id` are
    st_dev:st_ino of the held directories. `started` is seconds since the epoch. `namespace` names
    the daemon's mount namespace. `engine` is fuse or kernel; a mount of the kernel's has `pid` 0,
    `boot` names the run of the kernel that has it, `lease` what keeps its image in the store.
    """

    mountpoint: bytes
    pid: int
    started: float
    namespace: str
    device: str = ""
    source: str = ""
    fstype: str = ""
    lowerdirs: list[bytes] = field(default_factory=list)
    data_lowerdirs: list[bytes] = field(default_factory=list)
    upperdir: bytes | None = None
    workdir: bytes | None = None
    upper_id: str = ""
    work_id: str = ""
    image: str | None = None
    store_root: bytes | None = None
    upper_name: str | None = None
    userxattr: bool | None = None
    redirect_dir: str = "on"
    metacopy: bool = False
    xattr_permissions: int = 0
    read_only: bool = False
    transport: str = ""
    engine: str = "fuse"
    boot: str = ""
    lease: str = ""

    @property
    def holder(self) -> str:
        """Who serves the mount, for a message."""
        return f"process {self.pid}" if self.pid else "the kernel"

    def encode(self) -> bytes:
        """As JSON; paths that are not UTF-8 travel as lone surrogates."""
        return json.dumps(asdict(self), default=os.fsdecode).encode()

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Raises ValueError, KeyError or TypeError on anything that `encode` did not write."""
        values: dict[str, Any] = json.loads(data)
        for name in ("mountpoint", "upperdir", "workdir", "store_root"):
            if values[name] is not None:
                values[name] = os.fsencode(values[name])
        for name in ("lowerdirs", "data_lowerdirs"):
            values[name] = [os.fsencode(path) for path in values[name]]
        return cls(**values)


def record_of(options: MountOptions, mountpoint: bytes) -> Record:
    """The record of a mount that this process is about to serve."""
    return Record(
        mountpoint=mountpoint,
        pid=os.getpid(),
        started=time.time(),
        namespace=_namespace(),
        source=options.fsname,
        fstype=f"fuse.{options.subtype}",
        lowerdirs=options.lowerdirs,
        data_lowerdirs=options.data_lowerdirs,
        upperdir=options.upperdir,
        workdir=options.workdir,
        upper_id=identity(options.upperdir) if options.upperdir else "",
        work_id=identity(options.workdir) if options.workdir else "",
        image=options.image,
        store_root=options.store_root,
        upper_name=options.upper_name,
        userxattr=options.userxattr,
        redirect_dir=options.redirect_dir,
        metacopy=options.metacopy,
        xattr_permissions=options.xattr_permissions,
        read_only=options.read_only,
        transport=options.transport,
    )


def identity(path: bytes | int) -> str:
    """st_dev:st_ino of a directory.

    Raises:
        OSError: as stat(2).
    """
    status = os.stat(path)
    return f"{status.st_dev}:{status.st_ino}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/mnt")
    except OSError:
        return ""


def directories() -> list[str]:
    """Where records may be, the place for our own first."""
    if override := os.environ.get(ENVIRONMENT):
        return [override]
    places: list[str] = []
    uid = os.geteuid()
    if uid == 0:
        places.append(_SYSTEM_DIRECTORY)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.append(os.path.join(runtime, "overlayfs-py"))
    elif uid != 0:
        places.append(f"/run/user/{uid}/overlayfs-py")
    places.append(f"/tmp/overlayfs-py-{uid}")
    return places


def _usable_directory() -> str | None:
    for place in directories():
        with contextlib.suppress(OSError):
            os.mkdir(place, 0o700)
        with contextlib.suppress(OSError):
            status = os.lstat(place)
            # In /tmp somebody else may have been there first.
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if ours and os.access(place, os.W_OK):
                return place
    return None


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Nobody else registers meanwhile, as far as the same runtime directory is used."""
    place = _usable_directory()
    if place is None:
        yield
        return
    fd = os.open(os.path.join(place, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Registration:
    """A record in the runtime directory, held locked until `close` or the end of the process."""

    def __init__(self, record: Record) -> None:
        """Write the record.

        Raises:
            OSError: no runtime directory can be written.
        """
        place = _usable_directory()
        if place is None:
            raise PermissionError(13, f"none of {', '.join(directories())} can be written")
        self.record = record
        self._path = os.path.join(place, f"{os.urandom(8).hex()}.json")
        self._fd = -1
        self._write()

    def update(self, **changes: object) -> None:
        """Change fields of the record, atomically for readers."""
        for name, value in changes.items():
            setattr(self.record, name, value)
        self._write()

    def _write(self) -> None:
        temporary = self._path + ".new"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, self.record.encode())
        os.rename(temporary, self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Take the record away."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def keep(record: Record) -> None:
    """Write the record of a mount that the kernel serves; it goes with the mount.

    Raises:
        OSError: no runtime directory can be written.
    """
    place = _usable_directory()
    if place is None:
        raise PermissionError(13, f"none of {', '.join(directories())} can be written")
    record.boot = _boot()
    path = os.path.join(place, f"{os.urandom(8).hex()}{_KERNELS}")
    with open(path + ".new", "xb") as file:
        file.write(record.encode())
    os.rename(path + ".new", path)


def live() -> list[Record]:
    """The records of mounts whose daemon lives, oldest first; stale ones are swept on the way."""
    records: list[Record] = []
    for place in directories():
        records.extend(_live_in(place))
    return sorted(records, key=lambda record: record.started)


def _live_in(place: str) -> Iterator[Record]:
    try:
        names = os.listdir(place)
    except OSError:
        return
    for name in names:
        if name.endswith((".json", ".json.new")):
            # An update may put a new file in the place of the one that was just opened: look again.
            record = _read(place, name) or _read(place, name)
            if record is not None:
                yield record
        elif name.endswith(_KERNELS):
            record = _read_kernels(os.path.join(place, name))
            if record is not None:
                yield record


def _read_kernels(path: str) -> Record | None:
    try:
        with open(path, "rb") as file:
            record = Record.decode(file.read())
        if record.boot == _boot() and _is_mounted(record):
            return record
        os.unlink(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _is_mounted(record: Record) -> bool:
    """Whether a mount of the kernel's is still in the mount namespace it was made in.

    Raises:
        OSError: that cannot be looked into.
    """
    pid = None
    if record.namespace != _namespace():
        pid = _process_in(record.namespace)
        if pid is None:
            return False
    device, source = record.device.encode(), os.fsencode(record.source)
    return any(
        entry.device == device and entry.fstype == b"overlay" and entry.source == source
        for entry in mountinfo.entries(pid)
    )


def _process_in(namespace: str) -> int | None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/mnt") == namespace:
                return int(pid)
    return None


def _boot() -> str:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def _read(place: str, name: str) -> Record | None:
    path = os.path.join(place, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if _sweep(fd, path) or name.endswith(".new"):
            return None
        return Record.decode(os.read(fd, 1 << 24))
    except (ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(fd)


def _sweep(fd: int, path: str) -> bool:
    """Remove a record that nobody holds; True where it is gone."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        # An update puts a new locked file in this place between our open and our lock.
        if os.path.samestat(os.stat(path), os.fstat(fd)) and _old_enough(fd, path):
            os.unlink(path)
    return True


def _old_enough(fd: int, path: str) -> bool:
    # A `.new` file is unlocked for the instant between its creation and its lock.
    return not path.endswith(".new") or time.time() - os.fstat(fd).st_mtime > 5


def find(mountpoint: bytes, device: str = "") -> Record | None:
    """The live mount on this path (absolute, no symlinks), the youngest where several are stacked.

    With `device` (major:minor) given, only the mount that has it.
    """
    found = None
    for record in live():
        if record.mountpoint == mountpoint and device in ("", record.device):
            found = record
    return found
