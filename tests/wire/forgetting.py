"""`python -m tests.wire.forgetting DIRECTORY`: churns a mount, lets the kernel forget it all, and
prints how many nodes dispatch still knows before and after.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import trio

from overlayfs_py import mount_flags
from overlayfs_py.wire import attach, libfuse
from overlayfs_py.wire.dispatch import Dispatch
from overlayfs_py.wire.nodes import InodeNumbers
from tests.wire.double import MemoryOverlay


def churn(home: Path) -> None:
    choose = random.Random(5)
    held = []
    for step in range(1500):
        name = home / f"n{choose.randrange(60)}"
        other = home / f"n{choose.randrange(60)}"
        try:
            match choose.randrange(8):
                case 0:
                    name.mkdir()
                case 1:
                    name.write_bytes(b"x")
                case 2:
                    os.unlink(name)
                case 3:
                    os.rename(name, other)
                case 4:
                    os.link(name, other)
                case 5:
                    held.append(os.open(name, os.O_RDONLY))
                case 6:
                    os.listdir(home)
                case 7:
                    os.lstat(home / f"missing{step}")
        except OSError:
            pass
    for fd in held:
        os.close(fd)


def main() -> None:
    mountpoint = Path(sys.argv[1])
    dispatch = Dispatch(cast(Any, MemoryOverlay()), InodeNumbers())
    attached = attach.attach(os.fsencode(mountpoint), attach.Wishes("forgetting", "test"))

    def use() -> None:
        pid = os.fork()
        if pid == 0:
            churn(mountpoint)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        before = dispatch.known
        # A remount drops the names and inodes that nobody holds, of this mount alone.
        mount_flags.mount(None, attached.mountpoint, None, mount_flags.MS_REMOUNT)
        deadline = time.monotonic() + 10
        while dispatch.known > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        print(before, dispatch.known, flush=True)
        mount_flags.umount(attached.mountpoint)

    def live() -> None:
        threading.Thread(target=use).start()

    async def serve() -> None:
        await libfuse.serve(
            dispatch, attached.fd, acl=True, masks_here=attached.masks_here, on_live=live
        )

    trio.run(serve)


if __name__ == "__main__":
    main()
