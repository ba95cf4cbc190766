"""What it costs to remember an inode in Python, where the lane does not keep it."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import pytest

from layerstore.marks import TRUSTED, USER
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.layer import Layer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.wire.device.verbs import DeviceDispatch
from overlayfs_py.wire.nodes import ROOT_ID

FILES = 2000
LIMITS = {"upper": 500, "lower": 660, "hard links": 800}
"""Bytes for each inode, with the dictionaries at the size that they grow to for so many; of hard links two names each
are known. Of a lower file 160 are its place in the layer."""


def tell(dispatch: DeviceDispatch, parent: int, name: bytes) -> int:
    told = dispatch.attempt(dispatch.lookup(parent, name))
    return told.node_id  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", LIMITS)
def test_an_inode_is_small_and_a_forgotten_one_costs_nothing(tmp_path: Path, kind: str) -> None:
    for directory_name in ("lower", "upper", "work"):
        (tmp_path / directory_name).mkdir()
    home = tmp_path / ("upper" if kind == "upper" else "lower") / "d"
    home.mkdir()
    names = [b"f%06d" % number for number in range(FILES)]
    for name in names:
        (home / os.fsdecode(name)).touch()
        if kind == "hard links":
            os.link(home / os.fsdecode(name), home / ("l" + os.fsdecode(name)))
    marks = TRUSTED if os.geteuid() == 0 else USER
    upper = Upper(os.fsencode(tmp_path / "upper"), os.fsencode(tmp_path / "work"), marks)
    lowers: list[Layer] = [DirectoryLayer(os.fsencode(tmp_path / "lower"), marks)]
    overlay = Overlay(upper, lowers, [], Config())
    dispatch = DeviceDispatch(overlay)
    directory = tell(dispatch, ROOT_ID, b"d")
    told = names + [b"l" + name for name in names] if kind == "hard links" else names
    tell(dispatch, directory, names[0])
    gc.collect()
    tracemalloc.start()
    try:
        ids = [tell(dispatch, directory, bytes(bytearray(name))) for name in told]
        gc.collect()
        # The list of ids is the test's own; the numbers in it are the nodes' as well.
        kept = tracemalloc.get_traced_memory()[0] - 8 * len(ids)
        dispatch.forget([(id, 1) for id in ids])
        del ids
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept / FILES <= LIMITS[kind]
    assert dispatch.known == 3
    # Dictionaries keep their size, of which a third at most is used.
    assert left / FILES <= 120
    dispatch.close()
    overlay.close()
