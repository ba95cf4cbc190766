"""Bounded runs of the fuzzer; `tools/fuzz store --inputs N` for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerstore.importer import Importer
from layerstore.oci.tar import TarReader
from tests.layerstore import fuzz


@pytest.mark.parametrize(
    ("target", "inputs"), [("tar", 5000), ("index", 4000), ("toc", 2000), ("import", 60)]
)
def test_damage_is_refused_in_one_line(
    tmp_path: Path, request: pytest.FixtureRequest, target: str, inputs: int
) -> None:
    seed = int(request.config.getoption("hypothesis_seed"))
    fuzzer = fuzz.Fuzzer(tmp_path, seed)
    assert fuzz.run(fuzzer, target, inputs) == "", f"seed {seed}"
    assert fuzzer.outcomes.total() == inputs
    assert fuzzer.outcomes[f"{target} refused"] > inputs / 10


def test_the_fuzzer_notices_another_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: TarReader, offset: int, what: str) -> Exception:
        return ValueError(what)

    monkeypatch.setattr(TarReader, "_bad", careless)
    assert "ValueError" in fuzz.run(fuzz.Fuzzer(tmp_path, 1), "tar", 1000)


def test_the_fuzzer_notices_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Importer.run

    def careless(self: Importer, spec: str, tag: str | None) -> str:
        (fuzzer._root / "tmp" / "forgotten").touch()
        return run(self, spec, tag)

    fuzzer = fuzz.Fuzzer(tmp_path, 1)
    monkeypatch.setattr(Importer, "run", careless)
    assert "forgotten" in fuzz.run(fuzzer, "import", 30)
