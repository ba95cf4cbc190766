"""The kernel's overlayfs against the model: what proves the model, and the harness with it."""

from __future__ import annotations

import pytest

from tests.model.machine import run_machine
from tests.model.runs import AS_THE_KERNEL, makers
from tests.model.scratch import cannot_mount, scratch_directory

pytestmark = pytest.mark.skipif(bool(cannot_mount()), reason=str(cannot_mount()))


def test_the_kernel_does_what_the_model_says() -> None:
    with scratch_directory() as scratch:
        assert run_machine(makers(["kernel"], scratch), AS_THE_KERNEL, 2000) >= 2000
