"""Fixtures of the tests of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layerstore.uppers import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A store with an image `base`, and an upper directory."""
    made = Place(tmp_path)
    yield made
    made.store.close()
