"""What an import takes in memory does not grow with the image. `tools/figures memory` has a million entries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.layerstore.archives import Item, folder, hard_link, layout_of, tar_of

ENTRIES = 60_000
PER_ENTRY_MAX = 450
"""Bytes; 680 where a layer's tree is in memory, and most of the 370 and 200 that are left are caches, full by then."""

_PROGRAM = """
import sys
from layerstore.oci import layer
from layerstore.store import Store
layer.MEMORY_MAX = 2 << 20
with Store.open(sys.argv[1], create=True) as store:
    store.import_image(sys.argv[2], "image")
# ru_maxrss also knows what the process had before its exec: this one's memory.
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def items(count: int) -> list[Item]:
    """Directories of ten: small files, hard links, and now and then an object."""
    found = []
    for number in range(count):
        name = f"usr/share/{number // 100}/{number // 10}"
        if number % 10 == 0:
            found.append(folder(name))
        elif number % 10 == 9:
            found.append(hard_link(f"{name}/f{number}", f"{name}/f{number - 1}"))
        else:
            found.append(
                Item(f"{name}/f{number}", b"%d" % number * (200 if number % 50 == 1 else 9))
            )
    return found


def peak(tmp_path: Path, layers: list[list[Item]]) -> int:
    """Bytes that an import of layers took at most."""
    name = f"{len(layers)}-{sum(map(len, layers))}"
    archive = layout_of(list(map(tar_of, layers)), compress="").archive(tmp_path / f"{name}.tar")
    arguments = [sys.executable, "-c", _PROGRAM, str(tmp_path / name), archive]
    return int(subprocess.run(arguments, check=True, capture_output=True).stdout) << 10


@pytest.mark.parametrize("layers", [1, 30])
def test_an_import(tmp_path: Path, layers: int) -> None:
    least = peak(tmp_path, [items(500)])
    entries = items(ENTRIES)
    step = ENTRIES // layers
    most = peak(tmp_path, [entries[at : at + step] for at in range(0, ENTRIES, step)])
    assert most - least < ENTRIES * PER_ENTRY_MAX
