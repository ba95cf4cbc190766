"""A bounded run of `tools/soak kill`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerstore.store import Store
from tests.layerstore.kill_soak import World, Wrong, soak


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    kills = soak(12, seed=int.from_bytes(os.urandom(4), "little"), place=tmp_path)
    assert kills.total() == 12


def test_it_notices_what_is_lost_and_what_is_left(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1)
    with Store.open(str(world.root)) as store:
        store.import_image(world.sources["one"], "one")
        world.end()
        path = store.objects().path(next(iter(store.objects())))
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"?")
    with pytest.raises(Wrong, match="at the end: object"):
        world.end()
    os.unlink(path)
    with pytest.raises(Wrong, match="after a test: object"):
        world._must_be_sound("after a test")
