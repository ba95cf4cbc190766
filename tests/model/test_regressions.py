"""Sequences that once went wrong, as they were found and shortened."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from overlayfs_py.overlay.config import Config
from tests.model import acl
from tests.model.compare import Comparison, replay
from tests.model.generate import CAPABILITY_VALUE, Features, Operation, op
from tests.model.layers import Layer, LayerEntry
from tests.model.mounts import Ours
from tests.model.runs import Kind, maker
from tests.model.tree import CAPABILITY
from tests.model.verbs import Verbs

pytestmark = pytest.mark.mount

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
CAPABLE = LayerEntry(mode=FILE, content=b"capable", xattrs={CAPABILITY: CAPABILITY_VALUE})


def agree(scratch: str, stack: list[Layer], *operations: Operation, kind: Kind = Verbs) -> None:
    """Everything agrees with the model, after each of the operations."""

    def make() -> Comparison:
        return Comparison(stack, [maker(kind, scratch)], Features())

    assert replay(make, operations) is None


def hard_links() -> list[Layer]:
    return [
        {
            b"a": LayerEntry(mode=FILE, content=b"linked"),
            b"b": LayerEntry(mode=FILE, linked_to=b"a"),
        }
    ]


def test_a_changed_hard_link_has_its_names_in_the_upper(scratch: str) -> None:
    """Else an upper that is committed, or mounted without its index, has lost the change."""
    subject = Verbs(os.fsencode(tempfile.mkdtemp(dir=scratch)), hard_links(), 0)
    subject.write(b"a", 0, b"changed")
    assert os.listdir(subject.upper) == [b"a"]
    subject.chmod(b"b", 0o600)
    assert sorted(os.listdir(subject.upper)) == [b"a", b"b"]
    subject.end()
    names = [os.lstat(os.path.join(subject.upper, name)) for name in (b"a", b"b")]
    assert names[0].st_ino == names[1].st_ino
    assert names[0].st_size == len(b"changed")


@pytest.mark.parametrize("layers", [1, 2], ids=["clears by itself", "is asked to clear"])
def test_chown_to_nobody_keeps_setgid_without_group_execute(scratch: str, layers: int) -> None:
    """By the number of layers `Verbs` plays a transport with killpriv v2 or one without."""
    stack: list[Layer] = [{b"a": LayerEntry(mode=FILE | stat.S_ISGID)}]
    agree(
        scratch,
        stack + [{}] * (layers - 1),
        op("open", 0, b"a", os.O_RDWR, 0),
        op("fchown", 0, -1, -1),
        op("fchmod", 0, 0o6755),
        op("fchown", 0, -1, -1),
    )


def test_chown_to_nobody_clears_setuid_of_a_device(scratch: str) -> None:
    device = LayerEntry(mode=stat.S_IFBLK | 0o600, rdev=os.makedev(9, 1))
    agree(scratch, [{b"a": device}], op("chmod", b"a", 0o6711), op("chown", b"a", -1, -1))


def test_a_write_by_root_takes_the_capability_and_leaves_setuid(scratch: str) -> None:
    agree(
        scratch,
        [{}],
        op("open", 0, b"a", os.O_CREAT | os.O_RDWR, 0o4755),
        op("setxattr", b"a", CAPABILITY, CAPABILITY_VALUE, 0),
        op("pwrite", 0, 0, b"data"),
        kind=Ours,
    )


def test_xattr_whiteouts_in_a_directory_that_alone_is_marked(scratch: str) -> None:
    stack: list[Layer] = [
        {b"d": LayerEntry(mode=DIRECTORY), b"d/e": LayerEntry(mode=0, whiteout="xattr")},
        {b"d": LayerEntry(mode=DIRECTORY), b"d/e": LayerEntry(mode=FILE)},
    ]
    agree(scratch, stack, op("look", b"d/e"), op("forget", 0), op("rmdir", b"d"))


@pytest.mark.parametrize(
    "operation",
    [op("utimens", b"a", 1, 2), op("chmod", b"a", 0o600), op("rename", b"a", b"b", 0)],
    ids=str,
)
def test_a_metacopy_keeps_capabilities(scratch: str, operation: Operation) -> None:
    class Metacopy(Verbs):
        config = Config(metacopy=True)

    more = op("setxattr", operation.arguments[0], b"user.x", b"y", 0)
    agree(scratch, [{b"a": CAPABLE}], operation, more, op("remount"), kind=Metacopy)


def test_a_redirect_on_the_way_of_a_redirect(scratch: str) -> None:
    """Through a layer in which the way's first directory was new, and so opaque."""
    stack: list[Layer] = [
        {
            b"moved": LayerEntry(mode=DIRECTORY),
            b"moved/deep": LayerEntry(mode=DIRECTORY),
            b"moved/deep/leaf": LayerEntry(mode=FILE, content=b"leaf"),
        }
    ]
    agree(
        scratch,
        stack,
        op("mkdir", b"elsewhere", 0o755),
        op("rename", b"moved", b"elsewhere/once", 0),
        op("rotate"),
        op("rename", b"elsewhere/once", b"twice", 0),
        op("rename", b"twice/deep", b"deep", 0),
        op("remount"),
        op("write", b"deep/leaf", 0, b"found"),
    )


def test_a_time_just_before_the_epoch(scratch: str) -> None:
    stack: list[Layer] = [{b"a": LayerEntry(mode=FILE, mtime_ns=-1)}]
    agree(scratch, stack, op("chmod", b"a", 0o600), op("utimens", b"a", -2, -1), op("remount"))


def test_copied_up_symlinks_and_devices_keep_their_numbers(scratch: str) -> None:
    stack: list[Layer] = [
        {
            b"symlink": LayerEntry(mode=stat.S_IFLNK | 0o777, target=b"x"),
            b"device": LayerEntry(mode=stat.S_IFCHR | 0o600, rdev=os.makedev(9, 1)),
            b"pipe": LayerEntry(mode=stat.S_IFIFO | 0o600),
        }
    ]
    agree(
        scratch,
        stack,
        op("utimens", b"symlink", 1, 2),
        op("utimens", b"device", 1, 2),
        op("utimens", b"pipe", 1, 2),
        op("forget", 0),
        op("remount"),
    )


def test_what_rename_leaves_behind_inherits_group_and_acl(scratch: str) -> None:
    """RENAME_WHITEOUT's device, as ext4 and tmpfs make it."""
    default = acl.encode(
        [(1, 7, acl.NO_ID), (2, 5, 1000), (4, 5, acl.NO_ID), (16, 7, acl.NO_ID), (32, 5, acl.NO_ID)]
    )
    stack: list[Layer] = [
        {
            b"d": LayerEntry(mode=stat.S_IFDIR | 0o2755, gid=7, xattrs={acl.DEFAULT: default}),
            b"d/a": LayerEntry(mode=FILE),
        }
    ]
    agree(scratch, stack, op("rename", b"d/a", b"b", 4), op("remount"))
