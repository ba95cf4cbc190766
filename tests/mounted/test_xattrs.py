"""Extended attributes, of every kind of object and in every namespace."""

from __future__ import annotations

import os

import pytest

from tests.mounted.slots import KINDS, Slot
from tests.mounted.subject import Subject
from tests.mounted.users import ALICE, errno_of, user_errno


@pytest.mark.parametrize("kind", KINDS)
def test_trusted_and_security_attributes_of_every_kind(
    slot: Slot, subject: Subject, kind: str
) -> None:
    path = slot / kind
    for name, value in (("trusted.t", b"1\0\xff"), ("security.s", b"two"), ("trusted.empty", b"")):
        os.setxattr(path, name, value, follow_symlinks=False)
        assert os.getxattr(path, name, follow_symlinks=False) == value
    subject.forget()
    found = set(os.listxattr(path, follow_symlinks=False))
    assert found == {"trusted.t", "security.s", "trusted.empty"}
    os.rename(path, slot / "moved")
    assert os.getxattr(slot / "moved", "trusted.t", follow_symlinks=False) == b"1\0\xff"
    os.removexattr(slot / "moved", "trusted.t", follow_symlinks=False)
    assert errno_of(os.getxattr, slot / "moved", "trusted.t", follow_symlinks=False) == "ENODATA"


@pytest.mark.parametrize("kind", KINDS)
def test_user_attributes_belong_to_files_and_directories(slot: Slot, kind: str) -> None:
    path = slot / kind
    if kind in ("file", "full", "empty"):
        os.setxattr(path, "user.name", b"value")
        assert os.listxattr(path) == ["user.name"]
        return
    arguments = (path, "user.name", b"value", 0)
    assert errno_of(os.setxattr, *arguments, follow_symlinks=False) == "EPERM"
    assert errno_of(os.getxattr, path, "user.name", follow_symlinks=False) in ("ENODATA", "EPERM")


def test_create_and_replace_flags(slot: Slot) -> None:
    path = slot / "file"
    assert errno_of(os.setxattr, path, "user.x", b"1", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)
    assert errno_of(os.setxattr, path, "user.x", b"2", os.XATTR_CREATE) == "EEXIST"
    os.setxattr(path, "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.x") == b"3"
    os.removexattr(path, "user.x")
    assert errno_of(os.removexattr, path, "user.x") == "ENODATA"


def test_limits_of_names_and_values(slot: Slot) -> None:
    path = slot / "file"
    os.setxattr(path, "user." + "n" * 250, b"longest")
    assert os.getxattr(path, "user." + "n" * 250) == b"longest"
    assert errno_of(os.setxattr, path, "user." + "n" * 251, b"") == "ERANGE"
    assert errno_of(os.setxattr, path, "user.big", bytes(65537)) == "E2BIG"
    assert errno_of(os.setxattr, path, "user.", b"") in ("EINVAL", "EOPNOTSUPP")
    assert errno_of(os.setxattr, path, "nowhere.x", b"") == "EOPNOTSUPP"
    for number in range(40):
        os.setxattr(path, f"user.many{number}", b"v" * 40)
    assert len(os.listxattr(path)) == 41


def test_who_may(slot: Slot) -> None:
    path = slot / "file"
    path.chmod(0o644)
    os.setxattr(path, "user.x", b"1")
    os.setxattr(path, "trusted.x", b"1")
    assert user_errno(ALICE, os.getxattr, path, "user.x") == ""
    assert user_errno(ALICE, os.setxattr, path, "user.x", b"2") == "EACCES"
    assert user_errno(ALICE, os.removexattr, path, "user.x") == "EACCES"
    assert user_errno(ALICE, os.setxattr, path, "trusted.x", b"2") == "EPERM"
    assert user_errno(ALICE, os.getxattr, path, "trusted.x") == "ENODATA"
    assert user_errno(ALICE, os.setxattr, path, "security.x", b"2") == "EPERM"
    path.chmod(0o600)
    assert user_errno(ALICE, os.getxattr, path, "user.x") == "EACCES"
    slot.dir.chmod(0o1777)
    assert user_errno(ALICE, os.setxattr, slot.dir, "user.x", b"1") == "EPERM"


def test_the_unions_own_marks_do_not_show(slot: Slot, subject: Subject) -> None:
    os.rename(slot / "full", slot / "moved")
    os.mkdir(slot / "full")
    (slot / "file").chmod(0o600)
    os.link(slot / "hard1", slot / "hard3")
    for path in [slot.dir, *slot.dir.iterdir()]:
        assert os.listxattr(path, follow_symlinks=False) == [], path
    names = ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.origin")
    for name in names:
        for entry in ("full", "moved", "file"):
            assert errno_of(os.getxattr, slot / entry, name) in ("ENODATA", "EOPNOTSUPP")
