"""File contents: against a model, with holes, past 4 GiB."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.slots import CONTENT, Slot
from tests.mounted.subject import SUBJECTS, Subject
from tests.mounted.users import errno_of

STEPS = 400
SIZE_MAX = 1 << 18


@pytest.mark.parametrize("through", ["one descriptor", "new descriptors", "descriptors and maps"])
def test_random_operations_agree_with_a_model(
    slot: Slot, subject: Subject, through: str, request: pytest.FixtureRequest
) -> None:
    """Writes, appends, truncations, stores and reads, as fsx does them."""
    seed = f"{request.config.option.hypothesis_seed}-{slot.place}-{through}"
    choose = random.Random(seed)
    model = bytearray(CONTENT)
    fd = os.open(slot / "file", os.O_RDWR)
    for step in range(STEPS):
        if through != "one descriptor" and choose.random() < 0.2:
            os.close(fd)
            if choose.random() < 0.3:
                subject.forget()
            fd = os.open(slot / "file", os.O_RDWR)
        what = choose.choice(["write", "write", "read", "truncate", "append", "store"])
        place, size = choose.randrange(SIZE_MAX), choose.randrange(1, 20_000)
        data = choose.randbytes(size)
        if what == "write":
            assert os.pwrite(fd, data, place) == size
            model.extend(bytes(max(0, place + size - len(model))))
            model[place : place + size] = data
        elif what == "append":
            with open(slot / "file", "ab", buffering=0) as file:
                file.write(data)
            model += data
        elif what == "truncate":
            os.ftruncate(fd, place)
            model.extend(bytes(max(0, place - len(model))))
            del model[place:]
        elif what == "store" and through == "descriptors and maps" and model:
            place %= len(model)
            data = data[: len(model) - place]
            with mmap.mmap(fd, len(model)) as mapping:
                mapping[place : place + len(data)] = data
            model[place : place + len(data)] = data
        else:
            assert os.pread(fd, size, place) == model[place : place + size], f"{seed}: {step}"
        assert os.fstat(fd).st_size == len(model), f"{seed}: {step} {what}"
    os.close(fd)
    assert (slot / "file").read_bytes() == model, seed
    subject.forget()
    assert (slot / "file").read_bytes() == model, seed


def test_what_was_cut_off_does_not_come_back(slot: Slot) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    for size in (5000, 4096, 4095, 1, 0):
        os.ftruncate(fd, size)
        os.ftruncate(fd, len(CONTENT))
        expected = CONTENT[:size].ljust(len(CONTENT), b"\0")
        assert os.pread(fd, len(CONTENT), 0) == expected
        os.pwrite(fd, CONTENT, 0)
    os.close(fd)


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_a_sparse_file_past_four_gibibytes_keeps_its_holes_through_copy_up(
    name: str, mounted: Callable[..., Subject]
) -> None:
    islands = {5: b"first", 1 << 32: b"second", (5 << 30) - 4: b"last"}

    def prepare(subject: Subject) -> None:
        with open(subject.lower / "sparse", "wb") as file:
            for place, data in islands.items():
                file.seek(place)
                file.write(data)

    subject = mounted(SUBJECTS[name], prepare)
    path = subject.mountpoint / "sparse"
    with open(path, "r+b", buffering=0) as file:
        file.seek(1 << 31)
        file.write(b"new")
    # The kernel copies a MiB at a time.
    assert (subject.upper / "sparse").stat().st_blocks < 10_000
    assert path.stat().st_size == (5 << 30)
    with open(path, "rb", buffering=0) as file:
        for place, data in {**islands, 1 << 31: b"new"}.items():
            assert os.pread(file.fileno(), len(data) + 3, place - 1) == (
                b"\0" + data + (b"\0\0" if place + len(data) < 5 << 30 else b"")
            )


@pytest.mark.parametrize("place", [(1 << 31) - 3, (1 << 32) - 3, (1 << 40) + 5])
def test_offsets_past_two_and_four_gibibytes(slot: Slot, place: int) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    os.pwrite(fd, b"far away", place)
    assert os.fstat(fd).st_size == place + 8
    assert os.pread(fd, 20, place - 4) == b"\0\0\0\0far away"
    assert os.pread(fd, 4, 0) == CONTENT[:4]
    os.ftruncate(fd, place + 2)
    assert os.pread(fd, 20, place) == b"fa"
    os.close(fd)
    assert os.stat(slot / "file").st_size == place + 2
    os.unlink(slot / "file")


def test_a_file_past_the_filesystems_limit_is_efbig(slot: Slot) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    assert errno_of(os.pwrite, fd, b"x", (1 << 63) - 2) in ("EFBIG", "EINVAL")
    assert errno_of(os.ftruncate, fd, (1 << 63) - 1) in ("EFBIG", "EINVAL")
    os.close(fd)
    assert (slot / "file").read_bytes() == CONTENT


def test_large_writes_and_reads_are_whole(slot: Slot) -> None:
    data = random.Random(7).randbytes(5 << 20)
    fd = os.open(slot / "file", os.O_RDWR | os.O_TRUNC)
    assert os.write(fd, data) == len(data)
    assert os.pread(fd, len(data), 0) == data
    assert os.pwritev(fd, [data[:100_000], data[:7]], 3) == 100_007
    os.close(fd)


def test_a_lower_file_of_many_pages_is_copied_whole(subject: Subject, tmp_path: Path) -> None:
    """Laid out by hand below an upper-only directory: see tests/overlay for copy-up itself."""
    path = subject.mountpoint / "many"
    data = random.Random(8).randbytes(3 << 20)
    path.write_bytes(data)
    subject.remount()
    with open(path, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"!")
    assert path.read_bytes() == data[: 1 << 20] + b"!" + data[(1 << 20) + 1 :]
