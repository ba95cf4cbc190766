"""The lane gives the answers that Python gives, and knows nothing any more when the kernel has forgotten all."""

from __future__ import annotations

import os
import random
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from layerstore.errors import IndexCorrupt
from layerstore.index.format import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from layerstore.index.reader import Index, Inline, Object, Sparse
from layerstore.index.tree import Node
from layerstore.index.writer import write_index
from layerstore.marks import TRUSTED
from overlayfs_py.layers.image import ImageLayer
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.overlay.values import Caller, Changes
from overlayfs_py.wire.lane import compiled
from tests.layerstore.trees import trees
from tests.wire.device.client import Client, Seen
from tests.wire.device.line import Line
from tests.wire.device.unions import KINDS, union

pytestmark = pytest.mark.skipif(compiled() is None, reason="no compiled lane")

DAMAGES = 10


@contextmanager
def image_union(index: Path) -> Iterator[Overlay]:
    """A read-only union of one image without objects."""
    layer = ImageLayer(Index(str(index)), os.fsencode(index.parent), TRUSTED)
    overlay = Overlay(None, [layer], [], Config())
    try:
        yield overlay
    finally:
        overlay.close()


def seen_through(overlay: Overlay, *, laned: bool, **ways: int) -> tuple[Seen, float]:
    """A tree, and the share of the requests for it that the lane answered."""
    lane = compiled()
    if lane is not None:
        overlay.state.cookie = lane.cookie  # so that there is one order
    line = Line(overlay, laned=laned)
    try:
        client = Client(line, plus=bool(ways.get("plus", 1)), step=ways.get("step", 4096))
        seen = client.tree()
        asked = client._unique // 2
        client.forget_all()
        if line.laned is None:
            return seen, 0.0
        # Of the root Python keeps the number.
        nodes, _, files, _ = line.laned.lane.counts()
        assert (nodes, files) == (0, 0)
        assert line.dispatch.known == 1
        return seen, line.laned.lane.answered / asked
    finally:
        line.close()


def assert_same(one: Seen, other: Seen) -> None:
    assert one.keys() == other.keys()
    for path in one:
        for question in one[path].keys() | other[path].keys():
            assert one[path].get(question) == other[path].get(question), (path, question)


@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_is_the_same_with_the_lane_and_without(
    kind: str, plus: bool, tmp_path: Path
) -> None:
    with union(kind, str(tmp_path)) as overlay:
        read_only = overlay.state.upper is None
        pure, _ = seen_through(overlay, laned=False, plus=plus, step=700)
        laned, share = seen_through(overlay, laned=True, plus=plus, step=700)
    assert_same(laned, pure)
    # What an upper directory has a part in is Python's to list, and with it what is in there.
    assert share > (0.95 if read_only else 0.1)


@pytest.mark.skipif(os.geteuid() != 0, reason="labels are root's to set")
@pytest.mark.parametrize("kind", ["directories", "read-only"])
def test_a_tree_with_labels_is_the_same_and_is_the_lanes(kind: str, tmp_path: Path) -> None:
    with union(kind, str(tmp_path)) as overlay:
        for directory, names, files in os.walk(tmp_path):
            for name in ("", *names, *files):
                path = os.path.join(directory, name)
                os.setxattr(path, "security.selinux", b"label", follow_symlinks=False)
        read_only = overlay.state.upper is None
        pure, without = seen_through(overlay, laned=False)
        laned, share = seen_through(overlay, laned=True)
    assert_same(laned, pure)
    assert laned[b"/a"]["xattrs"][b"security.selinux"] == b"label"
    assert without == 0
    # What they are is asked of Python, once for each file.
    assert share > (0.7 if read_only else 0.1)


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(tree=trees(), plus=st.booleans(), step=st.sampled_from([500, 4096]))
@pytest.mark.expects_log("object .* is missing")
def test_any_image_is_the_same_with_the_lane_and_without(tree: Node, plus: bool, step: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        index = Path(directory, "index")
        with index.open("wb") as file:
            write_index(tree, file)
        with image_union(index) as overlay:
            pure, _ = seen_through(overlay, laned=False, plus=plus, step=step)
            laned, _ = seen_through(overlay, laned=True, plus=plus, step=step)
    assert_same(laned, pure)


def damaged(index: Path, chance: random.Random) -> None:
    """Change some bytes, more of them where much depends on them."""
    raw = bytearray(index.read_bytes())
    start = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE
    for _ in range(chance.choice([1, 2, 5, 20, 100])):
        at = chance.randrange(start, len(raw))
        if chance.random() < 0.5:
            at = min(len(raw) - 1, at // 32 * 32 + chance.randrange(24))
        raw[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, raw[at] ^ 1 << chance.randrange(8)])
    index.write_bytes(raw)


def sample_tree() -> Node:
    """Files of all kinds; directories of one block and of several."""
    root = Node(stat.S_IFDIR | 0o755)
    assert root.children is not None
    for number in range(3):
        below = root.children[b"dir%d" % number] = Node(stat.S_IFDIR | 0o755)
        assert below.children is not None
        below.xattrs = {b"user.a": b"1", b"trusted.overlay.opaque": b"y"}
        for kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
            for each in range(3 + 25 * number):
                node = below.children[b"name-%d-%d" % (kind, each)] = Node(kind | 0o644)
                node.xattrs = {b"user.%d" % n: b"v" * n for n in range(each % 4)}
                node.target, node.rdev = b"target" * (1 + each * 4), os.makedev(1, 3)
                if kind == stat.S_IFREG:
                    _fill(node, each)
                    below.children[b"link-%d" % each] = node
    return root


def _fill(node: Node, number: int) -> None:
    if number % 3 == 0:
        node.set_content(Inline(b"x" * 40 * number), 40 * number)
    elif number % 3 == 1:
        node.set_content(Object(b"ab/" + b"%062x" % number), 1 << 20)
    else:
        node.set_content(Sparse(10_000), 10_000)


@pytest.mark.expects_log(
    "object .* is missing|index|no progress|looked up|what the kernel was told"
)
def test_a_damaged_image_is_the_same_with_the_lane_and_without(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.getoption("hypothesis_seed"))
    chance = random.Random(seed)
    whole = tmp_path / "whole"
    with whole.open("wb") as file:
        write_index(sample_tree(), file)
    for round in range(DAMAGES):
        index = tmp_path / "index"
        index.write_bytes(whole.read_bytes())
        damaged(index, chance)
        try:
            Index(str(index)).close()
        except IndexCorrupt:
            continue
        plus = round % 2
        with image_union(index) as overlay:
            pure, _ = seen_through(overlay, laned=False, plus=plus)
            laned, _ = seen_through(overlay, laned=True, plus=plus)
        # Where the entry of a name and its inode do not agree on the type, either may be told.
        assert_same(untyped(laned), untyped(pure))


def untyped(seen: Seen) -> Seen:
    for about in seen.values():
        if isinstance(rows := about.get("listing"), list):
            about["listing"] = [row._replace(type=0) for row in rows]
    return seen


def test_a_file_with_several_names_that_an_earlier_mount_copied_up_is_the_uppers(
    tmp_path: Path,
) -> None:
    with union("directories", str(tmp_path)) as overlay:
        if not overlay.state.index_on:
            pytest.skip("no file handles here")
        found = overlay.lookup(overlay.root, b"b")
        assert found is not None
        while True:
            try:
                overlay.setattr(found.node, Changes(mode=0o604), Caller(0, 0, 0))
                break
            except Fault as fault:
                fault.work()
        del found
        seen, _ = seen_through(overlay, laned=True)
    for name in (b"/b", b"/dir/b"):
        assert stat.S_IMODE(seen[name]["attributes"][9]) == 0o604
