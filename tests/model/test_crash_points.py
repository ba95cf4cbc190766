"""Every operation that takes more than one step on disk, ended before each of them in turn."""

from __future__ import annotations

import os
import stat

import pytest

from tests.model import acl
from tests.model.crash import crash_everywhere
from tests.model.generate import CAPABILITY_VALUE, Operation, op
from tests.model.layers import Layer, LayerEntry
from tests.model.tree import CAPABILITY

pytestmark = pytest.mark.mount

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
ACL = acl.encode(
    [
        (acl.USER_OBJ, 7, acl.NO_ID),
        (acl.USER, 5, 1000),
        (acl.GROUP_OBJ, 5, acl.NO_ID),
        (acl.MASK, 5, acl.NO_ID),
        (acl.OTHER, 0, acl.NO_ID),
    ]
)


def stack() -> list[Layer]:
    upper_one: Layer = {
        b"merged": LayerEntry(mode=DIRECTORY, xattrs={acl.DEFAULT: ACL}),
        b"merged/top": LayerEntry(mode=FILE, content=b"top"),
    }
    lower_one: Layer = {
        b"merged": LayerEntry(mode=DIRECTORY, uid=3),
        b"merged/file": LayerEntry(mode=FILE | 0o4000, content=b"x" * 9000, uid=5, gid=6),
        b"merged/inner": LayerEntry(mode=DIRECTORY),
        b"merged/inner/leaf": LayerEntry(mode=FILE, content=b"leaf"),
        b"other": LayerEntry(mode=stat.S_IFDIR | 0o2777, gid=9),
        b"other/leaf": LayerEntry(mode=FILE, content=b"other"),
        b"one": LayerEntry(mode=FILE, content=b"linked", xattrs={CAPABILITY: CAPABILITY_VALUE}),
        b"two": LayerEntry(mode=FILE, linked_to=b"one"),
        b"three": LayerEntry(mode=FILE, linked_to=b"one"),
        b"pipe": LayerEntry(mode=stat.S_IFIFO | 0o600, uid=5),
        b"symlink": LayerEntry(mode=stat.S_IFLNK | 0o777, target=b"one", gid=7),
        b"empty": LayerEntry(mode=DIRECTORY),
    }
    return [upper_one, lower_one]


REMOVED = [
    op("unlink", b"merged/file"),
    op("unlink", b"merged/inner/leaf"),
    op("rmdir", b"merged/inner"),
]
COPIED = [op("chmod", b"one", 0o600), op("chmod", b"merged/file", 0o600)]
ONE_GONE = [op("unlink", b"two")]
MADE = [op("mkdir", b"made", 0o755), op("link", b"one", b"made/link")]

CASES: list[tuple[list[Operation], Operation]] = [
    ([], op("write", b"merged/file", 0, b"new")),
    ([], op("chmod", b"merged/file", 0o600)),
    ([], op("chown", b"merged/file", 8, 8)),
    ([], op("utimens", b"pipe", 1, 2)),
    ([], op("chown", b"symlink", 8, 8)),
    ([], op("setxattr", b"merged/inner", b"user.x", b"y", 0)),
    ([], op("setxattr", b"merged/inner/leaf", acl.ACCESS, ACL, 0)),
    ([], op("truncate", b"merged/file", 10)),
    ([], op("unlink", b"merged/file")),
    ([], op("rmdir", b"empty")),
    (REMOVED, op("mkdir", b"merged/inner", 0o700)),
    (REMOVED, op("mkdir", b"merged/file", 0o755)),
    (REMOVED, op("open", 0, b"merged/file", os.O_CREAT | os.O_RDWR, 0o640)),
    (REMOVED, op("symlink", b"target", b"merged/inner")),
    (REMOVED, op("rmdir", b"empty")),
    ([], op("mknod", b"merged/node", stat.S_IFSOCK | 0o640, 0)),
    ([], op("mknod", b"other/node", stat.S_IFREG | 0o640, 0)),
    ([], op("mkdir", b"other/directory", 0o700)),
    ([], op("rename", b"merged/file", b"other/moved", 0)),
    ([], op("rename", b"merged/file", b"merged/top", 0)),
    ([], op("rename", b"merged", b"renamed", 0)),
    ([], op("rename", b"merged/inner", b"other/inner", 0)),
    ([], op("rename", b"merged", b"empty", 0)),
    ([], op("rename", b"merged", b"other", 2)),
    ([], op("rename", b"merged/inner", b"one", 2)),
    (REMOVED, op("rename", b"other", b"merged/inner", 0)),
    ([], op("write", b"one", 0, b"new")),
    ([], op("link", b"one", b"other/four")),
    ([], op("unlink", b"one")),
    ([], op("rename", b"one", b"other/four", 0)),
    ([], op("rename", b"one", b"merged/file", 0)),
    (COPIED, op("link", b"one", b"other/four")),
    (COPIED, op("unlink", b"two")),
    (COPIED, op("rename", b"two", b"other/four", 0)),
    (COPIED, op("chmod", b"two", 0o640)),
    (COPIED, op("rename", b"merged/file", b"two", 2)),
    (ONE_GONE, op("unlink", b"three")),
    (ONE_GONE, op("link", b"one", b"two")),
    (MADE, op("unlink", b"made/link")),
    (MADE, op("unlink", b"two")),
    (MADE, op("rename", b"made", b"empty", 0)),
]


@pytest.mark.parametrize(("before", "operation"), CASES, ids=str)
def test_the_tree_is_old_or_new(
    before: list[Operation], operation: Operation, scratch: str
) -> None:
    assert crash_everywhere(scratch, stack(), before, operation) > 0
