"""Marks in user.overlay.*: what kernel and overlayfs-py write without privilege."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.interop import same
from tests.interop.stack import KERNEL, OURS, Stack

Place = Callable[..., Stack]

OPTIONS = {
    KERNEL: "userxattr,index=on,metacopy=off",
    OURS: "userxattr,redirect_dir=off,index=on,metacopy=off",
}


def stack_for(place: Place, name: str) -> Stack:
    stack = place(name)
    stack.write(same.stack(), b"user.overlay.")
    return stack


@pytest.mark.parametrize(("writer", "reader"), [(OURS, KERNEL), (KERNEL, OURS)])
def test_what_one_writes_the_other_shows(place: Place, writer: str, reader: str) -> None:
    stack = stack_for(place, "stack")
    before = stack.seen(writer, OPTIONS[writer])
    assert not same.differences(before, stack.seen(reader, OPTIONS[reader]))
    with stack.mounted(writer, OPTIONS[writer]) as root:
        same.change(root, all_of_it=False)
    written = stack.seen(writer, OPTIONS[writer])
    assert same.differences(before, written), "nothing was changed"
    assert not same.differences(written, stack.seen(reader, OPTIONS[reader]))
    assert stack.upper is not None
    for path, row in same.seen(os.fsencode(stack.upper)).items():
        assert not [name for name in row.xattrs if name.startswith(b"trusted.overlay.")], path


@pytest.mark.parametrize("by", [OURS, KERNEL])
def test_a_lower_directory_is_not_renamed_without_redirects(place: Place, by: str) -> None:
    stack = stack_for(place, by)
    with stack.mounted(by, OPTIONS[by]) as root:
        with pytest.raises(OSError, match="Invalid cross-device link") as caught:
            os.rename(root + b"/moved", root + b"/elsewhere")
        assert caught.value.errno == errno.EXDEV
