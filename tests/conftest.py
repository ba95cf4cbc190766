"""What every test gets: a scratch directory, a printed seed, and a log that must stay quiet."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import scratch

_SCRATCH: pytest.StashKey[tuple[Path, int]] = pytest.StashKey()
_MOUNTED_FOLDERS = ("mounted", "interop", "images")
_LONG_FIRST = {"model": 0, "images": 1, "interop": 2, "tools": 3}
_TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback ")

hypothesis.settings.register_profile(
    # A mount on a busy machine has no deadline that would mean anything.
    "default-here",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "ci",
    hypothesis.settings.get_profile("default-here"),
    # Each run tries something new; the seed in the header replays it.
    derandomize=False,
    database=None,
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default-here")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        config.option.hypothesis_seed = worker["hypothesis_seed"]
    elif config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))
    if worker is not None or config.option.basetemp is not None:
        return
    scratch.sweep()
    directory, lock = scratch.create()
    config.stash[_SCRATCH] = directory, lock
    # pytest empties its base directory first, so it gets one of its own beside the lock.
    config.option.basetemp = directory / "tests"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: the seed that the header prints is that of every worker."""
    node.workerinput["hypothesis_seed"] = node.config.option.hypothesis_seed


def pytest_unconfigure(config: pytest.Config) -> None:
    directory, lock = config.stash.get(_SCRATCH, (None, -1))
    if directory is None:
        return
    if os.environ.get("OVERLAYFS_PY_KEEP"):
        print(f"kept: {directory}")
    else:
        scratch.remove(directory)
    os.close(lock)


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.option.hypothesis_seed
    return f"seed {seed} (again with: pytest --hypothesis-seed={seed})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The long ones first, so that at the end no worker waits for another.
    items.sort(key=lambda item: _LONG_FIRST.get(_folder(item), len(_LONG_FIRST)))
    reason = why_not_mount()
    for item in items:
        if _folder(item) in _MOUNTED_FOLDERS:
            item.add_marker(pytest.mark.mount)
        if reason and item.get_closest_marker("mount"):
            item.add_marker(pytest.mark.skip(reason=reason))


def _folder(item: pytest.Item) -> str:
    """The folder of tests/ that a test is in; empty for those elsewhere."""
    here = Path(__file__).parent
    if not item.path.is_relative_to(here):
        return ""
    return item.path.relative_to(here).parts[0]


def why_not_mount() -> str | None:
    """What this machine lacks for tests that mount; None: nothing."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    if os.geteuid() != 0:
        return "mounting needs root: run the tests as root"
    if not int(_status("CapEff"), 16) & 1 << _CAP_SYS_ADMIN:
        return "mounting needs CAP_SYS_ADMIN, which this container does not give"
    return None


_CAP_SYS_ADMIN = 21


def _status(name: str) -> str:
    text = Path("/proc/self/status").read_text()
    return next(line for line in text.splitlines() if line.startswith(name + ":")).split()[1]


@pytest.fixture(scope="session", autouse=True)
def daemon_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the daemons that tests start write their log."""
    path = tmp_path_factory.mktemp("log") / "daemon.log"
    path.touch(0o666)
    path.chmod(0o666)
    before = os.environ.get("OVERLAYFS_PY_LOG")
    os.environ["OVERLAYFS_PY_LOG"] = str(path)
    yield path
    if before is None:
        del os.environ["OVERLAYFS_PY_LOG"]
    else:
        os.environ["OVERLAYFS_PY_LOG"] = before


@pytest.fixture(autouse=True)
def quiet_log(
    request: pytest.FixtureRequest, daemon_log: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A warning or error in the log, here or in a daemon, fails the test that did not expect it."""
    start = daemon_log.stat().st_size
    yield
    expected = [mark.args[0] for mark in request.node.iter_markers("expects_log")]
    said = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.WARNING
    ]
    said += _trouble(daemon_log, start)
    unexpected = [line for line in said if not any(re.search(e, line) for e in expected)]
    if unexpected:
        pytest.fail("unexpected in the log:\n" + "\n".join(unexpected), pytrace=False)


def _trouble(path: Path, start: int) -> list[str]:
    """Lines that report trouble; a traceback comes whole, as part of its line."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="backslashreplace").splitlines()
    found: list[str] = []
    inside = False
    for line in lines:
        starts_record = re.match(r"\d{4}-\d\d-\d\d ", line) is not None
        if _TROUBLE.search(line) and (starts_record or not inside):
            found.append(line)
            inside = True
        elif inside and not starts_record:
            found[-1] += "\n" + line
        else:
            inside = False
    return found
