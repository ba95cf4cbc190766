"""Trees written by one of kernel and overlayfs-py as root, mounted by the other."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.interop import same
from tests.interop.stack import KERNEL, OURS, Stack
from tests.model.machine import run_machine
from tests.model.runs import BY_TURNS, makers

Place = Callable[..., Stack]

KERNEL_OPTIONS = "redirect_dir=on,index=on,xino=auto,metacopy={}"


@pytest.mark.parametrize("metacopy", ["off", "on"])
@pytest.mark.parametrize(("writer", "reader"), [(OURS, KERNEL), (KERNEL, OURS)])
def test_what_one_writes_the_other_shows(
    place: Place, writer: str, reader: str, metacopy: str
) -> None:
    options = {KERNEL: KERNEL_OPTIONS.format(metacopy), OURS: f"metacopy={metacopy}"}
    stack = place()
    stack.write(same.stack())
    before = stack.seen(KERNEL, options[KERNEL])
    assert not same.differences(before, stack.seen(OURS, options[OURS]))
    with stack.mounted(writer, options[writer]) as root:
        same.change(root)
        written = same.seen(root)
    assert same.differences(before, written), "nothing was changed"
    assert not same.differences(written, stack.seen(reader, options[reader]))
    assert not same.differences(written, stack.seen(writer, options[writer]))


def test_both_leave_the_same_upper(place: Place) -> None:
    uppers = []
    for writer, options in ((KERNEL, KERNEL_OPTIONS.format("off")), (OURS, "")):
        stack = place(writer)
        stack.write(same.stack())
        with stack.mounted(writer, options) as root:
            same.change(root)
        assert stack.upper is not None
        uppers.append(same.of_upper(os.fsencode(stack.upper)))
    assert not same.differences(*uppers)


@pytest.mark.slow
def test_taking_turns_at_random(tmpfs: os.PathLike[str], seed: int) -> None:
    make = makers(["alternating"], os.fspath(tmpfs))
    assert run_machine(make, BY_TURNS, 600, seed) >= 600
