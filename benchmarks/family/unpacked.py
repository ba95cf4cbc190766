"""Unpacks an image's layers into a directory each, as the kernel's overlayfs wants them below it.

This is what today's stores keep. Written with tar(1) and the OCI spec (layer.md), without our own code.
"""

import os
import stat
from pathlib import Path

from benchmarks import commands
from benchmarks.errors import CannotMeasure
from benchmarks.family.archives import layer_blobs

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


def unpack(layout: Path, tag: str, directory: Path) -> list[str]:
    """Unpacks every layer of an image below `directory`; returns their names, top first.

    Raises CannotMeasure without root, whom owners and whiteouts need.
    """
    if os.geteuid() != 0:
        raise CannotMeasure("unpacking layers as they are needs root")
    names = []
    for number, blob in enumerate(layer_blobs(layout, tag)):
        layer = directory / str(number)
        layer.mkdir()
        words = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpzf", str(blob)]
        commands.must(commands.run([*words, "-C", str(layer)]))
        mark(layer)
        names.append(layer.name)
    return names[::-1]


def mark(layer: Path) -> None:
    """Turns the whiteouts of a layer's tar into the kernel's."""
    for root, _, names in os.walk(layer):
        for name in names:
            if not name.startswith(WHITEOUT):
                continue
            path = Path(root, name)
            path.unlink()
            if name == OPAQUE:
                os.setxattr(root, "trusted.overlay.opaque", b"y")
            else:
                os.mknod(path.with_name(name.removeprefix(WHITEOUT)), stat.S_IFCHR, 0)
