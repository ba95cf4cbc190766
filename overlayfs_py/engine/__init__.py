"""Who serves an image: the daemon (`fuse`), the kernel itself (`kernel`), or whichever can (`auto`).

Both show the same tree from the same store. `choice` says what speaks against the kernel, `kernel`
mounts with it, `stacking` builds such a mount out of sight.
"""

from overlayfs_py.engine.choice import ENGINES
from overlayfs_py.engine.kernel import mount

__all__ = ["ENGINES", "mount"]
