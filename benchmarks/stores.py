"""Programs that keep images, each behind the same few verbs, driven by their command lines.

`layerstore` comes with our own subject; skopeo (into containers/storage, which podman uses) and
umoci are subjects of their own; for the plain directory tar unpacks one layer after another.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import commands
from benchmarks.commands import Finished
from benchmarks.errors import CannotMeasure
from benchmarks.family.archives import layer_blobs
from benchmarks.subjects import PLAIN, STORE, Spec


def takes(spec: Spec) -> bool:
    """Whether a subject can keep images at all."""
    return spec.kind in (PLAIN, STORE) or is_ours(spec)


def is_ours(spec: Spec) -> bool:
    """Whether it is overlayfs-py, which has a store beside it."""
    return Path(spec.program).name == "overlayfs-py"


@dataclass(frozen=True, slots=True)
class Store:
    """An empty store of one subject below `directory`, which exists."""

    spec: Spec
    directory: Path

    @property
    def _name(self) -> str:
        return self.spec.kind if self.spec.kind == PLAIN else Path(self.spec.program).name

    def layerstore(self, *words: str) -> list[str]:
        """Our own store's command line. Raises CannotMeasure for a subject without it."""
        if not is_ours(self.spec):
            raise CannotMeasure(f"{self.spec.label} has no such command")
        program = str(Path(self.spec.program).with_name("layerstore"))
        return [program, "--root", str(self.directory), *words]

    def take_in(self, layout: Path, tag: str, *, keep_blobs: bool = False) -> list[Finished]:
        """Imports `tag` of an OCI layout, with the blobs of its layers if ours is told to keep them.

        Raises CannotMeasure where it fails.
        """
        if is_ours(self.spec):
            more = ["--keep-blobs"] if keep_blobs else []
            argvs = [self.layerstore("import", f"oci:{layout}:{tag}", "--tag", tag, *more)]
        elif self._name == "skopeo":
            place = f"[overlay@{self.directory}/root+{self.directory}/run]"
            target = f"containers-storage:{place}localhost/benchmark:{tag}"
            words = ["--insecure-policy", "--tmpdir", str(self.directory), "copy", "-q"]
            argvs = [[self.spec.program, *words, f"oci:{layout}:{tag}", target]]
        elif self._name == "umoci":
            bundle = str(self.directory / tag)
            argvs = [[self.spec.program, "unpack", "--image", f"{layout}:{tag}", bundle]]
        else:
            tree = self.directory / tag
            tree.mkdir()
            blobs = layer_blobs(layout, tag)
            argvs = [["tar", "-xzf", str(blob), "-C", str(tree)] for blob in blobs]
        return [commands.must(commands.run(argv, watch_memory=True)) for argv in argvs]

    def disk_bytes(self) -> int:
        """What the store takes up on the file system, hard links counted once."""
        seen = set()
        total = 0
        for root, directories, files in os.walk(self.directory):
            for name in [*directories, *files]:
                status = os.lstat(os.path.join(root, name))
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
        return total


def kept(
    spec: Spec, layout: Path, tags: Sequence[str], parent: Path, *, keep_blobs: bool = False
) -> Store:
    """The subject's store below `parent` with some images in it, filled the first time."""
    store = Store(spec, parent / spec.label)
    if not store.directory.exists():
        store.directory.mkdir(parents=True)
        for tag in tags:
            store.take_in(layout, tag, keep_blobs=keep_blobs)
    return store
