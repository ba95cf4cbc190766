"""`tools/fuzz store`: damaged tars, archives, layouts, tables of contents and indexes to their readers, and to whole
imports.

What comes out is a `StoreError` of one line that names the file, or a result, within time and memory; an import that
failed has left nothing in the store, and what was imported is in order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from layerstore.errors import StoreError
from layerstore.index.reader import Index
from layerstore.oci.limits import Limits
from layerstore.oci.tar import TarReader
from layerstore.store import Store
from tests.layerstore import fuzz_toc, mutate
from tests.layerstore.archives import (
    Item,
    Layout,
    docker_archive,
    gzipped,
    layout_of,
    tar_of,
    zstandard_of,
)
from tests.layerstore.stores import BASE, TOP, litter, problems
from tests.layerstore.trees import read_all

SECONDS_MAX = 20
"""For one input, on a busy machine."""
MEMORY_MAX = 512 << 20
"""Bytes of address space more than at the start."""
LIMITS = Limits(layer_bytes=32 << 20, entries=20_000)
FRESH_EVERY = 200
"""Imports into one store; then it is checked, and the next has another."""


class TooLong(BaseException):
    """An input that takes longer than it may."""


class Found(Exception):
    """What should not be: the text says what."""


class Fuzzer:
    """Args: home: an empty directory. `outcomes` counts what came of the inputs, by target."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.chance = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self._stores = 0
        self._imports = 0
        self._root = home / "store-0"
        self._index = self._good_index()
        self._objects = home / "good" / "objects"
        self.targets: dict[str, Callable[[], None]] = {
            "tar": self.tar,
            "index": self.index,
            "toc": self.toc,
            "import": self.image,
        }

    def one(self, target: str) -> None:
        """One input. Raises what it should not."""
        try:
            self.targets[target]()
        except StoreError as error:
            message = str(error)
            if "\n" in message or (
                not message.startswith(str(self.home)) and "fuzzed" not in message
            ):
                raise Found(f"a message that names no file, or takes lines: {message!r}") from error
            outcome = "refused"
        else:
            outcome = "taken"
        self.outcomes[f"{target} {outcome}"] += 1

    # Targets

    def tar(self) -> None:
        reader = TarReader(_Bytes(mutate.tar(self.chance)), "fuzzed")
        for entry in reader:
            if stat.S_ISREG(entry.kind) and not entry.hard_link and self.chance.random() < 0.9:
                if entry.segments is None:
                    size = sum(map(len, reader.data(entry)))
                    if size != entry.size:
                        raise Found(f"{size} bytes of {entry.size}")
                else:
                    for _ in reader.segments(entry):
                        pass

    def index(self) -> None:
        data = bytearray(self._index)
        for _ in range(self.chance.randrange(1, 13)):
            mutate.flip(data, self.chance)
        if self.chance.random() < 0.3:
            mutate.cut(data, self.chance)
        path = self.home / "index"
        path.write_bytes(data)
        with Index(os.fsencode(path)) as index:
            read_all(index, b"etc")
            for _ in range(3):
                index.stat(self.chance.getrandbits(self.chance.choice((8, 16, 40, 64))))

    def toc(self) -> None:
        fuzz_toc.one(self.chance, self._objects, LIMITS)

    def image(self) -> None:
        """Import into a store that has an image already."""
        if self._imports % FRESH_EVERY == 0:
            self._next_store()
        self._imports += 1
        source = self._source()
        with Store.open(str(self._root), create=True) as store:
            before = {image.id for image in store.images()}
            try:
                store.import_image(source, "fuzzed", limits=LIMITS)
            except StoreError:
                after = {image.id for image in store.images()}
                left = litter(self._root)
                if after != before or left:
                    raise Found(f"a failed import left {left or after - before}") from None
                raise

    def _next_store(self) -> None:
        self.finish()
        shutil.rmtree(self._root, ignore_errors=True)
        self._stores += 1
        self._root = self.home / f"store-{self._stores}"

    def finish(self) -> None:
        """Look over what was imported."""
        if self._root.exists():
            wrong = problems(self._root) + litter(self._root)
            if wrong:
                raise Found(f"after {self._imports} imports: {wrong}")

    # Inputs of imports

    def _source(self) -> str:
        chance = self.chance
        place = self.home / "source"
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        kind = chance.choice(("tar", "layout", "archive", "docker"))
        layers = [mutate.tar(chance)] if chance.random() < 0.7 else [BASE, mutate.tar(chance)]
        if kind == "tar":
            place.write_bytes(self._packed(layers[-1]))
            return f"tar:{place}"
        if kind == "docker":
            return self._docker(place, layers)
        layout = layout_of(layers, compress=chance.choice(("gzip", "zstd", "")))
        if chance.random() < 0.4:
            self._spoil(layout)
        if kind == "layout":
            return layout.directory(place)
        source = layout.archive(place)
        self._damage(place)
        return source

    def _packed(self, data: bytes) -> bytes:
        pack: Callable[[bytes], bytes] = self.chance.choice((bytes, gzipped, zstandard_of))
        packed = bytearray(pack(data))
        if packed and self.chance.random() < 0.3:
            self.chance.choice((mutate.cut, mutate.flip))(packed, self.chance)
        return bytes(packed)

    def _docker(self, place: Path, layers: list[bytes]) -> str:
        if self.chance.random() < 0.5:
            source = docker_archive(place, layers)
            self._damage(place)
            return source
        manifest = mutate.document(
            [{"Config": "c", "RepoTags": ["a:b"], "Layers": ["l"]}], self.chance
        )
        config = mutate.document({"rootfs": {"diff_ids": []}}, self.chance)
        items = {"manifest.json": manifest, "c": config}
        files = [Item(name, json.dumps(value).encode()) for name, value in items.items()]
        place.write_bytes(tar_of([*files, Item("l", TOP)]))
        return f"docker-archive:{place}"

    def _spoil(self, layout: Layout) -> None:
        """Change a document of a layout, and the digests that lead to it, so that it is read."""
        chance = self.chance
        (descriptor,) = layout.index["manifests"]
        manifest: dict[str, Any] = json.loads(layout.blobs[descriptor["digest"]])
        what = chance.choice(("index", "manifest", "config", "blob"))
        if what == "blob":
            digest = chance.choice(list(layout.blobs))
            blob = bytearray(layout.blobs[digest])
            chance.choice((mutate.cut, mutate.flip))(blob, chance)
            layout.blobs[digest] = bytes(blob)
            return
        if what == "index":
            layout.index = mutate.document(layout.index, chance)
            return
        if what == "config":
            config = json.loads(layout.blobs[manifest["config"]["digest"]])
            changed = mutate.document(config, chance)
            manifest["config"] = layout.add_json(changed, manifest["config"]["mediaType"])
        else:
            manifest = mutate.document(manifest, chance)
        layout.index["manifests"] = [layout.add_json(manifest, descriptor["mediaType"])]

    def _damage(self, archive: Path) -> None:
        if self.chance.random() < 0.3:
            data = bytearray(archive.read_bytes())
            self.chance.choice((mutate.cut, mutate.flip))(data, self.chance)
            archive.write_bytes(data)

    def _good_index(self) -> bytes:
        root = self.home / "good"
        archive = self.home / "good.tar"
        with Store.open(str(root), create=True) as store:
            image = store.import_image(layout_of([*mutate.SEEDS[:3]]).archive(archive))
            return Path(os.fsdecode(image.image_index)).read_bytes()


class _Bytes:
    """A source as a decompressor is: some bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += len(found)
        return found


@contextmanager
def bounded() -> Iterator[None]:
    """Inputs within may take so much time and memory."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MAX, before[1]))
    handler = signal.signal(signal.SIGALRM, _too_long)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong


def run(fuzzer: Fuzzer, target: str, inputs: int) -> str:
    """Put in so many inputs; what one of them did that it should not, with the way there, or ""."""
    with bounded():
        for number in range(inputs):
            signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
            try:
                fuzzer.one(target)
            except (Exception, TooLong):
                return f"{target}, input {number}:\n{traceback.format_exc()}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            fuzzer.finish()
        except Found as found:
            return str(found)
    return ""


SHARES = {"tar": 0.42, "index": 0.4, "toc": 0.15, "import": 0.03}
"""Of the inputs, so that each takes about the same time."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/fuzz store", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--target", choices=SHARES, help="default: all of them")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    shares = {chosen.target: 1.0} if chosen.target else SHARES
    with tempfile.TemporaryDirectory(dir=chosen.directory) as home:
        fuzzer = Fuzzer(Path(home), chosen.seed)
        wrong = ""
        for target, share in shares.items():
            wrong = wrong or run(fuzzer, target, round(chosen.inputs * share))
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(fuzzer.outcomes.items()))
    print(
        f"{fuzzer.outcomes.total()} inputs in {time.monotonic() - began:.0f} s (seed {chosen.seed}): {outcomes}; "
        f"{'one went wrong' if wrong else 'nothing else came out, and nothing was left'}"
    )
    if wrong:
        print(wrong)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
