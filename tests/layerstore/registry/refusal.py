"""What the tests of bad registries share: a pull that fails as it should, and when to misbehave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from layerstore.errors import StoreError
from layerstore.registry.access import Access
from layerstore.registry.images import pull
from layerstore.store import Store
from tests.layerstore.registry.served import Handler, Request, Rule, Served
from tests.layerstore.stores import image_ids, litter


def refused(root: Path, served: Served, access: Access, said: str, name: str = "a:1") -> str:
    """A pull that fails: says it in one line, and leaves nothing behind."""
    with (
        Store.open(str(root), create=True) as store,
        pytest.raises(StoreError) as error,
    ):
        pull(store, f"{served.name}/{name}", access=access)
    text = str(error.value)
    assert said in text
    assert "\n" not in text
    assert len(text) < 700
    # What came of a blob may stay for the next pull, and nothing else.
    assert set(litter(root)) <= {"tmp/downloads"}
    assert image_ids(root) == []
    return text


def at(part: str, answer: Callable[[Handler], object]) -> Rule:
    """A rule for all requests whose path has this part."""

    def rule(handler: Handler, request: Request) -> bool:
        if part not in request.path:
            return False
        answer(handler)
        return True

    return rule
