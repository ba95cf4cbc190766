"""Bounded runs of the fuzzer; `tools/fuzz wire --inputs N` for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlayfs_py.wire.device.session import Session
from overlayfs_py.wire.lane import compiled
from tests.wire.device import fuzz


@pytest.mark.parametrize("laned", [True, False])
def test_no_request_is_a_bug_or_stays_unanswered(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, laned: bool
) -> None:
    monkeypatch.setattr(fuzz, "PER_UNION", 7000)
    seed = int(request.config.getoption("hypothesis_seed"))
    *_, tally = fuzz.run(21_000, seed, str(tmp_path), laned=laned)
    assert not tally.wrong, f"seed {seed}: {tally.wrong}"
    assert tally.inputs == 21_000
    assert tally.answers > 10_000
    assert (tally.by_lane > 1000) == (laned and compiled() is not None)


@pytest.mark.slow
def test_the_sanitizers_find_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--inputs", "100000"]) == 0, capfd.readouterr()
    assert "0 crashes, 0 unanswered, 0 wrong" in capfd.readouterr().out


def test_the_fuzzer_notices_a_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_write", lambda self, fd, unique, reply: True)
    monkeypatch.setattr(fuzz, "ANSWER_WITHIN_S", 0.3)
    *_, tally = fuzz.run(2000, 1, str(tmp_path), laned=False)
    assert tally.unanswered
    assert "no answer" in tally.wrong[0]


def test_the_fuzzer_notices_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_unknown", lambda self, header: [])
    *_, tally = fuzz.run(2000, 1, str(tmp_path))
    assert tally.wrong
