"""What an upper directory asks of whoever mounts it: options and version of the kernel's overlayfs.

Sources: Documentation/filesystems/overlayfs.rst; xattr whiteouts and escaped marks came with Linux
6.7.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Any

from layerstore.marks import USER, is_oci_meta, oci_whiteout_target
from overlayfs_py.inspect.stack import Stack
from overlayfs_py.layers.directory import DirectoryLayer


@dataclass(slots=True)
class Needs:
    """What was found in the tree; see `options` and `obstacles` for what follows from it."""

    user: bool = False
    marked: bool = False
    redirects: int = 0
    metacopies: int = 0
    indexed: int = 0
    xattr_whiteouts: int = 0
    oci_whiteouts: int = 0
    escaped: int = 0
    overridden: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        """Mount options that the kernel's overlayfs needs to show the tree as it is."""
        options: list[str] = []
        if self.user and self.marked:
            options.append("userxattr")
        if self.redirects:
            options.append("redirect_dir=on")
        if self.metacopies:
            options.append("metacopy=on")
        if self.indexed:
            options.append("index=on")
        return options

    @property
    def obstacles(self) -> list[str]:
        """Why some kernel, or every one, cannot show it so."""
        lines: list[str] = []
        if self.user and (self.redirects or self.metacopies):
            lines.append(
                "the kernel refuses redirects and metacopy under userxattr: mount with "
                "overlayfs-py "
                "(trees written with redirect_dir=off,metacopy=off have neither)"
            )
        if self.xattr_whiteouts or self.escaped:
            lines.append("whiteouts as xattrs and escaped marks need Linux 6.7 or later")
        if self.oci_whiteouts:
            lines.append("the kernel shows .wh. files as files: mount with overlayfs-py")
        if self.overridden:
            lines.append(
                "owners and modes are in override_stat xattrs, which the kernel does not know: "
                "mount with "
                "overlayfs-py or fuse-overlayfs"
            )
        return lines

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {"options": self.options, "obstacles": self.obstacles}

    def as_lines(self) -> list[str]:
        """For people; nothing where any kernel mounts the tree with its defaults."""
        lines = [f"kernel options for this upper: {','.join(self.options)}"] if self.options else []
        return lines + self.obstacles


def of_upper(stack: Stack) -> Needs:
    """Read the upper directory of a stack from end to end."""
    layer = stack.sources[0].layer
    assert isinstance(layer, DirectoryLayer)
    needs = Needs(user=layer.names.prefix == USER.prefix)
    if layer.override is not None:
        needs.overridden += 1
    _look(needs, layer, b"")
    pending = [b""]
    while pending:
        directory = pending.pop()
        for row in layer.tree.scan(directory):
            path = directory + b"/" + row.name if directory else row.name
            if oci_whiteout_target(row.name) is not None or is_oci_meta(row.name):
                needs.oci_whiteouts += 1
            elif stat.S_ISDIR(_look(needs, layer, path)):
                pending.append(path)
    return needs


def _look(needs: Needs, layer: DirectoryLayer, path: bytes) -> int:
    place = layer.tree.at(path)
    mode = place.stat().st_mode
    try:
        names = place.listxattr()
    except OSError:
        return mode
    prefix = layer.names.prefix.decode()
    escape = layer.names.escape_prefix.decode()
    marks = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    needs.marked = needs.marked or bool(marks)
    needs.escaped += any(name.startswith(escape) for name in names)
    needs.xattr_whiteouts += "whiteout" in marks and stat.S_ISREG(mode)
    needs.metacopies += "metacopy" in marks
    needs.indexed += "nlink" in marks
    if "redirect" in marks and stat.S_ISDIR(mode):
        needs.redirects += 1
    return mode
