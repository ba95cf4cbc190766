"""Trees for the tests of the index: a strategy, and a plain form in which trees are compared."""

from __future__ import annotations

import os
import stat
from typing import Any

from hypothesis import strategies as st

from layerstore.errors import IndexCorrupt
from layerstore.index.reader import Index, Inline, Object, Sparse
from layerstore.index.tree import Node

Plain = dict[str, Any]

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"usr", b"\xff\xfe", b" ", b"..a", b".wh.x", b"n" * 255, b"-\n"]),
    st.binary(min_size=1, max_size=12).filter(lambda n: b"/" not in n and b"\0" not in n),
).filter(lambda n: n not in (b".", b".."))
TIMES = st.integers(-(2**40), 2**40).map(lambda s: s * 1_000_000_000 + 123_456_789)
IDS = st.integers(0, 2**32 - 1)
XATTR_NAMES = st.one_of(
    st.sampled_from(
        [
            b"user.a",
            b"trusted.overlay.opaque",
            b"trusted.overlay.overlay.opaque",
            b"security.capability",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ]
    ),
    st.binary(min_size=1, max_size=40).filter(lambda n: b"\0" not in n).map(lambda n: b"user." + n),
)
XATTRS = st.dictionaries(XATTR_NAMES, st.binary(max_size=300), max_size=4)
PATHS = (
    st.binary(min_size=32, max_size=32)
    .map(lambda d: d.hex().encode())
    .map(lambda h: h[:2] + b"/" + h[2:])
)
DEVICES = st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))


@st.composite
def leaves(draw: st.DrawFn) -> Node:
    """One file that is no directory."""
    kind = draw(
        st.sampled_from(
            [stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
        )
    )
    node = Node(kind | draw(st.integers(0, 0o7777)))
    decorate(draw, node)
    if kind == stat.S_IFREG:
        choice = draw(st.integers(0, 2))
        if choice == 0:
            data = draw(st.binary(max_size=100)) * draw(st.sampled_from([1, 1, 41, 100]))
            node.set_content(Inline(data), len(data))
        else:
            size = draw(st.one_of(st.integers(0, 10**6), st.integers(0, 2**50)))
            node.set_content(Object(draw(PATHS)) if choice == 1 else Sparse(size), size)
    elif kind == stat.S_IFLNK:
        target = draw(st.binary(min_size=1, max_size=30).filter(lambda t: b"\0" not in t))
        node.target = (target * draw(st.sampled_from([1, 1, 200])))[:4095]
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        node.rdev = os.makedev(*draw(DEVICES))
    return node


def decorate(draw: st.DrawFn, node: Node) -> None:
    """Owner, time and xattrs."""
    node.uid, node.gid = draw(IDS), draw(IDS)
    node.mtime_ns = draw(TIMES)
    node.xattrs = draw(XATTRS)


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> Node:
    """A directory with what is below it, hard links included."""
    root = Node(stat.S_IFDIR | draw(st.integers(0, 0o7777)))
    decorate(draw, root)
    _fill(draw, root, depth, [])
    return root


def _fill(draw: st.DrawFn, parent: Node, depth: int, linkable: list[Node]) -> None:
    assert parent.children is not None
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        kind = draw(st.integers(0, 3)) if depth else 3
        if kind == 0:
            child = Node(stat.S_IFDIR | draw(st.integers(0, 0o7777)))
            decorate(draw, child)
            _fill(draw, child, depth - 1, linkable)
        elif kind == 1 and linkable:
            child = draw(st.sampled_from(linkable))
        else:
            child = draw(leaves())
            linkable.append(child)
        parent.children[name] = child
    if draw(st.integers(0, 20)) == 0:
        for number in range(draw(st.sampled_from([50, 300, 900]))):
            parent.children[b"many-%d" % number] = Node(stat.S_IFIFO)


def plain_node(root: Node) -> dict[bytes, Plain]:
    """The tree as path -> what an index should say about it; hard links share "same"."""
    found: dict[bytes, Plain] = {}
    links: dict[int, int] = {}
    first: dict[int, bytes] = {}

    def visit(path: bytes, node: Node) -> None:
        links[id(node)] = links.get(id(node), 0) + 1
        first.setdefault(id(node), path)
        content: Any = None
        if stat.S_ISREG(node.mode):
            content = node.content
            if isinstance(content, Sparse):
                content = Sparse(node.size)
        xattrs = dict(node.xattrs)
        if isinstance(content, Object):
            xattrs[b"trusted.overlay.metacopy"] = b""
            xattrs[b"trusted.overlay.redirect"] = b"/" + content.path
        found[path] = {
            "mode": node.mode,
            "uid": node.uid,
            "gid": node.gid,
            "mtime": node.mtime_ns,
            "rdev": node.rdev,
            "xattrs": xattrs,
            "content": content,
            "size": node.size if stat.S_ISREG(node.mode) else None,
            "target": node.target,
            "id": id(node),
        }
        for name, child in (node.children or {}).items():
            visit(path + b"/" + name, child)

    visit(b"", root)
    for plain in found.values():
        key = plain.pop("id")
        plain["same"] = first[key]
        plain["nlink"] = links[key] if not stat.S_ISDIR(plain["mode"]) else None
    # A hard link's "same" is whichever name comes first in order, as readers see it.
    smallest: dict[bytes, bytes] = {}
    for path, plain in found.items():
        smallest[plain["same"]] = min(smallest.get(plain["same"], path), path)
    for plain in found.values():
        plain["same"] = smallest[plain["same"]]
    return found


def plain_index(index: Index) -> dict[bytes, Plain]:
    """The same of what is in an index, read both by listing and by lookup."""
    found: dict[bytes, Plain] = {}
    smallest: dict[int, bytes] = {}

    def visit(path: bytes, nid: int) -> None:
        status = index.stat(nid)
        mode = status.mode
        smallest[nid] = min(smallest.get(nid, path), path)
        regular = stat.S_ISREG(mode)
        found[path] = {
            "mode": mode,
            "uid": status.uid,
            "gid": status.gid,
            "mtime": status.mtime_ns,
            "rdev": status.rdev,
            "xattrs": index.xattrs(nid),
            "content": index.content(nid) if regular else None,
            "size": status.size if regular else None,
            "target": index.readlink(nid) if stat.S_ISLNK(mode) else b"",
            "same": nid,
            "nlink": None if stat.S_ISDIR(mode) else status.nlink,
        }
        if stat.S_ISDIR(mode):
            names = 0
            for name, child, kind in index.entries(nid):
                assert index.lookup(nid, name) == child
                assert stat.S_IFMT(index.stat(child).mode) == kind << 12
                names += kind == 4
                visit(path + b"/" + name, child)
            assert status.nlink == 2 + names

    visit(b"", index.root_nid)
    for plain in found.values():
        plain["same"] = smallest[plain["same"]]
    return found


def read_all(index: Index, *names: bytes) -> None:
    """Read everything that can be reached, each inode once, however the tree hangs together.

    Args:
        names: looked up in every directory.
    """
    seen: set[int] = set()
    waiting = [index.root_nid]
    while waiting and len(seen) < 2000:
        nid = waiting.pop()
        if nid in seen:
            continue
        seen.add(nid)
        try:
            mode = index.stat(nid).mode
            index.xattrs(nid)
            if stat.S_ISLNK(mode):
                index.readlink(nid)
            elif stat.S_ISREG(mode):
                index.content(nid)
            elif stat.S_ISDIR(mode):
                for name in names:
                    index.lookup(nid, name)
                waiting += [child for _, child, _ in index.entries(nid)]
        except IndexCorrupt:
            continue
