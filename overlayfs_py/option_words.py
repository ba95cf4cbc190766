"""Words of mount options that are taken without effect, and those that are refused with the
reason.
"""

from __future__ import annotations

# Said by mount(8), /etc/fstab or systemd to themselves, or tuning of a libfuse loop that is not
# ours.
DROPPED = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner"}
    | {"group", "nogroup", "_netdev", "nofail", "comment", "uhelper", "helper", "loud", "silent"}
    | {"nomand", "noiversion", "clone_fd", "max_idle_threads", "max_threads", "max_write"}
    | {"override_creds"}
)

# Shown in /proc/self/mounts, so mount(8) gives them back to us at a remount.
DROPPED_AT_REMOUNT = frozenset({"user_id", "group_id", "rootmode", "max_read", "blksize"})

REFUSED = {
    "mand": "Linux has had no mandatory locks since 5.15; leave it out",
    "iversion": "FUSE has no inode version; leave it out",
    "plugins": "fuse-overlayfs's plugins are for its own process; import the image into the "
    "layer store instead",
    "nooverride_creds": "layers are always reached with the daemon's credentials; leave it out",
    "blkdev": "a union has no block device; leave it out",
    "blksize": "only block device mounts have it; leave it out",
    "fd": "the transport opens /dev/fuse itself; leave it out",
    "rootmode": "the transport sets it; leave it out",
    "user_id": "the transport sets it; leave it out",
    "group_id": "the transport sets it; leave it out",
    "max_read": "the read size is negotiated with the kernel; leave it out",
    "entry_timeout": "names, attributes and absent names share one limit; say timeout=SECONDS",
    "attr_timeout": "names, attributes and absent names share one limit; say timeout=SECONDS",
    "negative_timeout": "names, attributes and absent names share one limit; say timeout=SECONDS",
    "nfs_filehandles": "a mount's file handles do not outlive its daemon; leave it out",
}
