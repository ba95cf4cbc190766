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
    for place in PLACES:
        for number in range(_tests_in(request, place)):
            _prepare(made, place, number)
    made.start()
    yield made
    made.stop()


def _tests_in(request: pytest.FixtureRequest, place: str) -> int:
    """How many tests of this module take a slot in `place` of this subject."""
    found = 0
    for item in request.session.items:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if item.module is request.module and parameters.get("subject") == request.param:
            found += parameters.get("slot") == place
    return found


def _prepare(subject: Subject, place: str, number: int) -> None:
    name = f"{place}{number}"
    home = subject.upper if place == "upper" else subject.lower
    (home / name).mkdir()
    (home / name).chmod(0o755)
    fill(home / name)
    if place == "merged":
        (subject.upper / name).mkdir()
        (subject.upper / name).chmod(0o755)


@pytest.fixture(scope="module")
def _numbers(subject: Subject) -> dict[str, Iterator[int]]:
    return {place: iter(range(10**6)) for place in PLACES}


@pytest.fixture(params=PLACES)
def slot(
    request: pytest.FixtureRequest, subject: Subject, _numbers: dict[str, Iterator[int]]
) -> Slot:
    """A directory with one object of each kind (see slots)."""
    number = next(_numbers[request.param])
    return Slot(request.param, subject.mountpoint / f"{request.param}{number}")


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
