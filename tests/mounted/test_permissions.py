"""Who may do what: owners, groups, modes, sticky and setgid directories, ACLs."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from tests.mounted.slots import KINDS, Slot
from tests.mounted.users import ALICE, BOB, as_user, errno_of, user_errno

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The xattr form of (tag, permissions, id) rows: acl(5), linux/posix_acl_xattr.h."""
    packed = (struct.pack("<HHI", tag, bits, id & 0xFFFFFFFF) for tag, bits, id in entries)
    return struct.pack("<I", 2) + b"".join(packed)


def read(path: os.PathLike[str]) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 10)
    finally:
        os.close(fd)


def write(path: os.PathLike[str]) -> None:
    os.close(os.open(path, os.O_WRONLY))


@pytest.mark.parametrize(
    ("mode", "owner", "member", "stranger"),
    [(0o600, "rw", "", ""), (0o440, "r", "r", ""), (0o060, "", "rw", ""), (0o006, "", "", "rw")],
)
def test_mode_bits_decide(slot: Slot, mode: int, owner: str, member: str, stranger: str) -> None:
    path = slot / "file"
    os.chown(path, ALICE, 500)
    path.chmod(mode)
    for uid, groups, rights in ((ALICE, (500,), owner), (BOB, (500,), member), (BOB, (), stranger)):
        expected = "" if "r" in rights else "EACCES"
        assert user_errno(uid, read, path, groups=groups) == expected
        expected = "" if "w" in rights else "EACCES"
        assert user_errno(uid, write, path, groups=groups) == expected
        assert as_user(uid, os.access, path, os.W_OK, groups=groups) == ("w" in rights)


def test_directories_need_search_and_write(slot: Slot) -> None:
    home = slot / "full"
    os.chown(home, ALICE, ALICE)
    for mode, lists, searches, makes in (
        (0o700, "", "", ""),
        (0o400, "", "EACCES", "EACCES"),
        (0o500, "", "", "EACCES"),
        (0o300, "EACCES", "", ""),
        (0o200, "EACCES", "EACCES", "EACCES"),
        (0o100, "EACCES", "", "EACCES"),
    ):
        home.chmod(mode)
        assert user_errno(ALICE, os.listdir, home) == lists
        assert user_errno(ALICE, os.stat, home / "inner") == searches
        assert user_errno(ALICE, os.mkdir, home / f"d{mode:o}") == makes
    home.chmod(0o700)
    for call, name in ((os.stat, "inner"), (os.listdir, ""), (os.mkdir, "x"), (os.unlink, "inner")):
        assert user_errno(BOB, call, home / name) == "EACCES"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "symlink"])
def test_only_the_owner_changes_mode_and_times(slot: Slot, kind: str) -> None:
    path = slot / kind
    os.chown(path, ALICE, ALICE)
    path.chmod(0o666)
    assert user_errno(BOB, os.chmod, path, 0o600) == "EPERM"
    assert user_errno(BOB, os.utime, path, (1, 1)) == "EPERM"
    assert user_errno(BOB, os.utime, path) == ""
    path.chmod(0o600)
    assert user_errno(BOB, os.utime, path) == "EACCES"
    assert user_errno(ALICE, os.utime, path, (1, 1)) == ""
    assert user_errno(ALICE, os.chmod, path, 0o640) == ""
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


@pytest.mark.parametrize("kind", KINDS)
def test_owners_may_give_files_only_to_their_groups(slot: Slot, kind: str) -> None:
    path = slot / kind
    os.chown(path, ALICE, ALICE, follow_symlinks=False)

    def lchown(uid: int, gid: int) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)

    assert user_errno(ALICE, lchown, BOB, -1) == "EPERM"
    assert user_errno(ALICE, lchown, -1, 500) == "EPERM"
    assert user_errno(BOB, lchown, BOB, BOB) == "EPERM"
    assert user_errno(ALICE, lchown, ALICE, 500, groups=(500,)) == ""
    found = os.lstat(path)
    assert (found.st_uid, found.st_gid) == (ALICE, 500)


def test_chmod_drops_setgid_of_a_group_one_is_not_in(slot: Slot) -> None:
    path = slot / "file"
    os.chown(path, ALICE, 500)
    as_user(ALICE, os.chmod, path, 0o2755)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    as_user(ALICE, os.chmod, path, 0o2755, groups=(500,))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o2755


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_sticky_directory_only_owners_remove_and_rename(slot: Slot, kind: str) -> None:
    slot.dir.chmod(0o1777)
    path = slot / kind
    os.chown(path, ALICE, ALICE, follow_symlinks=False)
    remove = os.rmdir if kind in ("full", "empty") else os.unlink
    assert user_errno(BOB, remove, path) == "EPERM"
    assert user_errno(BOB, os.rename, path, slot / "moved") == "EPERM"
    if kind not in ("full", "empty"):
        os.mknod(slot / "bobs", stat.S_IFREG | 0o644)
        os.chown(slot / "bobs", BOB, BOB)
        assert user_errno(BOB, os.rename, slot / "bobs", path) == "EPERM"
    assert user_errno(ALICE, os.rename, path, slot / "moved") == ""
    if kind != "full":
        assert user_errno(ALICE, remove, slot / "moved") == ""


def test_removing_needs_the_directory_not_the_file(slot: Slot) -> None:
    os.chown(slot.dir, ALICE, ALICE)
    (slot / "file").chmod(0)
    assert user_errno(BOB, os.unlink, slot / "file") == "EACCES"
    assert user_errno(ALICE, os.unlink, slot / "file") == ""
    # A directory of somebody else's changes its parent when it moves: its `..` is written.
    slot.dir.chmod(0o777)
    (slot / "target").mkdir()
    (slot / "target").chmod(0o777)
    assert user_errno(BOB, os.rename, slot / "full", slot / "target" / "full") == "EACCES"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_umask_holds_for_every_kind_of_object(slot: Slot, umask: int) -> None:
    def make() -> None:
        os.close(os.open(slot / "f", os.O_CREAT | os.O_WRONLY, 0o6777))
        os.mkdir(slot / "d", 0o777)
        os.mkfifo(slot / "p", 0o777)
        os.mknod(slot / "n", stat.S_IFREG | 0o777)
        os.symlink("x", slot / "l")

    slot.dir.chmod(0o777)
    as_user(ALICE, make, umask=umask)
    for name, full in (("f", 0o6777), ("d", 0o777), ("p", 0o777), ("n", 0o777)):
        found = os.lstat(slot / name)
        assert stat.S_IMODE(found.st_mode) == full & ~umask, name
        assert (found.st_uid, found.st_gid) == (ALICE, ALICE)
    assert stat.S_IMODE(os.lstat(slot / "l").st_mode) == 0o777


def test_a_setgid_directory_hands_its_group_down(slot: Slot) -> None:
    home = slot / "full"
    os.chown(home, ALICE, 500)
    home.chmod(0o2777)

    def make() -> None:
        os.close(os.open(home / "f", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.mkdir(home / "d", 0o755)
        os.mkfifo(home / "p", 0o644)
        os.symlink("x", home / "l")

    as_user(BOB, make)
    for name in ("f", "d", "p", "l"):
        assert os.lstat(home / name).st_gid == 500, name
    assert stat.S_IMODE(os.stat(home / "d").st_mode) == 0o2755
    # Not a member of the group, so no setgid program of it.
    assert stat.S_IMODE(os.stat(home / "f").st_mode) == 0o755
    as_user(BOB, os.mkdir, home / "d" / "e", 0o755)
    assert os.stat(home / "d" / "e").st_gid == 500


@pytest.mark.parametrize("home", ["full", "empty"])
def test_a_default_acl_is_handed_down_instead_of_the_umask(slot: Slot, home: str) -> None:
    rows = ((USER_OBJ, 7, -1), (USER, 6, BOB), (GROUP_OBJ, 5, -1), (MASK, 7, -1), (OTHER, 1, -1))
    os.setxattr(slot / home, DEFAULT, acl(*rows))

    def make() -> None:
        os.close(os.open(slot / home / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(slot / home / "d", 0o777)
        os.mkfifo(slot / home / "p", 0o666)

    before = os.umask(0o077)
    try:
        make()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(slot / home / "f").st_mode) == 0o660
    assert stat.S_IMODE(os.stat(slot / home / "p").st_mode) == 0o660
    assert stat.S_IMODE(os.stat(slot / home / "d").st_mode) == 0o771
    assert os.getxattr(slot / home / "d", DEFAULT) == acl(*rows)
    assert os.getxattr(slot / home / "f", ACCESS) == acl(
        (USER_OBJ, 6, -1), (USER, 6, BOB), (GROUP_OBJ, 5, -1), (MASK, 6, -1), (OTHER, 0, -1)
    )
    (slot / home / "f").write_bytes(b"x")
    assert user_errno(BOB, write, slot / home / "f") == ""
    assert user_errno(ALICE, write, slot / home / "f") == "EACCES"


def test_a_minimal_default_acl_and_a_setgid_directory_together(slot: Slot) -> None:
    home = slot / "empty"
    os.chown(home, ALICE, 500)
    home.chmod(0o2777)
    os.setxattr(home, DEFAULT, acl((USER_OBJ, 7, -1), (GROUP_OBJ, 5, -1), (OTHER, 5, -1)))
    as_user(BOB, os.mkdir, home / "d", 0o777, umask=0o077)
    found = os.stat(home / "d")
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (500, 0o2755)
    assert os.getxattr(home / "d", DEFAULT) == os.getxattr(home, DEFAULT)


@pytest.mark.parametrize("kind", ["file", "full", "fifo", "null"])
def test_acls_decide_and_change_the_mode(slot: Slot, kind: str) -> None:
    path = slot / kind
    os.chown(path, ALICE, ALICE)
    path.chmod(0o600 if kind != "full" else 0o700)
    rows = ((USER_OBJ, 7, -1), (USER, 5, BOB), (GROUP_OBJ, 0, -1), (MASK, 5, -1), (OTHER, 0, -1))
    os.setxattr(path, ACCESS, acl(*rows))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o750
    assert as_user(BOB, os.access, path, os.R_OK)
    assert not as_user(BOB, os.access, path, os.W_OK)
    assert not as_user(BOB + 1, os.access, path, os.R_OK)
    assert ACCESS in os.listxattr(path)
    # chmod writes the mask.
    path.chmod(0o700)
    assert not as_user(BOB, os.access, path, os.R_OK)
    assert os.getxattr(path, ACCESS)[-16:-8] == struct.pack("<HHI", MASK, 0, 0xFFFFFFFF)
    assert user_errno(BOB, os.setxattr, path, ACCESS, acl(*rows)) == "EPERM"
    os.removexattr(path, ACCESS)
    assert ACCESS not in os.listxattr(path)
    assert errno_of(os.getxattr, path, ACCESS) == "ENODATA"


def test_an_acl_of_three_rows_is_a_mode(slot: Slot) -> None:
    path = slot / "file"
    os.setxattr(path, ACCESS, acl((USER_OBJ, 6, -1), (GROUP_OBJ, 4, -1), (OTHER, 2, -1)))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o642
    assert errno_of(os.getxattr, path, ACCESS) == "ENODATA"
    assert errno_of(os.setxattr, path, ACCESS, b"\2\0\0\0rubbish!") == "EINVAL"
    assert errno_of(os.setxattr, path, DEFAULT, acl((USER_OBJ, 7, -1))) in ("EACCES", "EINVAL")


def test_setting_an_acl_drops_setgid_of_a_group_one_is_not_in(slot: Slot) -> None:
    path = slot / "file"
    rows = ((USER_OBJ, 7, -1), (GROUP_OBJ, 5, -1), (MASK, 5, -1), (OTHER, 5, -1))
    for groups, expected in (((500,), 0o2755), ((), 0o755)):
        os.chown(path, ALICE, 500)
        path.chmod(0o2755)
        as_user(ALICE, os.setxattr, path, ACCESS, acl(*rows), groups=groups)
        assert stat.S_IMODE(os.stat(path).st_mode) == expected


def test_an_acl_with_a_named_group_lets_supplementary_members_in(slot: Slot) -> None:
    path = slot / "file"
    path.chmod(0o600)
    os.setxattr(
        path,
        ACCESS,
        acl((USER_OBJ, 6, -1), (GROUP_OBJ, 0, -1), (GROUP, 6, 777), (MASK, 6, -1), (OTHER, 0, -1)),
    )
    assert user_errno(BOB, write, path, groups=(777,)) == ""
    assert user_errno(BOB, write, path, groups=(778,)) == "EACCES"
