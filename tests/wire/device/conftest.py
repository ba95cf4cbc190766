"""What the tests of the device transport share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.device.desk import Desk
from tests.wire.double import MemoryOverlay


@pytest.fixture
def overlay() -> MemoryOverlay:
    return MemoryOverlay()


@pytest.fixture
def desk(overlay: MemoryOverlay) -> Iterator[Desk]:
    made = Desk(overlay)
    yield made
    made.close()
