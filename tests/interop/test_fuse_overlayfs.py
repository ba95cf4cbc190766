"""Trees written by fuse-overlayfs and mounted by overlayfs-py, and the other way round."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable

import pytest

from tests.interop import same
from tests.interop.same import Tree
from tests.interop.stack import FUSE_OVERLAYFS, OURS, Stack
from tests.model.layers import Layer, LayerEntry

pytestmark = pytest.mark.skipif(
    shutil.which("fuse-overlayfs") is None, reason="no fuse-overlayfs here"
)

Place = Callable[..., Stack]
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def comparable(tree: Tree) -> Tree:
    """Without what fuse-overlayfs counts its own way: links, and times of merged directories."""
    return {
        path: row._replace(nlink=1, mtime_ns=0 if stat.S_ISDIR(row.mode) else row.mtime_ns)
        for path, row in tree.items()
    }


@pytest.mark.parametrize(("writer", "reader"), [(OURS, FUSE_OVERLAYFS), (FUSE_OVERLAYFS, OURS)])
def test_what_one_writes_the_other_shows(place: Place, writer: str, reader: str) -> None:
    """Without renamed lower directories and links of lower files: fuse-overlayfs has no redirects
    and no index."""
    stack = place()
    layers = same.stack()
    del layers[-1][b"socket"]  # fuse-overlayfs 1.10 does not show sockets of lower layers
    stack.write(layers)
    options = {OURS: "redirect_dir=off", FUSE_OVERLAYFS: ""}
    with stack.mounted(writer, options[writer]) as root:
        same.change(root, all_of_it=False)
    # Not as it was seen while it was changed: fuse-overlayfs remembers links it has broken.
    written = stack.seen(writer, options[writer])
    shown = stack.seen(reader, options[reader])
    assert not same.differences(comparable(written), comparable(shown), nlink=False)


def test_marks_of_fuse_overlayfs_without_privilege(place: Place) -> None:
    """What fuse-overlayfs leaves where it may not make devices or set trusted.*: `.wh.` files,
    `user.fuseoverlayfs.opaque`, owners in `user.fuseoverlayfs.override_stat`."""
    stack = place()
    top: Layer = {
        b"d": LayerEntry(mode=DIRECTORY),
        b"d/gone": LayerEntry(mode=0, whiteout="name"),
        b"o": LayerEntry(mode=DIRECTORY, xattrs={b"user.fuseoverlayfs.opaque": b"y"}),
        b"o/new": LayerEntry(mode=FILE),
    }
    bottom: Layer = {
        b"d": LayerEntry(mode=DIRECTORY),
        b"d/gone": LayerEntry(mode=FILE),
        b"d/kept": LayerEntry(mode=FILE),
        b"o": LayerEntry(mode=DIRECTORY),
        b"o/hidden": LayerEntry(mode=FILE),
    }
    stack.write([top, bottom])
    ours, theirs = stack.seen(OURS), stack.seen(FUSE_OVERLAYFS)
    assert set(ours) == {b"", b"d", b"d/kept", b"o", b"o/new"}
    assert not same.differences(comparable(ours), comparable(theirs), nlink=False)


@pytest.mark.parametrize(
    "mark", ["user.fuseoverlayfs.override_stat", "user.containers.override_stat"]
)
def test_owners_in_xattrs(place: Place, mark: str) -> None:
    """A layer that an unprivileged user unpacked: the root's mark says that all of it has them."""
    stack = place()
    lower = stack.lower()
    (lower / "file").write_bytes(b"data")
    (lower / "directory").mkdir()
    os.setxattr(lower, mark, b"0:0:0755")
    os.setxattr(lower / "file", mark, b"33:44:04711")
    os.setxattr(lower / "directory", mark, b"5:6:01777")
    shown = stack.seen(OURS, "xattr_permissions=2" if "containers" not in mark else "")
    assert (shown[b"file"].uid, shown[b"file"].gid) == (33, 44)
    assert shown[b"file"].mode == stat.S_IFREG | 0o4711
    assert shown[b"directory"].mode == stat.S_IFDIR | 0o1777
    assert not any(name.startswith(b"user.") for row in shown.values() for name in row.xattrs)
