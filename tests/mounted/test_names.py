"""Names: any byte but two, up to 255 of them, in paths up to PATH_MAX."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounted.slots import Slot
from tests.mounted.subject import Subject
from tests.mounted.users import errno_of

NAMES = [
    b"\xff\xfe\x80", b"latin \xe9", "ünïcödé".encode(), b"new\nline", b"tab\t", b"\x01", b"back\\slash",
    b"com,ma", b"col:on", b"spa ce", b" ", b"-rf", b"...", b"x" * 255, b"\xc3" * 255, b"*?[", b"#&'\"",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_a_name(slot: Slot, subject: Subject, name: bytes) -> None:
    path = slot.at(name)
    os.mkdir(path)
    os.mkdir(path + b"/" + name)
    os.rename(path + b"/" + name, slot.at(b"file2"))
    os.rmdir(path)
    os.rename(slot.at(b"file"), path)
    os.link(path, slot.at(b"again"))
    subject.forget()
    assert name in os.listdir(os.fsencode(slot.dir))
    assert os.lstat(path).st_nlink == 2
    os.symlink(name, slot.at(b"to"))
    assert os.readlink(slot.at(b"to")) == name
    assert os.stat(slot.at(b"to")).st_ino == os.stat(path).st_ino
    os.unlink(path)
    assert name not in os.listdir(os.fsencode(slot.dir))


@pytest.mark.parametrize("length", [1, 59, 60, 255, 256, 1000, 4095])
def test_symlinks_of_any_length(slot: Slot, subject: Subject, length: int) -> None:
    target = "t" * length
    os.symlink(target, slot / "long")
    subject.forget()
    assert os.readlink(slot / "long") == target
    assert os.lstat(slot / "long").st_size == length
    os.lchown(slot / "long", 5, 5)
    os.rename(slot / "long", slot / "longer")
    assert os.readlink(slot / "longer") == target


def test_symlinks_that_cannot_be(slot: Slot) -> None:
    assert errno_of(os.symlink, "", slot / "nowhere") == "ENOENT"
    assert errno_of(os.symlink, "t" * 4096, slot / "too long") == "ENAMETOOLONG"


def test_a_tree_deeper_than_path_max(slot: Slot, subject: Subject) -> None:
    """Some 10,000 bytes of path, made and removed step by step; the last moved up."""
    name = "d" * 250
    here = os.open(slot / "empty", os.O_RDONLY)
    above = [here]
    for _ in range(40):
        os.mkdir(name, dir_fd=above[-1])
        above.append(os.open(name, os.O_RDONLY, dir_fd=above[-1]))
    fd = os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=above[-1])
    os.write(fd, b"deep")
    os.close(fd)
    os.chmod("file", 0o600, dir_fd=above[-1])
    assert os.listdir(above[-1]) == ["file"]
    os.rename("file", "up", src_dir_fd=above[-1], dst_dir_fd=here)
    assert (slot / "empty" / "up").read_bytes() == b"deep"
    while len(above) > 1:
        os.close(above.pop())
        os.rmdir(name, dir_fd=above[-1])
    os.close(here)


def test_a_path_of_path_max_minus_one_works(slot: Slot) -> None:
    room = 4095 - len(os.fsencode(slot.dir)) - 1
    path = str(slot.dir) + "/" + "./" * ((room - 4) // 2)
    path += "f" * (4095 - len(os.fsencode(path)))
    assert len(os.fsencode(path)) == 4095
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    assert Path(path).name in os.listdir(slot.dir)


def test_reserved_looking_names_are_users_own(slot: Slot, subject: Subject) -> None:
    """OCI's whiteout names mean something only inside image layers."""
    for name in ("work", "index", "lost+found", "#1"):
        (slot / "empty" / name).write_bytes(b"mine")
    subject.forget()
    assert sorted(os.listdir(slot / "empty")) == ["#1", "index", "lost+found", "work"]
