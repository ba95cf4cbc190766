"""What a store of ours has on disk, by what it is for."""

import os
from dataclasses import dataclass
from pathlib import Path

PARTS = ("objects", "layer indexes", "image indexes", "tar metadata", "database")
DESCRIBING = PARTS[1:]
"""All that is not content. Content in an index counts there, once for each index that has it."""


@dataclass(slots=True)
class Usage:
    """Files of one part: how many, their bytes, and the bytes of the blocks that they occupy."""

    files: int = 0
    bytes: int = 0
    blocks: int = 0


def usage(store: Path) -> dict[str, Usage]:
    """The parts of a store, and "directories", whose blocks count and whose bytes do not."""
    found = {part: Usage() for part in (*PARTS, "directories")}
    for root, directories, files in os.walk(store):
        inside = Path(root).relative_to(store)
        for name in files:
            status = os.lstat(os.path.join(root, name))
            part = found[part_of(inside / name)]
            part.files += 1
            part.bytes += status.st_size
            part.blocks += status.st_blocks * 512
        for name in directories:
            found["directories"].files += 1
            found["directories"].blocks += os.lstat(os.path.join(root, name)).st_blocks * 512
    return found


def part_of(path: Path) -> str:
    """The part that a file of a store belongs to, by its path in it."""
    top = path.parts[0]
    if top == "objects":
        return "objects"
    if path.suffix == ".tarsplit":
        return "tar metadata"
    if top == "layers":
        return "layer indexes"
    if top == "images":
        return "image indexes"
    return "database"
