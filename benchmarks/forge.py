"""Builds the lower layers that workloads need, once a run for each base, and lists of names.

Everything is made from numbers and a fixed seed, so that two runs measure the same trees.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import commands, probe
from benchmarks.errors import CannotMeasure
from benchmarks.mounts import Layers, copy_merged

SEED = 2024
SHARE_OF_FREE_SPACE = 0.8


@dataclass(frozen=True, slots=True)
class Site:
    """Where one set of layers is being built."""

    forge: "Forge"
    directory: Path

    def layer(self, name: str) -> Path:
        """Makes the directory of one layer."""
        path = self.directory / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def flat(self, names: Sequence[str], size: int, inside: str = "d", layer: str = "0") -> None:
        """Fills directory `inside` of a layer with files of `size` bytes."""
        directory = self.layer(layer) / inside
        directory.mkdir(parents=True, exist_ok=True)
        self.forge.fill(directory, names, size)

    def spread(self, names: Sequence[str], layers: int, size: int = 0) -> list[str]:
        """Deals `names` out over `layers`, all in directory `d`, which thereby merges them all."""
        for number in range(layers):
            self.flat(names[number::layers], size, layer=str(number))
        return [str(number) for number in range(layers)]


class Forge:
    """Owns the layers below one directory for each base, and the lists of names."""

    def __init__(self, binary: Path, lists: Path) -> None:
        self.binary = binary
        self._lists = lists
        self._lists.mkdir(exist_ok=True)
        self._layers: dict[Path, Layers] = {}
        self._merged: dict[Path, Path] = {}
        self._names: dict[tuple[str, ...], Path] = {}

    def layers(self, base: Path, key: str, space: int, lay: Callable[[Site], list[str]]) -> Layers:
        """The layers `key` on `base`, built by `lay` the first time.

        Raises CannotMeasure where `space` bytes are too many for the base.
        """
        directory = base / "layers" / key.replace("/", ",")
        if directory not in self._layers:
            free = int(shutil.disk_usage(base).free * SHARE_OF_FREE_SPACE)
            if space > free:
                raise CannotMeasure(
                    f"needs {space >> 20} MiB, {base} has {free >> 20} MiB to spare"
                )
            directory.mkdir(parents=True)
            try:
                names = lay(Site(self, directory))
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
            commands.run(["sync", "-f", directory])  # the kernel drops no inode that is not written
            self._layers[directory] = Layers(directory, tuple(names))
        return self._layers[directory]

    def merged(self, layers: Layers) -> Path:
        """A plain copy of `layers`, laid over each other, for subjects that change nothing."""
        target = layers.directory.with_name(layers.directory.name + ".merged")
        if target not in self._merged.values():
            copy_merged(layers, target)
            commands.run(["sync", "-f", target])
            self._merged[layers.directory] = target
        return target

    def fill(self, directory: Path, names: Sequence[str], size: int) -> None:
        """Makes files of `size` bytes in `directory`. Raises CannotMeasure if that fails."""
        argv = probe.command_line(self.binary, "make", directory, self.names(names), size=size)
        finished = commands.run(argv)
        probe.read_output(finished.output, finished.status)

    def names(self, names: Sequence[str]) -> Path:
        """A file with `names` in this order, as the helper reads them; the same list, the same file."""
        key = tuple(names)
        if key not in self._names:
            path = self._lists / f"{len(self._names)}.names"
            path.write_bytes(b"".join(name.encode() + b"\0" for name in names))
            self._names[key] = path
        return self._names[key]


def numbered(count: int, prefix: str = "f") -> list[str]:
    """f000000, f000001, ..."""
    return [f"{prefix}{number:06d}" for number in range(count)]


def shuffled(names: Sequence[str], at_most: int | None = None) -> list[str]:
    """The same names in an order that no readahead can guess, or only so many of them."""
    mixed = list(names)
    random.Random(SEED).shuffle(mixed)
    return mixed[:at_most]
