"""The seed that a run prints is the one that its tests have, in every worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.conftest import TOP

SHOWS = """
def test_shows(request):
    print("here", request.config.getoption("hypothesis_seed"))
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one", "xdist"])
@pytest.mark.parametrize("given", [[], ["--hypothesis-seed=7"]], ids=["chosen", "given"])
def test_every_worker_has_the_seed_of_the_header(
    tmp_path: Path, workers: list[str], given: list[str]
) -> None:
    (tmp_path / "test_shows.py").write_text(SHOWS)
    pytest_ = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-rP", *workers, *given]
    configuration = [f"--rootdir={tmp_path}", f"--config-file={TOP}/pyproject.toml"]
    done = subprocess.run(
        [*pytest_, *configuration, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=TOP,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header = re.search(r"^seed (\d+)", done.stdout, re.MULTILINE)
    shown = re.search(r"^here (\d+)", done.stdout, re.MULTILINE)
    assert header
    assert shown
    assert header[1] == shown[1]
    assert not given or header[1] == "7"
