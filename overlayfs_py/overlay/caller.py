"""What the process behind a request may do, as far as FUSE leaves that to the filesystem.

The kernel checks permissions (default_permissions); what is left are the rules about setuid and setgid bits, which
depend on capabilities and supplementary groups. Any thread.
"""

from __future__ import annotations

from overlayfs_py.overlay.values import Caller

_CAP_FSETID = 4
_CAP_SYS_ADMIN = 21


def _status(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return {}


def keeps_setid(caller: Caller) -> bool:
    """Whether setuid and setgid stay when the caller writes (CAP_FSETID)."""
    return _capable(caller, _CAP_FSETID)


def is_admin(caller: Caller) -> bool:
    """Whether the caller may see trusted xattrs (CAP_SYS_ADMIN)."""
    return _capable(caller, _CAP_SYS_ADMIN)


def _capable(caller: Caller, capability: int) -> bool:
    """Where the process cannot be seen (another pid namespace), being root counts."""
    fields = _status(caller.pid) if caller.pid > 0 else {}
    if "CapEff" in fields:
        return bool(int(fields["CapEff"], 16) >> capability & 1)
    return caller.uid == 0


def in_group(caller: Caller, gid: int) -> bool:
    """Whether `gid` is the caller's group or one of its supplementary groups.

    Where idmapped mounts are allowed, the kernel names the caller's ids only in requests that make something.
    """
    if caller.gid == gid:
        return True
    fields = _status(caller.pid) if caller.pid > 0 else {}
    # "Gid:" has real, effective, saved and filesystem id.
    return str(gid) in [*fields.get("Gid", "").split()[3:], *fields.get("Groups", "").split()]
