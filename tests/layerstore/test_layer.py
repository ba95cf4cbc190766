"""How the entries of a layer become a tree: replacement, links, whiteouts, and what is refused."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore import marks
from layerstore.errors import SourceInvalid
from layerstore.index.reader import Inline, Object, Sparse
from layerstore.index.tree import Node
from layerstore.objects import Objects, Staging
from layerstore.oci.layer import INLINE_MAX, LayerBuilder
from layerstore.oci.tar import TarReader
from tests.layerstore.archives import Item, digest_of, folder, hard_link, symlink, tar_of
from tests.layerstore.test_tar import SPARSE, pax


def build(tmp_path: Path, archive: bytes, *, absolute_names: bool = False) -> Node:
    """The tree of a layer."""
    staging = tmp_path / "staging"
    staging.mkdir(exist_ok=True)
    objects = tmp_path / "objects"
    objects.mkdir(exist_ok=True)
    for old in staging.iterdir():
        old.unlink()
    builder = LayerBuilder(
        Staging(Objects(bytes(objects)), bytes(staging)), "layer", absolute_names=absolute_names
    )
    return builder.apply_all(TarReader(io.BytesIO(archive), "layer")).root


def at(root: Node, path: str) -> Node:
    """The node at a path; KeyError if there is none."""
    node = root
    for name in path.encode().split(b"/"):
        assert node.children is not None
        node = node.children[name]
    return node


def text(node: Node) -> bytes:
    """The content of a small file."""
    assert isinstance(node.content, Inline)
    return node.content.data


def test_content_by_size(tmp_path: Path) -> None:
    sizes = (0, 1, INLINE_MAX, INLINE_MAX + 1, (1 << 20) + 1)
    root = build(tmp_path, tar_of(Item(f"f{size}", b"z" * size) for size in sizes))
    for size in sizes:
        node = at(root, f"f{size}")
        assert node.size == size
        if size <= INLINE_MAX:
            assert text(node) == b"z" * size
        else:
            assert isinstance(node.content, Object)
            assert node.content.digest == digest_of(b"z" * size)


def test_sparse_content(tmp_path: Path) -> None:
    hole = 1 << 50  # never written, never hashed
    root = build(tmp_path, pax({b"GNU.sparse.map": b"0,0", b"GNU.sparse.size": b"%d" % hole}))
    assert at(root, "f").content == Sparse(hole)
    middle = SPARSE.index(b"middle")
    records = {
        b"GNU.sparse.map": b"0,5,%d,6" % middle,
        b"GNU.sparse.size": b"%d" % len(SPARSE),
    }
    root = build(tmp_path, pax(records, data=b"beginmiddle"))
    content = at(root, "f").content
    assert isinstance(content, Object)
    assert content.digest == digest_of(SPARSE)
    (staged,) = (tmp_path / "staging").iterdir()
    assert staged.read_bytes() == SPARSE
    assert staged.stat().st_blocks * 512 < len(SPARSE) // 2
    assert stat.S_IMODE(staged.stat().st_mode) == 0o444


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    root = build(
        tmp_path,
        tar_of(
            [
                folder("d", 0o700),
                Item("d/a", b"1"),
                folder("d", 0o711, uid=5),
                Item("f", b"old"),
                Item("f", b"new"),
                folder("was-dir"),
                Item("was-dir/x", b"x"),
                Item("was-dir", b"now a file"),
                Item("was-file"),
                folder("was-file"),
                Item("was-file/y", b"y"),
            ]
        ),
    )
    assert at(root, "d").mode == stat.S_IFDIR | 0o711
    assert at(root, "d").uid == 5
    assert text(at(root, "d/a")) == b"1"
    assert text(at(root, "f")) == b"new"
    assert text(at(root, "was-dir")) == b"now a file"
    assert text(at(root, "was-file/y")) == b"y"


def test_names_are_cleaned(tmp_path: Path) -> None:
    root = build(
        tmp_path,
        tar_of([folder("./"), Item("./a//b/./c", b"1"), Item("a/b/d", b"2"), folder("a/")]),
    )
    assert text(at(root, "a/b/c")) == b"1"
    assert text(at(root, "a/b/d")) == b"2"
    assert marks.IMPLIED not in root.xattrs
    assert marks.IMPLIED not in at(root, "a").xattrs
    assert marks.IMPLIED in at(root, "a/b").xattrs


def test_hard_links(tmp_path: Path) -> None:
    archive = tar_of(
        [
            Item("a", b"x"),
            hard_link("b", "a"),
            hard_link("d/c", "/a"),
            hard_link("a", "a"),
            symlink("s", "a"),
            hard_link("t", "s"),
            Item("a", b"replaced"),
        ]
    )
    root = build(tmp_path, archive)
    assert at(root, "b") is at(root, "d/c")
    assert at(root, "t") is at(root, "s")
    assert text(at(root, "b")) == b"x"
    assert text(at(root, "a")) == b"replaced"


def test_parents_that_are_symlinks_stay_inside(tmp_path: Path) -> None:
    root = build(
        tmp_path,
        tar_of(
            [
                folder("usr"),
                folder("usr/lib"),
                symlink("lib", "usr/lib"),
                Item("lib/x", b"1"),
                symlink("abs", "/usr/lib"),
                Item("abs/y", b"2"),
                symlink("usr/up", "../../../../../usr"),
                Item("usr/up/z", b"3"),
            ]
        ),
    )
    assert text(at(root, "usr/lib/x")) == b"1"
    assert text(at(root, "usr/lib/y")) == b"2"
    assert text(at(root, "usr/z")) == b"3"
    assert stat.S_ISLNK(at(root, "lib").mode)


def test_a_symlink_that_replaces_a_parent_is_followed(tmp_path: Path) -> None:
    root = build(
        tmp_path,
        tar_of(
            [
                folder("a"),
                Item("a/1"),
                folder("b"),
                symlink("a", "b"),
                Item("a/2"),
            ]
        ),
    )
    assert at(root, "b/2")
    assert stat.S_ISLNK(at(root, "a").mode)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Item("../etc/passwd")], "leads upwards"),
        ([Item("a/../../b")], "leads upwards"),
        ([Item("/etc/passwd")], "absolute"),
        ([folder("/")], "absolute"),
        ([hard_link("a", "../../etc/shadow")], "leads upwards"),
        ([hard_link("a", "missing")], "not in the layer before"),
        ([hard_link("a", "b"), Item("b")], "not in the layer before"),
        ([folder("d"), hard_link("a", "d")], "is a directory"),
        ([hard_link("a", "")], "cannot be"),
        ([symlink("out", "/etc"), hard_link("a", "out/shadow")], "not in the layer before"),
        ([symlink("out", "../../etc"), Item("out/shadow")], "symlink to nothing"),
        ([symlink("a", "b"), symlink("b", "a"), Item("a/x")], "in a circle"),
        ([Item("f"), Item("f/x")], "not a directory"),
        ([Item(".")], "must be a directory"),
        ([Item("n" * 256)], "256 bytes"),
        ([Item("/".join(["d" * 200] * 25))], "cannot be"),
        ([symlink("s", "")], "symlink to 0 bytes"),
        ([symlink("s", "t" * 4096)], "symlink to 4096 bytes"),
        ([Item("d", None, tarfile.CHRTYPE, device=(4096, 1))], "device number"),
        ([Item(".wh.")], "no name"),
        ([Item(".wh...")], "no name"),
        ([Item("f", xattrs={"user.x": "y" * 65536})], "64 KiB"),
        ([Item("f", xattrs={"trusted.overlay." + "x" * 239: "y"})], "too long"),
    ],
)
def test_refused(tmp_path: Path, items: list[Item], message: str) -> None:
    with pytest.raises(SourceInvalid, match=message) as error:
        build(tmp_path, tar_of(items))
    assert "layer: byte " in str(error.value)


def test_absolute_names_on_request(tmp_path: Path) -> None:
    root = build(
        tmp_path, tar_of([Item("/nix/store/x", b"1"), folder("/", 0o711)]), absolute_names=True
    )
    assert text(at(root, "nix/store/x")) == b"1"
    assert root.mode == stat.S_IFDIR | 0o711


# --- whiteouts and marks


def test_whiteouts(tmp_path: Path) -> None:
    root = build(
        tmp_path,
        tar_of(
            [
                folder("d", 0o750),
                Item("d/.wh.gone"),
                Item("d/.wh.file"),
                Item("d/file", b"new"),
                folder("d/sub"),
                Item("d/.wh.sub"),
                Item("e/.wh..wh..opq"),
                folder("e", 0o751),
                Item("e/kept"),
                Item(".wh..wh.plnk"),
                Item(".wh..wh.aufs"),
                Item("kernel", None, tarfile.CHRTYPE, device=(0, 0)),
            ]
        ),
    )
    for path in ("d/gone", "kernel"):
        assert marks.is_device_whiteout(at(root, path).mode, at(root, path).rdev)
    assert text(at(root, "d/file")) == b"new"
    assert at(root, "d/sub").xattrs[marks.TRUSTED.opaque] == b"y"
    assert at(root, "e").xattrs == {marks.TRUSTED.opaque: b"y"}
    assert at(root, "e").mode == stat.S_IFDIR | 0o751
    assert root.children is not None
    assert set(root.children) == {b"d", b"e", b"kernel"}


def test_marks_of_the_content_are_escaped(tmp_path: Path) -> None:
    xattrs = {
        "trusted.overlay.opaque": "y",
        "trusted.overlay.overlay.x": "1",
        "user.overlay.opaque": "y",
        "com.apple.quarantine": "dropped",
        "security.capability": "c",
    }
    root = build(tmp_path, tar_of([folder("d", xattrs=xattrs)]))
    assert at(root, "d").xattrs == {
        b"trusted.overlay.overlay.opaque": b"y",
        b"trusted.overlay.overlay.overlay.x": b"1",
        b"user.overlay.opaque": b"y",
        b"security.capability": b"c",
    }


NAMES = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "s", ".wh.a", ".wh..wh..opq", "c" * 256]),
    min_size=1,
    max_size=4,
).map("/".join)


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.builds(Item, NAMES, st.binary(max_size=5)),
            st.builds(folder, NAMES),
            st.builds(symlink, NAMES, NAMES),
            st.builds(hard_link, NAMES, NAMES),
        ),
        max_size=10,
    )
)
def test_any_entries(tmp_path: Path, items: list[Item]) -> None:
    """Whatever the entries are: a tree, or one line."""
    try:
        build(tmp_path, tar_of(items), absolute_names=True)
    except SourceInvalid as error:
        assert "\n" not in str(error)  # noqa: PT017
