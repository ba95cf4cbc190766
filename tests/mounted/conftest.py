"""Fixtures: each module mounts every subject once; each test gets a slot of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.slots import PLACES, Slot, fill
from tests.mounted.subject import SUBJECTS, Subject

if os.geteuid() != 0 or not Path("/dev/fuse").exists():
    pytest.skip("mounting needs root and /dev/fuse", allow_module_level=True)


@pytest.fixture(scope="module", params=list(SUBJECTS))
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """Mounted, with as many slots in each place as the module has tests."""
    scratch = tmp_path_factory.mktemp(request.param)
    for directory in (scratch, *scratch.parents):
        # Other users of the tests have to get in.
        if directory.stat().st_uid == os.geteuid() and len(directory.parts) > 2:
            directory.chmod(0o755)
    made = SUBJECTS[request.param](scratch)
    count = sum(
        item.module is request.module and "slot" in item.fixturenames  # type: ignore[attr-defined]
        for item in request.session.items
    )
    for number in range(count):
        _prepare(made, number)
    made.start()
    yield made
    made.stop()


def _prepare(subject: Subject, number: int) -> None:
    for place in PLACES:
        name = f"{place}{number}"
        home = subject.upper if place == "upper" else subject.lower
        (home / name).mkdir()
        (home / name).chmod(0o755)
        fill(home / name)
        if place == "merged":
            (subject.upper / name).mkdir()
            (subject.upper / name).chmod(0o755)


@pytest.fixture(scope="module")
def _numbers() -> Iterator[int]:
    return iter(range(10**6))


@pytest.fixture(params=PLACES)
def slot(request: pytest.FixtureRequest, subject: Subject, _numbers: Iterator[int]) -> Slot:
    """A directory with one object of each kind (see slots)."""
    return Slot(request.param, subject.mountpoint / f"{request.param}{next(_numbers)}")


@pytest.fixture
def fresh(subject: Subject, request: pytest.FixtureRequest) -> Path:
    """An empty directory made through the mount."""
    number = request.config.stash.setdefault(_FRESH, iter(range(10**6)))
    path = subject.mountpoint / f"fresh{next(number)}"
    path.mkdir()
    path.chmod(0o755)
    return path


_FRESH: pytest.StashKey[Iterator[int]] = pytest.StashKey()


@pytest.fixture
def mounted(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[type[Subject], Callable[[Subject], None]], Subject]]:
    """Mounts a subject for one test, after `prepare` has laid out its layers."""
    running: list[Subject] = []

    def mount(
        kind: type[Subject], prepare: Callable[[Subject], None], read_only: bool = False
    ) -> Subject:
        made = kind(tmp_path, read_only)
        prepare(made)
        made.start()
        running.append(made)
        return made

    yield mount
    for made in running:
        made.stop()
