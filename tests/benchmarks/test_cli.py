"""Mistakes at the command line: one line, status 1, nothing measured."""

import subprocess
import sys
from pathlib import Path

import pytest

import overlayfs_py.cli
from benchmarks import cli


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "run needs --json FILE"),
        (["run", "--json", "/no/such/directory/x"], "--json /no/such/directory/x: cannot write"),
        (["run", "--json", "x", "--only", "nothing"], "--only nothing: no such row"),
        (["run", "--json", "x", "--on", "zfs"], "--on zfs: not one of"),
        (["run", "--json", "x", "--subject", ","], "--subject ,: expected"),
        (["run", "--json", "x", "--rounds", "-1"], "must be positive"),
        (["run", "--json", "x", "--rounds", "0"], "must be positive"),
        (["run", "--json", "x", "--limit", "0"], "must be positive"),
        (["run", "--json", "x", "--delay", "y:lookup=5"], "no subject is labelled 'y'"),
        (["run", "--json", "x", "--directory", "/no/such"], "cannot work in /no/such"),
        (["run", "--json", "x", "--subject", "/no/such"], "none of the subjects"),
        (["compare", "/no/such", "/no/such"], "/no/such: No such file"),
        (["report", "/no/such", "--output", "x"], "/no/such: No such file"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last
    assert list(tmp_path.iterdir()) == []


def test_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--only", "walk/layers=1", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["walk/layers=1@tmpfs", "walk/layers=1@disk"]


def test_a_missing_library_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "EXTRA", ("msgspec", "no_such_library"))
    assert cli.main(["compare", "a", "b"]) == 1
    assert "no_such_library not installed: pip install" in capsys.readouterr().err


def test_overlayfs_py_bench_is_the_same_program(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()  # not ours: must not be picked up
    words = ["bench", "run", "--only", "walk/layers=1", "--list"]
    done = subprocess.run(
        [sys.executable, "-m", "overlayfs_py", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.split() == ["walk/layers=1@tmpfs", "walk/layers=1@disk"]


def test_an_installation_without_benchmarks_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert overlayfs_py.cli.run(["bench", "run"]) == 1
    assert "in a checkout: python -m benchmarks" in capsys.readouterr().err
