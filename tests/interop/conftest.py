"""Places for layers, and mounts that end with their test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.stack import Stack
from tests.model.mounted import mount, unmount


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """That of the whole session, which its header prints."""
    return int(request.config.getoption("hypothesis_seed"))


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "tmpfs"
    directory.mkdir()
    mount(b"scratch", os.fsencode(directory), b"tmpfs", 0, b"mode=755")
    yield directory
    unmount(os.fsencode(directory))


@pytest.fixture
def place(tmpfs: Path) -> Iterator[Callable[..., Stack]]:
    """Makes a `Stack` on tmpfs; whatever it has mounted is unmounted in the end."""
    with contextlib.ExitStack() as ends:

        def make(name: str = "stack") -> Stack:
            stack = Stack(tmpfs / name)
            ends.callback(stack.unmount)
            return stack

        yield make
