"""The union without a mount against the model, and the end of the world at any step."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import pytest

from overlayfs_py.overlay.config import Config
from tests.model.crash import crash_run
from tests.model.machine import run_machine
from tests.model.runs import ALL, AS_THE_KERNEL, maker, makers, plan
from tests.model.verbs import Verbs

# Layers hold devices and trusted.* xattrs, and lie on a tmpfs of the test's own.
pytestmark = [pytest.mark.mount, pytest.mark.slow]

CRASH_OPERATIONS = 4000
CRASH_LENGTH = 200


def test_the_union_does_what_the_model_says(scratch: str, seed: int) -> None:
    assert run_machine(makers(["verbs"], scratch), ALL, 10_000, seed) >= 10_000


@pytest.mark.parametrize(
    "config",
    [
        Config(metacopy=True),
        Config(volatile=True),
        Config(redirect_dir="follow", index=True),
        Config(xino="on", caching=False),
    ],
    ids=["metacopy", "volatile", "follow", "no caching"],
)
def test_the_union_does_it_with_other_options(config: Config, scratch: str, seed: int) -> None:
    rules = ALL
    if config.redirect_dir != "on":
        rules = replace(ALL, features=replace(ALL.features, rename_directories=False))
    configured = type("Configured", (Verbs,), {"config": config})
    assert run_machine([maker(configured, scratch)], rules, 1000, seed) >= 1000


def test_a_crash_at_any_change_leaves_the_old_tree_or_the_new(scratch: str, seed: int) -> None:
    crashes = 0
    for run in range(CRASH_OPERATIONS // CRASH_LENGTH):
        this = plan(seed + run, AS_THE_KERNEL)
        directory = os.fsencode(tempfile.mkdtemp(dir=scratch))
        crashes += crash_run(this, directory, CRASH_LENGTH, kernel=run % 4 == 0)
    assert crashes > CRASH_OPERATIONS // 40
