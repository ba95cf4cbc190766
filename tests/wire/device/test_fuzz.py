"""A bounded run of the fuzzer; `python -m tests.wire.device.fuzz --inputs N` for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wire.device import fuzz


def test_no_request_is_a_bug_or_stays_unanswered(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.getoption("hypothesis_seed"))
    found = fuzz.run(20_000, seed, str(tmp_path))
    assert not found, f"seed {seed}: {found}"


def test_the_fuzzer_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from overlayfs_py.wire.device.session import Session

    monkeypatch.setattr(Session, "_unknown", lambda self, header: [])
    assert fuzz.run(2000, 1, str(tmp_path))
