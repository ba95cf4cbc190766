"""Everything visible of a tree, as data, and what is wrong with it by the model."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.model.tree import Inode, Tree

DT_OF_MODE = {
    stat.S_IFIFO: 1,
    stat.S_IFCHR: 2,
    stat.S_IFDIR: 4,
    stat.S_IFBLK: 6,
    stat.S_IFREG: 8,
    stat.S_IFLNK: 10,
    stat.S_IFSOCK: 12,
}


Rows = list[tuple[bytes, int, int | None]]


class Seen(NamedTuple):
    """One inode as a subject shows it; None: not looked at. `listing` rows are (name, d_ino, DT_* or
    None where it was not asked)."""

    mode: int
    uid: int
    gid: int
    nlink: int
    ino: int
    rdev: int
    size: int
    mtime_ns: int
    target: bytes | None
    content: bytes | None
    xattrs: Any  # dict[bytes, bytes]
    listing: Any  # Rows


@dataclass(slots=True)
class Dialect:
    """What a subject is known to show otherwise than POSIX has it; each is named in SEMANTICS.md.

    Args:
        directory_nlink: st_nlink of directories counts their subdirectories.
        stable_ino: a file's st_ino outlives copy-up and remount.
        removed_nlink: an open file without a name left has st_nlink 0.
        removed_copy_up: a file of a lower layer that was removed while open can still be changed
            through the descriptor.
        linked_d_ino: d_ino agrees with st_ino for files that have, or had, several names too.
        held_listing: a directory that was kept open lists what is in it now.
        hidden_links: names in lower layers that the stack hides are counted in st_nlink.
    """

    directory_nlink: bool = True
    stable_ino: bool = True
    removed_nlink: bool = True
    removed_copy_up: bool = True
    linked_d_ino: bool = True
    held_listing: bool = True
    hidden_links: bool = True


@dataclass(slots=True)
class Identity:
    """Which st_ino stands for which inode of the model, learned as they are first seen and held
    to after that."""

    ino_of: dict[int, int] = field(default_factory=dict)

    def problems(self, live: dict[int, Seen]) -> Iterator[str]:
        """`live` maps the model's numbers to what is seen; two inodes may not share a number."""
        for number in set(self.ino_of) - set(live):
            del self.ino_of[number]
        owners: dict[int, int] = {}
        for number, seen in live.items():
            known = self.ino_of.setdefault(number, seen.ino)
            if known != seen.ino:
                yield f"st_ino of inode #{number} was {known}, is {seen.ino}"
                self.ino_of[number] = seen.ino
            if owners.setdefault(seen.ino, number) != number:
                yield f"st_ino {seen.ino} is both #{owners[seen.ino]} and #{number}"


def differences(
    tree: Tree,
    seen: dict[bytes, Seen],
    held: dict[int, Seen],
    identity: Identity,
    dialect: Dialect,
) -> list[str]:
    """One line for everything in `seen` (by path) and `held` (by slot) that the model has
    otherwise."""
    now_ns = time.time_ns()
    problems: list[str] = []
    live: dict[int, Seen] = {}
    expected = dict(tree.walk())
    problems += [f"{path!r} is missing" for path in expected.keys() - seen.keys()]
    problems += [f"{path!r} should not be there" for path in seen.keys() - expected.keys()]
    for path in expected.keys() & seen.keys():
        inode, row = expected[path], seen[path]
        if inode.number in live and live[inode.number].ino != row.ino:
            problems.append(
                f"{path!r}: st_ino {row.ino}, its other name has {live[inode.number].ino}"
            )
        live.setdefault(inode.number, row)
        problems += [f"{path!r}: {text}" for text in _wrong(inode, row, now_ns, dialect)]
        problems += [
            f"{path!r}: {text}" for text in _wrong_listing(path, inode, row, seen, dialect)
        ]
    for slot, row in held.items():
        inode = tree.handles[slot].inode
        if inode.number in live and live[inode.number].ino != row.ino:
            problems.append(f"slot {slot}: fstat says {row.ino}, its name {live[inode.number].ino}")
        live.setdefault(inode.number, row)
        problems += [f"slot {slot}: {text}" for text in _wrong(inode, row, now_ns, dialect)]
        listed = None if row.listing is None else {name for name, *_ in row.listing}
        stale = listed is not None and listed != set(inode.children)
        if inode.is_directory and stale and dialect.held_listing:
            problems.append(f"slot {slot}: lists {row.listing}, not {sorted(inode.children)}")
    if dialect.stable_ino:
        problems += identity.problems(live)
    return problems


def _wrong(inode: Inode, row: Seen, now_ns: int, dialect: Dialect) -> Iterator[str]:
    fields: list[tuple[str, object, object]] = [
        ("mode", oct(row.mode), oct(inode.mode)),
        ("uid", row.uid, inode.uid),
        ("gid", row.gid, inode.gid),
        ("rdev", row.rdev, inode.rdev),
    ]
    if row.target is not None:
        fields.append(("target", row.target[:80], inode.target[:80]))
    if row.xattrs is not None:
        fields.append(("xattrs", row.xattrs, inode.xattrs))
    if not inode.is_directory:
        fields.append(("size", row.size, inode.size))
    if inode.is_directory:
        if dialect.directory_nlink:
            fields.append(("nlink", row.nlink, inode.nlink))
    elif inode.links == 0 and not dialect.removed_nlink:
        pass
    elif dialect.hidden_links:
        fields.append(("nlink", row.nlink, inode.nlink))
    else:
        fields.append(("nlink", row.nlink, inode.links))
    for name, value, wanted in fields:
        if value != wanted:
            yield f"{name} is {value!r}, should be {wanted!r}"
    if row.content is not None and row.content != inode.content:
        at = next(
            (i for i, (a, b) in enumerate(zip(row.content, inode.content, strict=False)) if a != b),
            min(len(row.content), len(inode.content)),
        )
        yield f"content differs from offset {at}: {row.content[at : at + 20]!r}"
    removed = inode.is_directory and inode.parent is None
    if not removed and not inode.mtime.allows(row.mtime_ns, now_ns):
        yield f"mtime is {row.mtime_ns}, should be {inode.mtime}"


def _wrong_listing(
    path: bytes, inode: Inode, row: Seen, seen: dict[bytes, Seen], dialect: Dialect
) -> Iterator[str]:
    if row.listing is None:
        return
    names = [name for name, *_ in row.listing]
    if sorted(names) != sorted(inode.children):
        yield f"lists {sorted(names)!r}, should be {sorted(inode.children)!r}"
    for name, ino, kind in row.listing:
        child = seen.get(path + b"/" + name if path else name)
        if child is None:
            continue
        linked = name in inode.children and inode.children[name].was_linked
        if ino != child.ino and (dialect.linked_d_ino or not linked):
            yield f"d_ino of {name!r} is {ino}, its st_ino {child.ino}"
        if kind is not None and kind != DT_OF_MODE[stat.S_IFMT(child.mode)]:
            yield f"d_type of {name!r} is {kind}, its mode {child.mode:o}"


def glance(root: bytes, paths: Iterable[bytes], closely: Collection[bytes]) -> dict[bytes, Seen]:
    """lstat(2) of those of `paths` that exist; of those in `closely` everything."""
    result: dict[bytes, Seen] = {}
    for path in paths:
        full = root + b"/" + path if path else root
        try:
            result[path] = _of_path(full) if path in closely else _seen(os.lstat(full))
        except FileNotFoundError:
            continue
    return result


def of_directory(root: bytes) -> dict[bytes, Seen]:
    """What system calls show below `root`, by path; the root itself is b""."""
    result: dict[bytes, Seen] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        full = root + b"/" + path if path else root
        row = result[path] = _of_path(full)
        pending.extend(path + b"/" + name if path else name for name, *_ in row.listing or ())
    return result


def _of_path(full: bytes) -> Seen:
    st = os.lstat(full)
    kind = stat.S_IFMT(st.st_mode)
    content = target = b""
    listing: Rows = []
    if kind == stat.S_IFREG:
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            content = _read_all(fd)
        finally:
            os.close(fd)
    elif kind == stat.S_IFLNK:
        target = os.readlink(full)
    elif kind == stat.S_IFDIR:
        listing = list_directory(full)
    return _seen(st, target, content, _xattrs(full), listing)


def of_descriptor(fd: int, readable: bool, closely: bool = True) -> Seen:
    """The same of an open file; content only if it was opened to be read."""
    st = os.fstat(fd)
    if not closely:
        return _seen(st)
    content = b""
    listing: Rows = []
    if stat.S_ISDIR(st.st_mode):
        try:
            listing = list_directory(fd)
        except FileNotFoundError:
            assert st.st_nlink <= 1, "only a removed directory has no listing"
    elif readable:
        content = _read_all(fd)
    return _seen(st, b"", content, _xattrs(fd), listing)


def _xattrs(where: bytes | int) -> dict[bytes, bytes]:
    """All xattrs but XFS's second sight of the ACLs (trusted.SGI_ACL_FILE and _DEFAULT)."""
    follow = isinstance(where, int)
    names = map(os.fsencode, os.listxattr(where, follow_symlinks=follow))
    return {
        name: os.getxattr(where, name, follow_symlinks=follow)
        for name in names
        if not name.startswith(b"trusted.SGI_ACL_")
    }


def list_directory(where: bytes | int) -> Rows:
    rows: Rows = []
    with os.scandir(where) as entries:
        for entry in entries:
            kind = None
            if entry.is_symlink():
                kind = 10
            elif entry.is_dir(follow_symlinks=False):
                kind = 4
            elif entry.is_file(follow_symlinks=False):
                kind = 8
            rows.append((os.fsencode(entry.name), entry.inode(), kind))
    return rows


def _read_all(fd: int) -> bytes:
    parts = []
    offset = 0
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _seen(
    st: os.stat_result,
    target: bytes | None = None,
    content: bytes | None = None,
    xattrs: dict[bytes, bytes] | None = None,
    listing: Rows | None = None,
) -> Seen:
    return Seen(
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_nlink,
        st.st_ino,
        st.st_rdev,
        st.st_size,
        st.st_mtime_ns,
        target,
        content,
        xattrs,
        listing,
    )
