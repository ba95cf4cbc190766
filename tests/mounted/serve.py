"""`python -m tests.mounted.serve OPTIONS MOUNTPOINT`: serves a mount, says "live" once it is."""

from __future__ import annotations

import logging
import os
import sys

import trio

from overlayfs_py.ending import Ending
from overlayfs_py.mount import Mount
from overlayfs_py.options import parse_mount_options


def _live() -> None:
    print("live", flush=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    options = parse_mount_options([sys.argv[1]])
    mount = Mount(options, os.fsencode(sys.argv[2]))
    if options.transport == "pyfuse3":
        trio.run(mount.serve_by_pyfuse3, _live)
    else:
        mount.serve_by_device(Ending(), _live)


if __name__ == "__main__":
    main()
