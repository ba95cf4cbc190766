"""The file format: what is written is read again; what is not ours is refused in one line."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import results
from benchmarks.errors import UserError
from benchmarks.results import Sample, Skipped
from tests.benchmarks.documents import document, row

numbers = st.floats(min_value=0, max_value=1e12, allow_nan=False)
samples = st.builds(
    Sample,
    row=st.just(row("a").id),
    subject=st.just("kernel"),
    round=st.integers(0, 99),
    value=numbers,
    wall_s=numbers,
    operations=st.integers(1, 10**9),
    at_s=numbers,
    daemon_cpu_s=st.none() | numbers,
    caller_cpu_s=st.none() | numbers,
    extra=st.dictionaries(st.text(max_size=9), numbers, max_size=3),
)


@given(st.lists(samples, max_size=5), st.text(max_size=20))
def test_what_is_written_is_read_again(taken: list[Sample], reason: str) -> None:
    written = document((row("a"), "kernel", [1.0]))
    written.samples = taken
    written.skipped = [Skipped("subject x", reason)]
    assert msgspec.json.decode(msgspec.json.encode(written), type=results.Results) == written


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    written = document((row("a"), "kernel", [1.0, 2.0]))
    results.save(written, path)
    results.save(written, path)
    assert results.load(path) == written
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(UserError, match=r"result\.json: No such file"):
        results.load(path)
    for text in ("", "[]", '{"format": 3}', '{"samples": []}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"result\.json: not a result of"):
            results.load(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    written = document((row("a"), "kernel", [1.0]))
    written.version = 99
    results.save(written, path)
    with pytest.raises(UserError, match="version 99, expected"):
        results.load(path)


@pytest.mark.parametrize("field", ["row", "subject"])
def test_a_sample_of_nothing_known_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "result.json"
    written = document((row("a"), "kernel", [1.0]))
    written.samples = [msgspec.structs.replace(written.samples[0], **{field: "other"})]
    results.save(written, path)
    with pytest.raises(UserError, match=f"sample 0 is of an unknown {field} 'other'"):
        results.load(path)
