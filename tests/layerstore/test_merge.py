"""The merged index of an image is what the kernel's overlayfs shows over its layers' indexes."""

from __future__ import annotations

import io
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore import marks
from layerstore.index.merge import merge, write_merged
from layerstore.index.reader import Index, Inline
from layerstore.index.tree import Node, directory
from tests.layerstore.test_index import image, kernel_can_mount, mounted

NAMES = st.sampled_from([b"a", b"b", b"c"])


@st.composite
def layers(draw: st.DrawFn, depth: int = 3, *, implied: bool = False) -> Node:
    """A layer with whiteouts and opaque directories."""
    node = Node(stat.S_IFDIR | draw(st.sampled_from([0o755, 0o700])), uid=draw(st.integers(0, 9)))
    node.mtime_ns = draw(st.integers(0, 2**60))
    assert node.children is not None
    if draw(st.integers(0, 3)) == 0:
        node.xattrs[marks.TRUSTED.opaque] = b"y"
    elif implied and draw(st.booleans()):
        node.xattrs[marks.IMPLIED] = b""
    shared: Node | None = None
    for name in draw(st.sets(NAMES)):
        kind = draw(st.integers(0, 3 if depth else 2))
        if kind == 3:
            child = draw(layers(depth=depth - 1, implied=implied))
        elif kind == 2:
            child = Node(stat.S_IFCHR)
        elif kind == 1 and shared is not None:
            child = shared
        else:
            child = shared = Node(stat.S_IFREG | 0o644)
            data = draw(st.binary(max_size=8))
            child.set_content(Inline(data), len(data))
            child.xattrs = {b"user.x": data}
        node.children[name] = child
    return node


Rows = dict[bytes, tuple[Any, ...]]


def of_index(index: Index) -> Rows:
    """What is in an index, by path."""
    rows: Rows = {}

    def visit(path: bytes, nid: int) -> None:
        status = index.stat(nid)
        content: Any = None
        if stat.S_ISREG(status.mode):
            content = index.content(nid)
            assert isinstance(content, Inline)
            content = content.data
        rows[path] = (status.mode, status.uid, status.mtime_ns, content, index.xattrs(nid))
        if stat.S_ISDIR(status.mode):
            for name, child, _ in index.entries(nid):
                visit(path + b"/" + name, child)

    visit(b"", index.root_nid)
    return rows


def of_mount(root: bytes) -> Rows:
    """What a mounted tree shows, by path."""
    rows: Rows = {}

    def visit(path: bytes) -> None:
        where = root + path
        status = os.lstat(where)
        content = None
        if stat.S_ISREG(status.st_mode):
            with open(where, "rb") as file:
                content = file.read()
        names = [os.fsencode(name) for name in os.listxattr(where, follow_symlinks=False)]
        xattrs = {name: os.getxattr(where, name, follow_symlinks=False) for name in names}
        rows[path] = (status.st_mode, status.st_uid, status.st_mtime_ns, content, xattrs)
        if stat.S_ISDIR(status.st_mode):
            for name in os.listdir(where):
                # In a directory that only one layer has, the kernel lists whiteouts.
                if os.path.lexists(where + b"/" + name):
                    visit(path + b"/" + name)

    visit(b"")
    return rows


@pytest.fixture
def kernel_mounts(tmp_path: Path) -> None:
    if reason := kernel_can_mount(tmp_path):
        pytest.skip(reason)


@pytest.mark.usefixtures("kernel_mounts")
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(layers(), min_size=2, max_size=4))
def test_as_the_kernel_stacks_them(tmp_path: Path, stack: list[Node]) -> None:
    # The kernel takes the attributes of a merged root from the top layer, and so do we.
    with ExitStack() as opened:
        indexes, lowers = [], []
        for number, root in enumerate(stack):
            root.xattrs.clear()  # the kernel never looks for an opaque mark on the root
            path = tmp_path / f"layer-{number}"
            path.write_bytes(image(root))
            indexes.append(opened.enter_context(Index(os.fsencode(path))))
            arguments = ("-t", "erofs", "-o", "ro", str(path))
            lowers.append(opened.enter_context(mounted(tmp_path / f"e-{number}", *arguments)))
        merged = tmp_path / "merged"
        merged.write_bytes(image(merge(indexes)))
        lowerdir = ":".join(map(str, reversed(lowers)))
        arguments = ("-t", "overlay", "overlay", "-o", f"ro,lowerdir={lowerdir}")
        shown = opened.enter_context(mounted(tmp_path / "m", *arguments))
        index = opened.enter_context(Index(os.fsencode(merged)))
        assert of_index(index) == of_mount(os.fsencode(shown))


def merged(tmp_path: Path, *roots: Node) -> Rows:
    """The merged tree of layers, bottom first."""
    with ExitStack() as opened:
        indexes = []
        for number, root in enumerate(roots):
            path = tmp_path / f"layer-{number}"
            path.write_bytes(image(root))
            indexes.append(opened.enter_context(Index(os.fsencode(path))))
        path = tmp_path / "merged"
        path.write_bytes(image(merge(indexes)))
        return of_index(opened.enter_context(Index(os.fsencode(path))))


def test_a_directory_on_the_way_takes_the_attributes_below(tmp_path: Path) -> None:
    lower, middle, upper = directory(0o711, uid=7), directory(), directory()
    assert lower.children is not None
    assert upper.children is not None
    lower.children[b"d"] = directory(0o700, uid=9)
    upper.children[b"d"] = directory()
    for node in (middle, upper, upper.children[b"d"]):
        node.xattrs[marks.IMPLIED] = b""
    rows = merged(tmp_path, lower, middle, upper)
    assert rows[b""][:2] == (stat.S_IFDIR | 0o711, 7)
    assert rows[b"/d"][:2] == (stat.S_IFDIR | 0o700, 9)
    assert rows[b"/d"][4] == {}


def test_hard_links_stay_within_their_layer(tmp_path: Path) -> None:
    lower, upper = directory(), directory()
    assert lower.children is not None
    assert upper.children is not None
    node = Node(stat.S_IFREG | 0o600)
    lower.children[b"a"] = lower.children[b"b"] = lower.children[b"c"] = node
    upper.children[b"b"] = Node(stat.S_IFREG | 0o644)
    merged(tmp_path, lower, upper)
    with Index(os.fsencode(tmp_path / "merged")) as index:
        nids = [index.lookup(index.root_nid, name) for name in (b"a", b"b", b"c")]
        assert nids[0] == nids[2] != nids[1]
        assert nids[0] is not None
        assert index.stat(nids[0]).nlink == 2


def test_an_opaque_root_hides_everything_below(tmp_path: Path) -> None:
    lower, upper = directory(), directory()
    assert lower.children is not None
    lower.children[b"a"] = Node(stat.S_IFREG)
    upper.xattrs[marks.TRUSTED.opaque] = b"y"
    assert set(merged(tmp_path, lower, upper)) == {b""}


def test_no_layers() -> None:
    assert [list(listing) for listing in merge([]).listings()] == [[]]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(layers(depth=2, implied=True), min_size=3, max_size=9), st.sampled_from([2, 3, 4]))
def test_some_layers_at_a_time(tmp_path: Path, stack: list[Node], open_max: int) -> None:
    """With fewer descriptors than layers the image has the same index."""
    paths = []
    for number, root in enumerate(stack):
        paths.append(os.fsencode(tmp_path / f"layer-{number}"))
        Path(os.fsdecode(paths[-1])).write_bytes(image(root))
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    file = io.BytesIO()
    write_merged(paths, file, bytes(scratch), open_max)
    assert not list(scratch.iterdir())
    with ExitStack() as opened:
        assert file.getvalue() == image(merge([opened.enter_context(Index(p)) for p in paths]))
