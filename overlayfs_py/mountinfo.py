"""/proc/PID/mountinfo, decoded; see proc(5). Knows nothing of unions. Any thread."""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple


class MountEntry(NamedTuple):
    """One line: `options` are the mount's own, `super_options` the filesystem's, both unsplit."""

    mount_id: int
    parent_id: int
    device: bytes
    root: bytes
    mountpoint: bytes
    options: bytes
    fstype: bytes
    source: bytes
    super_options: bytes


_OCTAL = re.compile(rb"\\([0-7]{3})")


def decode(field: bytes) -> bytes:
    """Take the octal escapes (space, tab, newline, backslash) out of a field."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)


def entries(pid: int | None = None) -> list[MountEntry]:
    """All mounts of a process's namespace in mount order; the last of a mountpoint covers the
    others.

    Raises:
        OSError: the process is gone or not ours to look at.
    """
    with open(f"/proc/{pid or 'self'}/mountinfo", "rb") as file:
        return [_parse(line) for line in file]


def _parse(line: bytes) -> MountEntry:
    mount, _, filesystem = line.rstrip(b"\n").partition(b" - ")
    mount_id, parent_id, device, root, mountpoint, options = mount.split(b" ")[:6]
    fstype, source, super_options = filesystem.split(b" ", 2)
    return MountEntry(
        int(mount_id),
        int(parent_id),
        device,
        decode(root),
        decode(mountpoint),
        options,
        decode(fstype),
        decode(source),
        super_options,
    )


def top(mountpoint: bytes, pid: int | None = None) -> MountEntry | None:
    """The mount that is seen at exactly this path (absolute, without symlinks), if one is.

    Raises:
        OSError: as `entries`.
    """
    found = None
    for entry in entries(pid):
        if entry.mountpoint == mountpoint:
            found = entry
    return found


def is_anywhere(device: bytes) -> bool:
    """Whether a filesystem (major:minor) is in the mount namespace of any process that can be looked
    at.
    """
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(entry.device == device for entry in entries(int(pid))):
                return True
    return False


def real_path(path: bytes) -> bytes:
    """`realpath` that does not touch the last component, which may be a mount whose daemon is
    dead.
    """
    path = os.path.join(os.getcwdb(), path)
    stripped = path.rstrip(b"/")
    parent, name = os.path.split(stripped)
    if not name or name in (b".", b".."):
        return os.path.realpath(path)
    resolved = os.path.join(os.path.realpath(parent), name)
    try:
        return os.path.realpath(resolved) if os.path.islink(resolved) else resolved
    except OSError:
        return resolved
