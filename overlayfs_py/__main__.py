"""`python -m overlayfs_py` and the console script."""

from __future__ import annotations

import sys

from overlayfs_py.cli import run


def main() -> None:
    """Run the command with the process's arguments, and end the process with its status."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
