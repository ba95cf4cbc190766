"""Lower layers as data: made at random, written to disk with the overlay's marks, merged into a
model.

The merge is written from the rules of Documentation/filesystems/overlayfs.rst alone; no code is
shared with the product.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from tests.model import acl, generate
from tests.model.tree import CAPABILITY, Inode, Times, Tree

Layer = dict[bytes, "LayerEntry"]
"""Paths below the layer's root, parents before children."""

WHITEOUT_FORMS = ("device", "xattr", "name")
"""A 0/0 character device; a file with `overlay.whiteout` below a directory marked
`overlay.opaque=x`; a `.wh.` file."""


@dataclass(frozen=True, slots=True, repr=False)
class LayerEntry:
    """One name of a layer. `mode` 0 is a whiteout; `linked_to` the path of an earlier entry that
    is the same file."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    target: bytes = b""
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    opaque: bool = False
    whiteout: str = "device"
    linked_to: bytes | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def __repr__(self) -> str:
        default = LayerEntry(mode=0)
        said = [f"mode={self.mode:#o}"]
        for each in fields(self)[1:]:
            value = getattr(self, each.name)
            if value != getattr(default, each.name):
                said.append(f"{each.name}={value!r}")
        return f"LayerEntry({', '.join(said)})"


def random_stack(
    chance: random.Random, count: int, names: tuple[bytes, ...], whiteouts: tuple[str, ...]
) -> list[Layer]:
    """`count` layers, the top one first, made of `names`; `whiteouts` are the forms that may
    occur."""
    return [_random_layer(chance, names, chance.choice(whiteouts)) for _ in range(count)]


def drop_sockets(stack: list[Layer]) -> None:
    """Leave sockets out of all layers."""
    for layer in stack:
        for path in [path for path, entry in layer.items() if stat.S_ISSOCK(entry.mode)]:
            del layer[path]


def _random_layer(chance: random.Random, names: tuple[bytes, ...], whiteout: str) -> Layer:
    layer: Layer = {}
    directories = [b""]
    files: list[bytes] = []
    for _ in range(chance.randint(2, 12)):
        parent = chance.choice(directories)
        name = chance.choice(names)
        path = parent + b"/" + name if parent else name
        if path in layer:
            continue
        kind = chance.choices(
            ["file", "dir", "symlink", "special", "whiteout", "link"], [30, 40, 8, 6, 12, 14]
        )[0]
        if kind == "link":
            if not files:
                continue
            source = chance.choice(files)
            layer[path] = replace(layer[source], linked_to=layer[source].linked_to or source)
            continue
        form = whiteout
        if (parent and layer[parent].opaque) or len(name) > 250:
            form = "device"
        layer[path] = entry = _random_entry(chance, kind, names, form)
        if entry.is_directory and path.count(b"/") < 3:
            directories.append(path)
        elif entry.mode and not entry.is_directory:
            files.append(path)
    return layer


def _random_entry(
    chance: random.Random, kind: str, names: tuple[bytes, ...], whiteout: str
) -> LayerEntry:
    base = LayerEntry(
        mode=0,
        uid=chance.choice(generate.IDS),
        gid=chance.choice(generate.IDS),
        mtime_ns=generate.random_time(chance),
    )
    if kind == "whiteout":
        return replace(base, whiteout=whiteout)
    if kind == "symlink":
        return replace(
            base, mode=stat.S_IFLNK | 0o777, target=generate.random_target(chance, names)
        )
    mode = chance.choice(generate.MODES)
    xattrs = {}
    if chance.random() < 0.3:
        xattrs[chance.choice([b"user.one", b"trusted.two"])] = generate.random_value(chance)
    if kind == "dir":
        if chance.random() < 0.15:
            xattrs[acl.DEFAULT] = generate.random_acl(chance)
        opaque = chance.random() < 0.15
        return replace(base, mode=stat.S_IFDIR | mode, xattrs=xattrs, opaque=opaque)
    if kind == "special":
        xattrs = {name: value for name, value in xattrs.items() if name.startswith(b"trusted.")}
        mode |= chance.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
        rdev = os.makedev(9, 1) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
        return replace(base, mode=mode, rdev=rdev, xattrs=xattrs)
    if chance.random() < 0.2:
        xattrs[CAPABILITY] = generate.CAPABILITY_VALUE
    content = generate.random_content(chance)
    return replace(base, mode=stat.S_IFREG | mode, content=content, xattrs=xattrs)


def write_layer(layer: Layer, directory: bytes, prefix: bytes = b"trusted.overlay.") -> None:
    """Write `layer` below the existing `directory`; `prefix` is that of the overlay's marks."""
    for path, entry in layer.items():
        if entry.mode == 0:
            _write_whiteout(directory, path, entry.whiteout, prefix)
            continue
        full = os.path.join(directory, path)
        if entry.linked_to is not None:
            os.link(os.path.join(directory, entry.linked_to), full, follow_symlinks=False)
            continue
        _write_inode(full, entry)
    # Xattrs last: a default ACL would pass to what is made below it.
    for path, entry in reversed(layer.items()):
        full = os.path.join(directory, path)
        if entry.mode and entry.linked_to is None:
            for name, value in entry.xattrs.items():
                os.setxattr(full, name, value, follow_symlinks=False)
            if entry.opaque:
                os.setxattr(full, prefix + b"opaque", b"y")
            os.utime(full, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _write_whiteout(directory: bytes, path: bytes, form: str, prefix: bytes) -> None:
    full = os.path.join(directory, path)
    parent, name = os.path.split(full)
    if form == "device":
        os.mknod(full, stat.S_IFCHR, 0)
    elif form == "name":
        os.mknod(os.path.join(parent, b".wh." + name), stat.S_IFREG | 0o644)
    else:
        os.mknod(full, stat.S_IFREG | 0o644)
        os.setxattr(full, prefix + b"whiteout", b"")
        with contextlib.suppress(FileExistsError):  # opaque already: nothing below it shows
            os.setxattr(parent, prefix + b"opaque", b"x", os.XATTR_CREATE)


def _write_inode(full: bytes, entry: LayerEntry) -> None:
    if entry.is_directory:
        os.mkdir(full)
    elif stat.S_ISLNK(entry.mode):
        os.symlink(entry.target, full)
    else:
        os.mknod(full, entry.mode, entry.rdev)
    if entry.content:
        with open(full, "wb") as file:
            _write_sparsely(file.fileno(), entry.content)
    os.chown(full, entry.uid, entry.gid, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(full, stat.S_IMODE(entry.mode))


def _write_sparsely(fd: int, content: bytes) -> None:
    for offset in range(0, len(content), 4096):
        block = content[offset : offset + 4096]
        if block.strip(b"\0"):
            os.pwrite(fd, block, offset)
    os.ftruncate(fd, len(content))


Place = tuple[int, bytes]
"""A path in the layer of that number."""


def merge(stack: list[Layer], tree: Tree) -> None:
    """Fill the empty `tree` with what the stack shows, the top layer first."""
    inodes: dict[Place, Inode] = {}
    shown: Counter[Place] = Counter()

    def fill(directory: Inode, places: list[Place]) -> None:
        for name, found in _children(stack, places):
            at, child = found[0]
            entry = stack[at][child]
            key = (at, entry.linked_to or child)
            if key not in inodes:
                inodes[key] = _inode_of(entry, tree)
            inode = directory.children[name] = inodes[key]
            shown[key] += 1
            inode.links += 1
            if inode.is_directory:
                inode.parent = directory
                fill(inode, found)

    fill(tree.root, [(at, b"") for at in range(len(stack))])
    for (at, origin), inode in inodes.items():
        names = sum(origin in (path, e.linked_to) for path, e in stack[at].items() if e.mode)
        inode.hidden_links = 0 if inode.is_directory else names - shown[at, origin]
        inode.was_linked = names > 1


def _children(stack: list[Layer], places: list[Place]) -> Iterator[tuple[bytes, list[Place]]]:
    """The names of a directory made up of `places` (top first), each with the places it is made
    up of."""
    names: set[bytes] = set()
    for at, path in places:
        prefix = path + b"/" if path else b""
        below = (p[len(prefix) :] for p in stack[at] if p.startswith(prefix))
        names.update(name for name in below if b"/" not in name)
    for name in sorted(names):
        found: list[Place] = []
        for at, path in places:
            child = path + b"/" + name if path else name
            entry = stack[at].get(child)
            if entry is None:
                continue
            if entry.mode == 0 or (found and not entry.is_directory):
                break
            found.append((at, child))
            if not entry.is_directory or entry.opaque:
                break
        if found:
            yield name, found


def drop_stray_whiteouts(stack: list[Layer], as_the_kernel: bool) -> None:
    """Take away whiteouts that hide nothing and whose meaning is not clear.

    An xattr whiteout in the last directory of a merge is a plain file (overlayfs.rst: it counts in
    a merge directory), so that form goes. `as_the_kernel`: all whiteouts in directories that are
    not merged go too, since the kernel lists their names but cannot find them.
    """

    def visit(places: list[Place]) -> None:
        at, path = places[-1]
        merged = len(places) > 1 or not path
        for child, entry in list(stack[at].items()):
            plain = entry.whiteout == "xattr" or (as_the_kernel and not merged)
            if entry.mode == 0 and _parent(child) == path and plain:
                del stack[at][child]
        for _, found in _children(stack, places):
            if stack[found[0][0]][found[0][1]].is_directory:
                visit(found)

    visit([(at, b"") for at in range(len(stack))])


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _inode_of(entry: LayerEntry, tree: Tree) -> Inode:
    inode = tree.new_inode(entry.mode, entry.uid, entry.gid, entry.rdev)
    inode.mtime = inode.atime = Times.exactly(entry.mtime_ns)
    inode.content = bytearray(entry.content)
    inode.target = entry.target
    inode.xattrs = dict(entry.xattrs)
    if acl.ACCESS in inode.xattrs:
        inode.mode = acl.mode_of(acl.decode(inode.xattrs[acl.ACCESS]), inode.mode)
    return inode
