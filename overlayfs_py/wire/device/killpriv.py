"""What a SETATTR of nothing means under killpriv v2. One per mount; the thread that reads requests.

It is the order to clear setuid, setgid and security.capability: the kernel sends it when somebody without CAP_FSETID
writes (__remove_privs() in fs/inode.c), and for a chown(2) to the same owner, whoever does that. But it also comes
when root writes to a file with a capability: notify_change() removes the capability by itself and is then left with
ATTR_FORCE alone; setuid is to stay.

The two differ in what came before: for a write the kernel asks twice whether there is a capability before it removes
it (file_remove_privs() and notify_change()), for a chown once. Where that was not seen the bits are cleared, which is
the safe side.
"""

from __future__ import annotations

from overlayfs_py.overlay.caller import keeps_setid
from overlayfs_py.overlay.values import Caller

CAPABILITY = b"security.capability"


class KillOrders:
    """Args: agreed: whether killpriv v2 is; without it the kernel works out the new mode and sends it."""

    def __init__(self, agreed: bool) -> None:
        self._agreed = agreed
        self._key = (0, 0)
        self._asked = 0
        self._removed = False

    def asked(self, node: int, caller: Caller) -> None:
        """GETXATTR of the capability, for its size alone as the kernel does it."""
        key = node, caller.pid
        if key != self._key or self._removed:
            self._key, self._asked, self._removed = key, 0, False
        self._asked += 1

    def removed(self, node: int, caller: Caller) -> None:
        """REMOVEXATTR of the capability."""
        self._removed = (node, caller.pid) == self._key

    def clears(self, node: int, caller: Caller) -> bool:
        """Whether a SETATTR of nothing, which comes now, is the order."""
        if not self._agreed:
            return False
        for_write = self._removed and self._asked > 1 and (node, caller.pid) == self._key
        self._key, self._asked, self._removed = (0, 0), 0, False
        return not (for_write and keeps_setid(caller))
