"""Directories that the lane makes, removes, renames, lists and changes are as if Python had done it, in the mount and
in the upper directory; and Python can take them over at any time."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlayfs_py.wire.device.protocol import STATX_IN, Opcode
from overlayfs_py.wire.lane import compiled
from tests.wire.device.client import ROOT, Told
from tests.wire.device.twins import OPAQUE, Listed, Twin, comparable, twins

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", tag, permissions, who)
    for tag, permissions, who in ((1, 7, -1), (2, 7, 1234), (4, 5, -1), (16, 7, -1), (32, 5, -1))
)
"""One that lets a further user do what the owner may; see acl(5)."""

pytestmark = [
    pytest.mark.skipif(compiled() is None, reason="no compiled lane"),
    pytest.mark.skipif(os.geteuid() != 0, reason="marks are trusted xattrs"),
]

NAMES = [*[b"x", b"y"] * 4, b"made", b"deep", b"dir", b"hides", b"gone", b"file"]
DIRECTORIES = [
    *[b"", b"x", b"y", b"x/x", b"x/y", b"y/x"] * 3,
    *(b"made", b"made/deep", b"made/x", b"dir", b"dir/x", b"dir/x/y", b"dir/below"),
    *(b"hides", b"hides/x", b"own", b"devices"),
]

# --- any order of requests --------------------------------------------------------------------------------------------


def told(result: Any) -> Any:
    return comparable(result.attributes) if isinstance(result, Told) else result


class Steps:
    """What can be asked of a twin, with numbers that stand for paths and names."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.held: list[int] = []
        self.open: list[Listed] = []

    def do(self, kind: str, path: bytes, name: bytes, other: bytes, new: bytes) -> Any:
        twin = self.twin
        if kind in ("read_on", "fsyncdir"):
            for listed in self.open[:1]:
                twin.read_on(listed) if kind == "read_on" else twin.fsyncdir(listed)
            return None
        if kind == "of_held":
            return [self._of_held(node) for node in self.held]
        node = twin.node(path)
        if not node:
            return errno.ENOENT
        # The kernel knows what is behind a name before it changes it.
        name, below = self._existing(kind, node, name)
        if kind == "rename":
            target = twin.node(other)
            if not target or (path + b"/" + name).strip(b"/") in (other, other[: len(path) + 2]):
                return errno.ENOENT
            twin.client.lookup(target, new)
            return [twin.rename(node, name, target, new), self._attributes(node, target)]
        if kind == "hold":
            self.held.append(below.id if isinstance(below, Told) else node)
            return None
        if kind == "forget":
            if node not in (ROOT, *self.held) and all(node != each.node for each in self.open):
                twin.forget(node)
            return None
        if kind == "opendir":
            self.open.append(twin.opendir(node))
            return twin.read_on(self.open[-1])
        return [told(self._change(kind, node, name, below)), self._attributes(node)]

    def _existing(self, kind: str, node: int, name: bytes) -> tuple[bytes, Told | int]:
        """A name, another one if there is nothing behind it that can be changed so, and what is behind it."""
        kinds: dict[str, Callable[[int], bool]] = {
            "rmdir": stat.S_ISDIR,
            "unlink": lambda mode: not stat.S_ISDIR(mode),
            "rename": lambda _: True,
        }
        fits = kinds.get(kind)
        for each in dict.fromkeys([name, *NAMES]) if fits is not None else ():
            below = self.twin.client.lookup(node, each)
            if isinstance(below, Told) and fits is not None and fits(below.mode):
                return each, below
        return name, self.twin.client.lookup(node, name)

    def _change(self, kind: str, node: int, name: bytes, below: Told | int) -> Any:
        twin = self.twin
        makes: dict[str, Callable[[int, bytes], Any]] = {
            "mkdir": twin.mkdir,
            "mknod": twin.mknod,
            "symlink": twin.symlink,
            "rmdir": twin.rmdir,
            "unlink": twin.unlink,
        }
        if kind in makes:
            if kind in ("mkdir", "mknod", "symlink") and isinstance(below, Told):
                return errno.EEXIST
            return makes[kind](node, name)
        if kind == "chmod":
            return twin.chmod(node, 0o710)
        if kind == "own":
            return twin.own(below.id, 5) if isinstance(below, Told) else below
        if kind == "setxattr":
            return twin.setxattr(node, b"user.x", b"value")
        assert kind == "statx"
        return twin.ask(Opcode.STATX, node, STATX_IN.pack(0, 0, 0, 0, 0)).error

    def _attributes(self, *nodes: int) -> list[Any]:
        return [comparable(self.twin.client.getattr(node)) for node in nodes]

    def _of_held(self, node: int) -> Any:
        found = comparable(self.twin.client.getattr(node))
        if isinstance(found, tuple) and not found[2]:
            # It has no name any more.
            return [found, self.twin.chmod(node, 0o700), self.twin.attributes(node)[9]]
        return found

    def end(self) -> None:
        for listed in self.open:
            while self.twin.read_on(listed):
                pass
            names = [row.name for row in listed.rows]
            assert len(names) == len(set(names)), names
            self.twin.releasedir(listed)


KINDS = [
    *(["mkdir"] * 6 + ["rmdir"] * 4 + ["symlink"] * 3 + ["unlink"] * 2 + ["rename"] * 5),
    *("mknod", "chmod", "own", "own", "setxattr", "statx", "forget", "forget", "hold", "of_held"),
    *("opendir", "read_on", "fsyncdir"),
]
steps = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(DIRECTORIES),
    st.sampled_from(NAMES),
    st.sampled_from(DIRECTORIES),
    st.sampled_from(NAMES),
)
Step = tuple[str, bytes, bytes, bytes, bytes]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lowers=st.booleans(), asked=st.lists(steps, min_size=5, max_size=40))
@pytest.mark.expects_log("removexattr|rmdir|rename|mkdir")
def test_any_requests_have_the_same_effect_with_the_lane_and_without(
    lowers: bool, asked: list[Step]
) -> None:
    with (
        tempfile.TemporaryDirectory() as base,
        twins(Path(base), lowers=lowers) as (laned, pure),
    ):
        one, other = Steps(laned), Steps(pure)
        for step in asked:
            assert one.do(*step) == other.do(*step), step
        one.end()
        other.end()
        assert laned.stored() == pure.stored()
        assert laned.seen() == pure.seen()
        assert laned.stored() == pure.stored()


# --- what the lane does -----------------------------------------------------------------------------------------------


@contextmanager
def laned(base: Path, *, lowers: bool = True) -> Iterator[Twin]:
    """The twin with the lane, its root known to the lane."""
    with twins(base, lowers=lowers) as (twin, _):
        assert twin.client.lookup(ROOT, b"nothing") == errno.ENOENT
        twin.client.opendir(ROOT)  # which is not asked for again
        yield twin


@contextmanager
def all_answered(twin: Twin) -> Iterator[None]:
    """What is asked in here is answered by the lane, all of it."""
    asked, answers = twin.asked, twin.answered()
    yield
    assert twin.answered() - answers == twin.asked - asked


def made(result: Told | int) -> Told:
    assert isinstance(result, Told)
    return result


def real(twin: Twin, path: str) -> os.stat_result:
    return os.lstat(twin.upper / path)


@pytest.mark.parametrize("lowers", [True, False])
def test_what_is_below_a_new_directory_needs_no_python(tmp_path: Path, lowers: bool) -> None:
    with laned(tmp_path, lowers=lowers) as twin, all_answered(twin):
        top = made(twin.mkdir(ROOT, b"new", 0o1777, 0o027))
        assert top.attributes[9:11] == (stat.S_IFDIR | 0o1750, 2)
        below = made(twin.mkdir(top.id, b"below"))
        assert twin.client.lookup(below.id, b"x") == errno.ENOENT
        for number in range(40):
            made(twin.symlink(below.id, b"link%d" % number))
        rows, told = twin.listing(below.id)
        assert {row.name for row in rows[2:]} == {b"link%d" % number for number in range(40)}
        assert [row.ino for row in rows[:2]] == [real(twin, "new/below").st_ino, top.attributes[0]]
        assert all(told[row.name].attributes[0] == row.ino for row in rows[2:])
        assert not twin.rename(below.id, b"link0", top.id, b"moved")
        assert not twin.unlink(below.id, b"link1")
        found = twin.attributes(top.id)
        status = real(twin, "new")
        assert found[10] == status.st_nlink == 3
        assert found[4] * 10**9 + found[7] == status.st_mtime_ns
        assert found[5] * 10**9 + found[8] == status.st_ctime_ns


def test_a_directory_beside_lower_layers_is_made_opaque(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        top = made(twin.mkdir(ROOT, b"new"))
        made(twin.mkdir(top.id, b"below"))
        assert os.getxattr(twin.upper / "new", OPAQUE) == b"y"
        assert os.listxattr(twin.upper / "new/below") == []
        with all_answered(twin):
            assert set(twin.xattrs(top.id).values()) == {errno.ENODATA}


def test_a_new_directory_inherits_group_and_acls(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        top = made(twin.mkdir(ROOT, b"new"))
        os.chown(twin.upper / "new", 0, 1234)
        os.chmod(twin.upper / "new", 0o2755)
        os.setxattr(twin.upper / "new", "system.posix_acl_default", ACL)
        with all_answered(twin):
            below = made(twin.mkdir(top.id, b"below", 0o777, 0o077))
            made(twin.mkdir(below.id, b"again", 0o777, 0o077))
        assert below.attributes[9] == stat.S_IFDIR | 0o2775
        for path in ("new/below", "new/below/again"):
            status = real(twin, path)
            assert (status.st_mode, status.st_gid) == (below.attributes[9], 1234)
            assert os.getxattr(twin.upper / path, "system.posix_acl_default") == ACL
            assert os.getxattr(twin.upper / path, "system.posix_acl_access")


def test_other_callers_and_names_that_a_layer_has_are_pythons(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        answers = twin.answered()
        assert twin.mkdir(ROOT, b"hides") == errno.EEXIST
        # There is a whiteout.
        assert twin.client.lookup(ROOT, b"gone") == errno.ENOENT
        made(twin.mkdir(ROOT, b"gone"))
        twin.client.uid = 1000
        made(twin.mkdir(ROOT, b"other"))
        assert twin.answered() == answers
        assert real(twin, "other").st_uid == 1000
        assert os.getxattr(twin.upper / "gone", OPAQUE) == b"y"


def test_a_directory_that_was_there_before_is_the_lanes_if_it_is_plain(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        with all_answered(twin):
            node = twin.node(b"made/deep")
            assert twin.client.lookup(node, b"nothing") == errno.ENOENT
            made(twin.mkdir(node, b"new"))
            made(twin.client.lookup(node, b"er"))
            assert not twin.rmdir(node, b"er")
        for path, known in ((b"own", 1), (b"dir", 1), (b"hides", 1), (b"devices", 0)):
            before = twin.line.dispatch.known
            assert twin.node(path)
            assert twin.line.dispatch.known - before == known
        # What hides in it is not to be seen.
        assert twin.client.lookup(twin.node(b"hides"), b"hidden") == errno.ENOENT


def test_a_directory_is_the_same_after_it_was_forgotten(tmp_path: Path) -> None:
    with laned(tmp_path) as twin, all_answered(twin):
        top = made(twin.mkdir(ROOT, b"new"))
        made(twin.symlink(top.id, b"link"))
        made(twin.mkdir(top.id, b"below"))
        for node in list(twin.client.told):
            twin.forget(node)
        again = made(twin.client.lookup(ROOT, b"new"))
        assert again.id != top.id
        assert again.attributes[0] == top.attributes[0]
        assert again.attributes[10] == 3
        for name in (b"link", b"below"):
            made(twin.client.lookup(again.id, name))
        assert not twin.rmdir(again.id, b"below")


@pytest.mark.parametrize("held", [False, True])
def test_a_removed_directory_is_known_until_it_is_forgotten(tmp_path: Path, held: bool) -> None:
    with laned(tmp_path) as twin:
        with all_answered(twin):
            top = made(twin.mkdir(ROOT, b"new"))
            below = made(twin.mkdir(top.id, b"below"))
            listed = twin.opendir(below.id)
            assert not twin.rmdir(top.id, b"below")
            assert not twin.rmdir(ROOT, b"new")
            assert not (twin.upper / "new").exists()
            assert twin.client.lookup(ROOT, b"new") == errno.ENOENT
            for node in (top.id, below.id):
                assert twin.attributes(node)[10] == 0
        if held:
            # Python takes it over, and does what can be done.
            assert not twin.chmod(below.id, 0o700)
            assert twin.attributes(below.id)[9:11] == (stat.S_IFDIR | 0o700, 0)
            assert twin.mknod(below.id, b"pipe") == errno.ENOENT
            assert twin.mkdir(below.id, b"again") == errno.ENOENT
        while twin.read_on(listed):
            pass
        assert [row.name for row in listed.rows] == [b".", b".."]
        twin.releasedir(listed)
        made(twin.mkdir(ROOT, b"new"))


def test_a_directory_that_is_not_empty_stays(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        top = made(twin.mkdir(ROOT, b"new"))
        made(twin.symlink(top.id, b"link"))
        assert twin.rmdir(ROOT, b"new") == errno.ENOTEMPTY
        made(twin.client.lookup(top.id, b"link"))
        # A whiteout is nothing.
        assert not twin.rmdir(ROOT, b"devices")
        assert not (twin.upper / "devices").exists()


def test_what_is_below_a_renamed_directory_goes_with_it(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        with all_answered(twin):
            top = made(twin.mkdir(ROOT, b"new"))
            below = made(twin.mkdir(top.id, b"below"))
            deeper = made(twin.mkdir(below.id, b"deeper"))
            link = made(twin.symlink(deeper.id, b"link"))
            assert not twin.rename(top.id, b"below", ROOT, b"moved")
            assert twin.ask(Opcode.READLINK, link.id).body == b"target"
            made(twin.symlink(deeper.id, b"second"))
            rows, _ = twin.listing(below.id)
            assert [row.ino for row in rows[:2]] == [below.attributes[0], 1]
            assert twin.attributes(top.id)[10] == 2
        assert sorted(os.listdir(twin.upper / "moved/deeper")) == ["link", "second"]
        # Beside lower layers it may not merge with what they come to have.
        assert os.getxattr(twin.upper / "moved", OPAQUE) == b"y"
        assert twin.attributes(ROOT)[10] == real(twin, ".").st_nlink


def test_a_directory_that_python_renames_takes_the_lanes_with_it(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        top = made(twin.mkdir(ROOT, b"new"))
        below = made(twin.mkdir(top.id, b"below"))
        link = made(twin.symlink(below.id, b"link"))
        made(twin.mkdir(ROOT, b"replaced"))
        # A directory that takes the place of another is Python's to move.
        assert not twin.rename(ROOT, b"new", ROOT, b"replaced")
        known = twin.line.dispatch.known
        with all_answered(twin):
            assert twin.ask(Opcode.READLINK, link.id).body == b"target"
            made(twin.mkdir(below.id, b"deeper"))
            assert not twin.rename(below.id, b"link", below.id, b"other")
        assert twin.line.dispatch.known == known
        assert sorted(os.listdir(twin.upper / "replaced/below")) == ["deeper", "other"]


def test_owners_and_times_of_what_is_in_the_upper_are_set(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        with all_answered(twin):
            top = made(twin.mkdir(ROOT, b"new"))
            link = made(twin.symlink(top.id, b"link"))
            for node in (link, top):
                assert not twin.own(node.id, 5)
                assert twin.attributes(node.id)[12] == 5
            assert not twin.chmod(top.id, 0o711)
        for path, mode in (("new", 0o711), ("new/link", 0o777)):
            status = real(twin, path)
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, 5)
            assert status.st_mtime_ns == 1_100_000_000_000_000_009


def test_python_takes_a_directory_over_with_all_above_it(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        top = made(twin.mkdir(ROOT, b"new"))
        below = made(twin.mkdir(top.id, b"below"))
        other = made(twin.mkdir(below.id, b"other"))
        deeper = made(twin.mkdir(below.id, b"deeper"))
        assert not twin.setxattr(deeper.id, b"user.x", b"value")
        # The root, what leads there, and the directory; not what is beside it.
        assert twin.line.dispatch.known == 4
        with all_answered(twin):
            made(twin.symlink(deeper.id, b"link"))
            made(twin.mkdir(other.id, b"made"))
        assert twin.xattrs(deeper.id)[b"user.x"] == b"value"
        for node, path in ((top, "new"), (below, "new/below"), (deeper, "new/below/deeper")):
            found = twin.attributes(node.id)
            assert found[0] == node.attributes[0] == real(twin, path).st_ino
            assert found[10] == real(twin, path).st_nlink


def test_a_listing_goes_on_where_it_was_whoever_has_the_directory(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        top = made(twin.mkdir(ROOT, b"new"))
        names = [b"name%d" % number for number in range(50)]
        for name in names:
            made(twin.symlink(top.id, name))
        listed = twin.opendir(top.id)
        assert twin.read_on(listed, 1000)
        gone = [row.name for row in listed.rows[2:]]
        assert 0 < len(gone) < 20
        for name in gone:
            assert not twin.unlink(top.id, name)
        # Each of these is Python's.
        assert not twin.fsyncdir(listed)
        made(twin.mknod(top.id, b"pipe"))
        while twin.read_on(listed, 1000):
            pass
        assert {row.name for row in listed.rows[2:]} - {b"pipe"} == set(names)
        twin.releasedir(listed)
        assert twin.line.dispatch._directories == {}


def test_the_lane_knows_the_links_of_a_directory_that_python_changed(tmp_path: Path) -> None:
    with laned(tmp_path) as twin:
        twin.client.getattr(ROOT)
        links = real(twin, ".").st_nlink + 1  # `dir` is in both, `hides` in the upper
        twin.client.uid = 1000
        made(twin.mkdir(ROOT, b"pythons"))
        with all_answered(twin):
            assert twin.attributes(ROOT)[10] == real(twin, ".").st_nlink
        assert not twin.rmdir(ROOT, b"pythons")
        with all_answered(twin):
            assert twin.attributes(ROOT)[10] == links - 1
        twin.client.uid = 0
        with all_answered(twin):
            made(twin.mkdir(ROOT, b"lanes"))
            assert twin.attributes(ROOT)[10] == links
        # Python counts anew.
        made(twin.mknod(ROOT, b"pipe"))
        assert twin.attributes(ROOT)[10] == links


def test_a_name_that_is_gone_from_a_directory_that_was_copied_up_is_not_listed(
    tmp_path: Path,
) -> None:
    with laned(tmp_path) as twin:
        lower = tmp_path / "laned/lower/dir/below"
        (lower / "a").write_bytes(b"a")
        (lower / "b").write_bytes(b"b")
        node = twin.node(b"dir/below")
        twin.listing(node)
        assert not twin.chmod(node, 0o700)
        assert not twin.unlink(node, b"a")
        assert twin.client.lookup(node, b"a") == errno.ENOENT
        rows, _ = twin.listing(node)
        assert [row.name for row in rows[2:]] == [b"b"]
