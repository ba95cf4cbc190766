"""Whether two mounts show the same tree, and a tree in which every mark of the overlay occurs."""

from __future__ import annotations

import os
import stat
from collections import defaultdict

from tests.model import acl, observe
from tests.model.generate import CAPABILITY_VALUE
from tests.model.layers import Layer, LayerEntry
from tests.model.mounted import renameat2
from tests.model.observe import Seen
from tests.model.tree import CAPABILITY, RENAME_EXCHANGE

Tree = dict[bytes, Seen]

NAMED_ACL = acl.encode(
    [
        (acl.USER_OBJ, 7, acl.NO_ID),
        (acl.USER, 5, 1000),
        (acl.GROUP_OBJ, 5, acl.NO_ID),
        (acl.MASK, 7, acl.NO_ID),
        (acl.OTHER, 4, acl.NO_ID),
    ]
)

IDENTITY_MARKS = (b"trusted.overlay.origin", b"trusted.overlay.nlink")
OPTIONAL_MARKS = (b"trusted.overlay.uuid",)


def of_upper(directory: bytes) -> Tree:
    """An upper directory as two implementations should both leave it.

    Left out: the value of marks that hold file handles (they are read by the one that shows the
    same numbers and links), and the link count of whiteouts (the kernel makes all of them one).
    """
    tree = seen(directory)
    for path, row in tree.items():
        marks = {
            name: b"" if name in IDENTITY_MARKS else value
            for name, value in row.xattrs.items()
            if name not in OPTIONAL_MARKS
        }
        tree[path] = row._replace(xattrs=marks, mtime_ns=0)
        if stat.S_ISCHR(row.mode) and row.rdev == 0:
            tree[path] = tree[path]._replace(mode=0, ino=-len(path), nlink=1)
    return tree


def differences(one: Tree, other: Tree, *, nlink: bool = True) -> list[str]:
    """A line for everything but numbers of inodes and link counts of directories."""
    problems = [f"{path!r} is in one only" for path in one.keys() ^ other.keys()]
    for path in sorted(one.keys() & other.keys()):
        a, b = (_comparable(tree[path], nlink) for tree in (one, other))
        problems += [
            f"{path!r}: {field} is {x!r:.80}, other {y!r:.80}"
            for field, x, y in zip(Seen._fields, a, b, strict=True)
            if x != y
        ]
    for name, tree in (("one", one), ("other", other)):
        for path, row in tree.items():
            for child, ino, _ in row.listing:
                below = path + b"/" + child if path else child
                if below in tree and tree[below].ino not in (ino, -len(below)):
                    problems.append(f"{name}: d_ino of {below!r} is not its st_ino")
    if _links(one) != _links(other):
        problems.append(f"hard links: {_links(one)} and {_links(other)}")
    return problems


def _comparable(row: Seen, nlink: bool) -> Seen:
    names = sorted(name for name, *_ in row.listing)
    directory = stat.S_ISDIR(row.mode)
    return row._replace(
        ino=0,
        nlink=row.nlink if nlink and not directory else 0,
        size=0 if directory else row.size,
        listing=[(name, 0, None) for name in names],
    )


def _links(tree: Tree) -> set[frozenset[bytes]]:
    names = defaultdict(set)
    for path, row in tree.items():
        if row.mode and not stat.S_ISDIR(row.mode):
            names[row.ino].add(path)
    return {frozenset(paths) for paths in names.values() if len(paths) > 1}


def _entry(mode: int, content: bytes = b"", **named: object) -> LayerEntry:
    return LayerEntry(mode=mode, content=content, mtime_ns=1_234_567_890_123_456_789, **named)  # type: ignore[arg-type]


def stack() -> list[Layer]:
    """Three lower layers with every type of file and every way to hide one."""
    file, directory = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
    bottom: Layer = {}
    for name in (b"kept", b"merged", b"moved", b"swapped", b"emptied", b"opaque", b"shadowed"):
        bottom[name] = _entry(directory, uid=1, gid=2)
        for child in (b"a", b"b", b"deep"):
            bottom[name + b"/" + child] = (
                _entry(directory) if child == b"deep" else _entry(file, name + child)
            )
        bottom[name + b"/deep/leaf"] = _entry(file, b"leaf of " + name)
    bottom[b"link one"] = _entry(file, b"linked", xattrs={b"user.x": b"1"})
    bottom[b"link two"] = _entry(file, b"linked", xattrs={b"user.x": b"1"}, linked_to=b"link one")
    bottom[b"fifo"] = _entry(stat.S_IFIFO | 0o600)
    bottom[b"socket"] = _entry(stat.S_IFSOCK | 0o600)
    bottom[b"device"] = _entry(stat.S_IFBLK | 0o600, rdev=os.makedev(9, 9))
    bottom[b"symlink"] = _entry(stat.S_IFLNK | 0o777, target=b"merged/a")
    bottom[b"set-id"] = _entry(file | stat.S_ISUID, b"x", xattrs={CAPABILITY: CAPABILITY_VALUE})
    bottom[b"sparse"] = _entry(file, b"\0" * 300_000 + b"end")
    middle: Layer = {
        b"merged": _entry(directory, uid=5),
        b"merged/b": LayerEntry(mode=0),
        b"merged/c": _entry(file, b"c"),
        b"opaque": _entry(directory, opaque=True),
        b"opaque/new": _entry(file, b"new"),
        b"shadowed": _entry(file, b"a file over a directory"),
    }
    top: Layer = {
        b"merged": _entry(directory, xattrs={acl.DEFAULT: NAMED_ACL}),
        b"merged/deep": _entry(directory),
        b"merged/deep/more": _entry(file, b"more", xattrs={acl.ACCESS: NAMED_ACL}),
    }
    return [top, middle, bottom]


def change(root: bytes, *, all_of_it: bool = True) -> None:
    """Every kind of change.

    Not `all_of_it`: without what fuse-overlayfs has no marks for (renamed lower directories,
    escaped xattrs) and without changes of special files, in which it fails.
    """

    def at(path: bytes) -> bytes:
        return root + b"/" + path

    with open(at(b"merged/a"), "ab") as file:
        file.write(b" and more")
    os.chmod(at(b"set-id"), 0o4711)
    os.unlink(at(b"kept/a"))
    os.mkdir(at(b"kept/a"))
    os.unlink(at(b"emptied/a"))
    os.unlink(at(b"emptied/b"))
    os.unlink(at(b"emptied/deep/leaf"))
    os.rmdir(at(b"emptied/deep"))
    os.rmdir(at(b"emptied"))
    os.mkdir(at(b"emptied"))
    os.mknod(at(b"emptied/again"), stat.S_IFREG | 0o600)
    os.setxattr(at(b"link one"), b"user.x", b"2")
    os.link(at(b"link two"), at(b"kept/link three"))
    os.rename(at(b"symlink"), at(b"kept/symlink"))
    os.truncate(at(b"sparse"), 400_000)
    os.mkdir(at(b"fresh"))
    os.symlink(b"x" * 4000, at(b"fresh/long"))
    os.mknod(at(b"fresh/\xff"), stat.S_IFIFO | 0o600)
    os.setxattr(at(b"fresh"), acl.DEFAULT, NAMED_ACL)
    os.mkdir(at(b"fresh/inherits"))
    if all_of_it:
        os.unlink(at(b"socket"))
        os.chown(at(b"fifo"), 7, 8)
        os.utime(at(b"device"), ns=(1, 987_654_321_123_456_789))
        os.setxattr(at(b"fresh"), b"trusted.overlay.opaque", b"y")
        os.rename(at(b"moved"), at(b"kept/moved"))
        os.rename(at(b"kept/moved/deep"), at(b"deep"))
        renameat2(at(b"swapped"), at(b"opaque"), RENAME_EXCHANGE)
        os.mknod(at(b"opaque/added"), stat.S_IFREG | 0o600)
        os.unlink(at(b"deep/leaf"))


def seen(root: bytes) -> Tree:
    return observe.of_directory(root)
