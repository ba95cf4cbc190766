"""The kernel's overlayfs against the model: what proves the model, and the harness with it."""

from __future__ import annotations

import pytest

from tests.model.machine import run_machine
from tests.model.runs import AS_THE_KERNEL, makers

pytestmark = pytest.mark.mount


def test_the_kernel_does_what_the_model_says(scratch: str, seed: int) -> None:
    assert run_machine(makers(["kernel"], scratch), AS_THE_KERNEL, 2000, seed) >= 2000
