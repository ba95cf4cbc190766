"""Where the store is unless somebody says."""

from __future__ import annotations

import os

ROOT_VARIABLE = "LAYERSTORE_ROOT"


def default_root() -> bytes:
    """Where the store is unless somebody says: `LAYERSTORE_ROOT`, /var/lib/layerstore for root,
    `layerstore` in $XDG_DATA_HOME (~/.local/share) for users.

    Who is root in a user namespace only is a user: podman unshare finds the same store.
    """
    named = os.environb.get(ROOT_VARIABLE.encode())
    if named:
        return os.path.abspath(named)
    if os.geteuid() == 0 and in_initial_user_namespace():
        return b"/var/lib/layerstore"
    data = os.environb.get(b"XDG_DATA_HOME") or os.path.expanduser(b"~/.local/share")
    return os.path.join(os.path.abspath(data), b"layerstore")


def in_initial_user_namespace() -> bool:
    """Whether root is root here, who may use trusted.* xattrs."""
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True
