"""Hours of forgetting in fast motion; `tools/soak forget` for whole days."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlayfs_py.wire.dispatch import Dispatch
from tests.wire.device import forget_soak, unions


@pytest.mark.parametrize("kind", unions.KINDS)
def test_what_is_forgotten_leaves_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    seed = int(request.config.getoption("hypothesis_seed"))
    hours = list(forget_soak.soak(kind, 4, 2500, seed, str(tmp_path)))
    assert forget_soak.complaints(hours) == [], f"seed {seed}"
    assert hours[-1].lookups >= 10_000
    assert hours[-1].objects == 1


@pytest.mark.expects_log("forget of node")
def test_the_soak_notices_a_reply_that_was_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = Dispatch._entered

    def twice(self: Dispatch, entry: object) -> object:
        told = enter(self, entry)  # type: ignore[arg-type]
        self._nodes[told.node_id].lookups += 1
        return told

    monkeypatch.setattr(Dispatch, "_entered", twice)
    hours = list(forget_soak.soak("directories", 2, 1000, 1, str(tmp_path)))
    assert "left are" in forget_soak.complaints(hours)[0]
