"""A mount of ours and one of the kernel's side by side, and one of an image, all against the model."""

from __future__ import annotations

import pytest

from tests.model.machine import run_machine
from tests.model.runs import OVER_IMAGES, SERVED, makers

pytestmark = [pytest.mark.mount, pytest.mark.slow]

OPERATIONS = 10_000
OPERATIONS_OVER_IMAGES = 4000


def test_a_mount_does_what_the_kernel_and_the_model_do(scratch: str, seed: int) -> None:
    make = makers(["kernel", "mounted"], scratch)
    assert run_machine(make, SERVED, OPERATIONS, seed, steps=400) >= OPERATIONS


def test_a_mount_of_an_image_does_what_the_model_does(scratch: str, seed: int) -> None:
    make = makers(["imaged"], scratch)
    assert run_machine(make, OVER_IMAGES, OPERATIONS_OVER_IMAGES, seed, steps=400) >= (
        OPERATIONS_OVER_IMAGES
    )
