"""A checkout of a real image is file by file what a mount of it shows and what umoci unpacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.conftest import Ours, archive
from tests.images.test_unpacked import unpacked
from tests.images.trees import differences, read


@pytest.mark.slow
@pytest.mark.parametrize("name", ["odd", "podman"])
def test_as_mounted_and_as_umoci_unpacks_it(name: str, ours: Ours, tmp_path: Path) -> None:
    ours.layerstore("import", f"oci-archive:{archive(name)}", "--tag", name)
    ours.layerstore("checkout", name, tmp_path / "out")
    found = read(tmp_path / "out")
    assert differences(found, read(ours.mount(name, "--ro"))) == []
    assert differences(found, read(unpacked(archive(name), tmp_path))) == []
