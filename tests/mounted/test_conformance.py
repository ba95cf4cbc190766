"""The tool that runs public suites counts what they say, and sees what only we fail."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.mounted import conformance

SUITE = """
echo "ok 1 - first"
touch made && echo "ok 2" || echo "not ok 2 - cannot create"
echo "not ok 3 - known # TODO not on Linux"
grep -q "overlay $(dirname $MNT) overlay" /proc/mounts || echo "not ok 4 - not the kernel"
"""


def test_a_failure_of_ours_alone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it puts the logs, which it leaves.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    suite = tmp_path / "suite"
    suite.write_text(SUITE)
    assert conformance.main(["--", "sh", str(suite)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:7] == ["kernel", "2", "ok", "0", "failed", "1", "todo,"]
    assert lines[1].split()[:7] == ["device", "2", "ok", "1", "failed", "1", "todo,"]
    assert lines[2] == "device alone fails 1 x 4 - not the kernel"


def test_without_a_suite_there_is_nothing_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conformance.main([])
    assert "say which suite" in capsys.readouterr().err
