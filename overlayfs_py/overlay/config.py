"""The part of the mount options that changes what the union means; transport and mount flags are not here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, frozen=True)
class IdRange:
    """`count` ids from `stored` (what the layers hold) are shown to callers as those from `shown`.

    The three numbers of fuse-overlayfs's uidmapping=STORED:SHOWN:COUNT, in its order.
    """

    stored: int
    shown: int
    count: int


@dataclass(slots=True, frozen=True)
class Config:
    """See the kernel's overlayfs.rst for redirect_dir, metacopy, index, xino and volatile, and
    fuse-overlayfs(1) for the others.

    `index` None: on where the upper's filesystem has file handles. `caching`: names of the lower layers may be
    remembered, since nobody else changes them.
    """

    redirect_dir: str = "on"
    metacopy: bool = False
    index: bool | None = None
    xino: str = "auto"
    volatile: bool = False
    fsync: bool = True
    uid_map: tuple[IdRange, ...] = field(default=())
    gid_map: tuple[IdRange, ...] = field(default=())
    squash_uid: int | None = None
    squash_gid: int | None = None
    static_nlink: bool = False
    noacl: bool = False
    xattr_permissions: int = 0
    caching: bool = True

    @property
    def syncs(self) -> bool:
        """Whether data is made durable at all (not volatile, not fsync=0)."""
        return self.fsync and not self.volatile

    @property
    def follows_redirects(self) -> bool:
        """`off` means that none are made; those that are there still hold (the kernel's redirect_always_follow)."""
        return self.redirect_dir != "nofollow"
