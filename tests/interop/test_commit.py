"""An upper that was committed shows, as an image, the tree that its mount showed."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layerstore.commit.committing import Committed, commit
from layerstore.commit.config import Description
from layerstore.errors import StoreError
from layerstore.store import Image, Store
from tests.interop import same
from tests.interop.same import Tree
from tests.interop.stack import FUSE_OVERLAYFS, KERNEL, OURS, Stack
from tests.interop.test_trusted import KERNEL_OPTIONS, Place
from tests.layerstore.stores import litter, problems
from tests.model.compare import Disagreement
from tests.model.generate import op
from tests.model.layers import Layer
from tests.model.mounted import Mounted, unmount
from tests.model.mounts import Kernel, Ours, Served
from tests.model.runs import AS_THE_KERNEL, Plan, plan

OPERATIONS = 60
RUNS = 6


class KernelWithMetacopy(Kernel):
    kernel_options = b"redirect_dir=on,index=on,xino=auto,metacopy=on"


class OursWithMetacopy(Ours):
    options = b"metacopy=on"

    def stop(self) -> None:
        Served.stop(self)  # what is in the log is the affair of the tests of the mount


@dataclass
class Images:
    """A store below `place`, and images in it from directories of layers."""

    place: Path
    store: Store
    empty: Image

    def commit(self, base: Image, layers: list[bytes], work: bytes | None = None) -> Image:
        """`layers` (top first) one by one over `base`; `work` is the top one's."""
        for number, path in reversed(list(enumerate(layers))):
            what = Committed(path, None if number else work, base.id, f"layer {number}")
            base = commit(self.store, what, Description(time.time_ns(), "test"))
        return base

    def shown(self, image: Image) -> Tree:
        """What our read-only mount of an image shows."""
        mountpoint = self.place / "shown"
        mountpoint.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "overlayfs_py", "mount", "--ro", "--root"]
        command += [os.fsdecode(self.store.root), image.id, os.fspath(mountpoint)]
        subprocess.run(command, check=True)
        try:
            return same.seen(os.fsencode(mountpoint))
        finally:
            unmount(os.fsencode(mountpoint))

    def assert_shows(self, image: Image, expected: Tree, hint: str = "") -> None:
        found = same.differences(self.shown(image), without_sockets(expected), nlink=False)
        assert not found, "\n".join([hint, *found])
        root = Path(os.fsdecode(self.store.root))
        assert problems(root) == []
        assert litter(root) == []


class OursOnAnImage(OursWithMetacopy):
    """The same layers as an image, and the upper over that."""

    def __init__(self, images: Images, scratch: bytes, stack: list[Layer], umask: int) -> None:
        self._images = images
        super().__init__(scratch, stack, umask)

    def start(self) -> None:
        self.image = self._images.commit(self._images.empty, self.lowers)
        root = os.fsdecode(self._images.store.root)
        self.command = (*Ours.command, "mount", "--root", root, self.image.id)  # type: ignore[misc, assignment]
        super().start()

    def directories(self) -> bytes:
        return b"upperdir=%s,workdir=%s" % (self.upper, self.work)


@pytest.fixture
def images(tmpfs: Path) -> Iterator[Images]:
    nothing = tmpfs / "nothing"
    nothing.mkdir()
    with Store.open(str(tmpfs / "store"), create=True) as store:
        yield Images(tmpfs, store, store.import_image(f"dir:{nothing}", "empty"))


def without_sockets(tree: Tree) -> Tree:
    """A layer has no place for them."""
    sockets = {path for path, row in tree.items() if stat.S_ISSOCK(row.mode)}
    kept = {}
    for path, row in tree.items():
        if path not in sockets:
            rows = [
                entry for entry in row.listing or () if os.path.join(path, entry[0]) not in sockets
            ]
            kept[path] = row._replace(listing=rows)
    return kept


def stack_without_sockets(chosen: Plan) -> Plan:
    for layer in chosen.stack:
        for path in [path for path, entry in layer.items() if stat.S_ISSOCK(entry.mode)]:
            del layer[path]
    return chosen


def run(
    chosen: Plan, make: Callable[[list[Layer], int], Any], *, settle: bool
) -> tuple[Any, Tree] | None:
    """Carry a plan out; the subject, unmounted, and what it showed in the end. None where model and
    subject went different ways, which is another test's affair.
    """
    chance = random.Random(~chosen.seed)
    comparison = chosen.comparison([make])
    try:
        done = 0
        while done < OPERATIONS:
            drawn = chosen.draw(comparison.generator, chance)
            if settle or drawn.name != "rotate":
                comparison.run(drawn)
                done += 1
        if settle:
            comparison.run(op("rotate"))
        (subject,) = comparison.subjects
        assert isinstance(subject, Mounted)
        return subject, same.seen(subject.merged)
    except Disagreement:
        return None
    finally:
        comparison.end()


@pytest.mark.parametrize("kind", [KernelWithMetacopy, OursWithMetacopy])
@pytest.mark.slow
def test_random_uppers_over_directories(
    images: Images, seed: int, kind: type[KernelWithMetacopy | OursWithMetacopy]
) -> None:
    """Each layer of the stack is committed over those below it: so are redirects in a lower layer,
    and whiteouts in all their forms."""
    for number in range(RUNS):
        scratch = images.place / f"run{number}"
        scratch.mkdir()

        def make(stack: list[Layer], umask: int, scratch: Path = scratch) -> Mounted:
            return kind(os.fsencode(scratch), stack, umask)

        done = run(plan(seed + number, AS_THE_KERNEL), make, settle=True)
        if done is None:
            continue
        subject, before = done
        image = images.commit(images.empty, [subject.upper, *subject.lowers])
        images.assert_shows(image, before, f"seed {seed + number}")


@pytest.mark.slow
def test_random_uppers_over_images(images: Images, seed: int) -> None:
    """Here work/index says what the upper alone does not: names of hard links nobody has used."""
    for number in range(RUNS):
        scratch = images.place / f"run{number}"
        scratch.mkdir()

        def make(stack: list[Layer], umask: int, scratch: Path = scratch) -> Mounted:
            return OursOnAnImage(images, os.fsencode(scratch), stack, umask)

        chosen = stack_without_sockets(plan(seed + number, AS_THE_KERNEL))
        done = run(chosen, make, settle=False)
        if done is None:
            continue
        subject, before = done
        image = images.commit(subject.image, [subject.upper], subject.work)
        images.assert_shows(image, before, f"seed {seed + number}")


# --- every kind of change


WRITERS = {
    "kernel": (KERNEL, KERNEL_OPTIONS.format("on")),
    "ours": (OURS, "metacopy=on"),
    "kernel-userxattr": (KERNEL, "userxattr"),
    "ours-userxattr": (OURS, "userxattr,redirect_dir=off"),
    "ours-xattr_permissions": (OURS, "redirect_dir=off,xattr_permissions=2"),
    "fuse-overlayfs": (FUSE_OVERLAYFS, ""),
}


def changed(stack: Stack, by: str, options: str) -> tuple[bytes, Tree]:
    """Every kind of change that `by` can make; the directory it was made over, and what shows."""
    stack.write(same.stack())
    base = os.fsencode(stack.directory / "base")
    with stack.mounted(KERNEL, KERNEL_OPTIONS.format("off")) as root:
        subprocess.run(["cp", "-a", "--sparse=always", root + b"/.", base], check=True)
    stack.lowers = [Path(os.fsdecode(base))]
    stack.fresh_work()
    assert stack.upper is not None
    shutil.rmtree(stack.upper)
    stack.upper.mkdir()
    with stack.mounted(by, options) as root:
        same.change(root, all_of_it="metacopy=on" in options)
    if by == FUSE_OVERLAYFS:
        # It takes the separated names of a hard link for one file again.
        by, options = OURS, "redirect_dir=off,index=off"
    return base, without_sockets(stack.seen(by, options))


@pytest.mark.parametrize("writer", WRITERS)
def test_every_kind_of_change(place: Place, images: Images, writer: str) -> None:
    stack = place()
    directory, expected = changed(stack, *WRITERS[writer])
    base = images.store.import_image(f"dir:{os.fsdecode(directory)}", "base")
    assert stack.upper is not None
    upper = os.fsencode(stack.upper)
    image = images.commit(base, [upper])
    images.assert_shows(image, expected)
    assert images.commit(base, [upper]).layers[-1].diff_id == image.layers[-1].diff_id


@pytest.mark.parametrize("by", [KERNEL, OURS])
def test_a_mounted_upper_is_refused(tmpfs: Path, images: Images, by: str) -> None:
    stack = Stack(tmpfs / "with, comma")
    stack.lower()
    assert stack.upper is not None
    with (
        stack.mounted(by),
        pytest.raises(StoreError, match=r"is mounted( by the kernel on .*)?: unmount it first"),
    ):
        images.commit(images.empty, [os.fsencode(stack.upper)])
    images.commit(images.empty, [os.fsencode(stack.upper)])


def test_umoci_unpacks_the_same(place: Place, images: Images, tmp_path: Path) -> None:
    stack = place()
    directory, expected = changed(stack, *WRITERS["kernel"])
    base = images.store.import_image(f"dir:{os.fsdecode(directory)}", "base")
    assert stack.upper is not None
    image = images.commit(base, [os.fsencode(stack.upper)])
    made = f"{tmp_path}/layout:made"
    images.store.export_image(image.id, f"oci:{made}")
    bundle = str(stack.directory / "bundle")
    subprocess.run(["umoci", "unpack", "--image", made, bundle], check=True, capture_output=True)
    found = same.seen(os.fsencode(bundle) + b"/rootfs")
    # umoci keeps what an overlay could take for a mark out of a tree.
    assert expected[b"fresh"].xattrs.pop(b"trusted.overlay.opaque") == b"y"
    assert not same.differences(found, expected, nlink=False)
