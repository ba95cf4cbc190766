"""What the kernel's overlayfs cannot do, or not on this host."""

from __future__ import annotations

import os

from overlayfs_py.options import MountOptions

ENGINES = ("fuse", "kernel", "auto")

_DAEMONS_OWN = {
    "uidmapping": "uidmapping=",
    "gidmapping": "gidmapping=",
    "squash_to_uid": "squash_to_uid=",
    "squash_to_gid": "squash_to_gid=",
    "static_nlink": "static_nlink",
    "noacl": "noacl",
    "xattr_permissions": "xattr_permissions=",
    "timeout": "timeout=",
    "poll_us": "poll_us=",
    "auto_unmount": "auto_unmount",
    "transport": "transport=",
    "debug": "debug",
    "foreground": "-f",
    "fsync": "fsync=0 (volatile is the kernel's word)",
    "default_permissions": "default_permissions=0",
    "subtype": "subtype=",
}
"""Fields of `MountOptions` that have no meaning without a daemon, and their spelling."""


def against(options: MountOptions) -> str | None:
    """What speaks against the kernel's serving an image, in words; None: nothing known as yet."""
    plain = MountOptions()
    for field, spelling in _DAEMONS_OWN.items():
        if getattr(options, field) != getattr(plain, field):
            return f"the kernel has nothing like {spelling}"
    if options.allow_other is False:
        return "the kernel cannot keep other users out"
    if options.redirect_dir in ("off", "nofollow"):
        return f"redirect_dir={options.redirect_dir} contradicts the redirects of the index"
    if options.userxattr:
        return "userxattr contradicts the index, whose marks are trusted.overlay.*"
    if os.geteuid() != 0 or not _in_initial_user_namespace():
        return "only root may mount EROFS"
    known = _filesystems()
    for fstype in ("erofs", "overlay"):
        if fstype not in known and not _has_module(fstype):
            return f"this kernel has no {fstype}"
    return None


def _in_initial_user_namespace() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _filesystems() -> set[str]:
    with open("/proc/filesystems") as file:
        return {line.split()[-1] for line in file}


def _has_module(name: str) -> bool:
    """Whether the kernel would load it when it is asked for."""
    place = f"/lib/modules/{os.uname().release}/modules.dep"
    try:
        with open(place) as file:
            return any(f"/{name}.ko" in line.partition(":")[0] for line in file)
    except OSError:
        return False
