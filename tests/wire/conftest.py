"""What the tests of the wire share: a dispatch over a tree in memory."""

from __future__ import annotations

from typing import Any, cast

import pytest

from overlayfs_py.wire.call import Call
from overlayfs_py.wire.dispatch import Dispatch
from overlayfs_py.wire.nodes import InodeNumbers
from tests.wire.double import MemoryOverlay


class Wire:
    """A dispatch, the double beneath it, and the shortest way to ask."""

    def __init__(self) -> None:
        self.overlay = MemoryOverlay()
        self.dispatch = Dispatch(cast(Any, self.overlay), InodeNumbers())

    def ask(self, call: Call[Any]) -> Any:
        return self.dispatch.attempt(call)


@pytest.fixture
def wire() -> Wire:
    return Wire()
