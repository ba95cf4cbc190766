"""The index: what is written is read back by us, accepted by fsck.erofs and shown by the kernel."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore.errors import IndexCorrupt, StoreError
from layerstore.index.packing import can_store_xattr
from layerstore.index.reader import Index, Inline, Object, Sparse
from layerstore.index.tree import Node, Tree, directory
from layerstore.index.writer import write_index
from tests.layerstore.trees import plain_index, plain_node, read_all, trees


def examples(number: int) -> settings:
    """Settings for a test whose examples share a directory."""
    return settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        deadline=None,
        max_examples=number,
    )


def image(tree: Tree | Node) -> bytes:
    """The bytes of the index of a tree."""
    file = io.BytesIO()
    write_index(tree, file)
    return file.getvalue()


def regular(data: bytes, mode: int = 0o644) -> Node:
    """A file with inline content."""
    node = Node(stat.S_IFREG | mode)
    node.set_content(Inline(data), len(data))
    return node


@examples(150)
@given(trees())
def test_round_trip(tmp_path: Path, root: Node) -> None:
    path = tmp_path / "index"
    path.write_bytes(image(root))
    with Index(os.fsencode(path)) as index:
        assert plain_index(index) == plain_node(root)


@examples(25)
@given(trees())
def test_fsck_accepts_it(tmp_path: Path, root: Node) -> None:
    path = tmp_path / "index"
    path.write_bytes(image(root))
    done = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@given(trees())
@examples(20)
def test_reproducible(root: Node) -> None:
    def reverse(node: Node) -> None:
        if node.children is not None:
            node.children = dict(reversed(node.children.items()))
            node.xattrs = dict(reversed(node.xattrs.items()))
            for child in node.children.values():
                reverse(child)

    before = image(root)
    reverse(root)
    assert image(root) == before


def full_tree() -> Node:
    """A tree with one of everything, and sizes around the block."""
    root = directory(0o751, uid=1, gid=2, mtime_ns=-1)
    assert root.children is not None
    for size in (0, 1, 64, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 10000):
        root.children[b"size-%d" % size] = regular(os.urandom(size))
    for length in (1, 59, 4000, 4031, 4032, 4033, 4095):
        link = Node(stat.S_IFLNK | 0o777, mtime_ns=10**18 + 7)
        link.target = b"t" * length
        root.children[b"link-%d" % length] = link
        decorated = Node(stat.S_IFLNK | 0o777)
        decorated.target = b"u" * length
        decorated.xattrs = {b"trusted.x": b"odd"}
        root.children[b"linkx-%d" % length] = decorated
    for number in (1, 2, 2**12 + 1, 2**43, 2**43 + 1, 2**60):
        sparse = Node(stat.S_IFREG | 0o600)
        sparse.set_content(Sparse(number), number)
        root.children[b"sparse-%d" % number] = sparse
    root.children[b"tty"] = Node(stat.S_IFCHR | 0o620, rdev=os.makedev(4095, (1 << 20) - 1))
    root.children[b"disk"] = Node(stat.S_IFBLK | 0o660, rdev=os.makedev(8, 300))
    root.children[b"pipe"] = Node(stat.S_IFIFO | 0o600)
    root.children[b"socket"] = Node(stat.S_IFSOCK | 0o755)
    twice = regular(b"twice", 0o4755)
    twice.xattrs = {b"user.big": b"v" * 60000, b"security.selinux": b"label\0"}
    root.children[b"twice-a"] = root.children[b"twice-b"] = twice
    many = directory(0o1777)
    assert many.children is not None
    for number in range(5000):
        many.children[b"entry-%d" % number] = twice
    root.children[b"many"] = many
    root.children[b"\xff\xfe\n" + b"x" * 252] = regular(b"name")
    return root


def test_everything_at_once(tmp_path: Path) -> None:
    root = full_tree()
    path = tmp_path / "index"
    path.write_bytes(image(root))
    with Index(os.fsencode(path)) as index:
        assert plain_index(index) == plain_node(root)
        many = index.lookup(index.root_nid, b"many")
        assert many is not None
        for missing in (b"entry-", b"a", b"zzz", b"entry-99999", b".", b"..", b"\xff"):
            assert index.lookup(many, missing) is None
    done = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[Path]:
    """A kernel mount that ends with the block."""
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(target)], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def kernel_can_mount(tmp_path: Path) -> str:
    """Why the kernel cannot mount an index here; empty if it can."""
    if os.geteuid() != 0:
        return "mounting EROFS needs root"
    path = tmp_path / "probe"
    path.write_bytes(image(directory()))
    target = tmp_path / "probe-mount"
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "erofs", "-o", "ro", str(path), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"this kernel does not mount EROFS files: {done.stderr.strip()}"
    subprocess.run(["umount", str(target)], check=True)
    return ""


@pytest.fixture
def kernel_mounts(tmp_path: Path) -> None:
    if reason := kernel_can_mount(tmp_path):
        pytest.skip(reason)


@pytest.mark.usefixtures("kernel_mounts")
def test_kernel_shows_the_same(tmp_path: Path) -> None:
    root = full_tree()
    path = tmp_path / "index"
    path.write_bytes(image(root))
    expected = plain_node(root)
    with mounted(tmp_path / "m", "-t", "erofs", "-o", "ro", str(path)) as mount:
        seen = {b""}
        for parent, directories, files in os.walk(os.fsencode(mount)):
            for name in directories + files:
                where = os.path.join(parent, name)
                plain = expected[where[len(os.fsencode(mount)) :]]
                seen.add(where[len(os.fsencode(mount)) :])
                check_against_kernel(where, plain)
        assert seen == set(expected)
        with Index(os.fsencode(path)) as index:
            nid = index.lookup(index.root_nid, b"twice-a")
            assert nid == os.stat(mount / "twice-a").st_ino == os.stat(mount / "twice-b").st_ino


def check_against_kernel(where: bytes, plain: dict[str, object]) -> None:
    """Compare what the kernel shows at `where` with what was written."""
    status = os.lstat(where)
    assert status.st_mode == plain["mode"]
    assert (status.st_uid, status.st_gid) == (plain["uid"], plain["gid"])
    assert status.st_mtime_ns == plain["mtime"]
    if plain["nlink"] is not None:
        assert status.st_nlink == plain["nlink"]
    if stat.S_ISLNK(status.st_mode):
        assert os.readlink(where) == plain["target"]
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        assert status.st_rdev == plain["rdev"]
    elif stat.S_ISREG(status.st_mode):
        content = plain["content"]
        assert status.st_size == plain["size"]
        if isinstance(content, Inline):
            with open(where, "rb") as file:
                assert file.read() == content.data
    names = {name: os.getxattr(where, name, follow_symlinks=False) for name in listed(where)}
    assert {os.fsencode(name): value for name, value in names.items()} == plain["xattrs"]


def listed(where: bytes) -> list[str]:
    return os.listxattr(where, follow_symlinks=False)


@pytest.mark.usefixtures("kernel_mounts")
def test_kernel_overlay_serves_objects(tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    path_of_object = b"ab/" + b"cd" * 31
    file = tmp_path / "objects" / os.fsdecode(path_of_object)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"content of the object\n")
    root = directory()
    assert root.children is not None
    external = Node(stat.S_IFREG | 0o640, uid=12, gid=34, mtime_ns=5)
    external.set_content(Object(path_of_object), 22)
    external.xattrs = {b"user.x": b"1", b"trusted.overlay.overlay.opaque": b"y"}
    root.children[b"external"] = root.children[b"link"] = external
    root.children[b"inline"] = regular(b"inline\n")
    gone = Node(stat.S_IFCHR, rdev=0)
    root.children[b"gone"] = gone
    path = tmp_path / "index"
    path.write_bytes(image(root))
    with (
        mounted(tmp_path / "e", "-t", "erofs", "-o", "ro", str(path)) as lower,
        mounted(
            tmp_path / "m",
            *("-t", "overlay", "overlay", "-o"),
            f"ro,metacopy=on,redirect_dir=follow,lowerdir={lower}::{objects}",
        ) as mount,
    ):
        assert (mount / "external").read_bytes() == b"content of the object\n"
        assert (mount / "inline").read_bytes() == b"inline\n"
        assert sorted(os.listdir(mount)) == ["external", "inline", "link"]
        status = os.stat(mount / "external")
        assert (status.st_uid, status.st_gid, status.st_size) == (12, 34, 22)
        assert os.getxattr(mount / "external", "trusted.overlay.opaque") == b"y"


def test_kernel_device_numbers_fit() -> None:
    root = directory()
    assert root.children is not None
    root.children[b"d"] = Node(stat.S_IFCHR, rdev=os.makedev(4096, 0))
    with pytest.raises(StoreError, match="4096:0"):
        image(root)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_names_that_no_directory_holds(name: bytes) -> None:
    root = directory()
    assert root.children is not None
    root.children[name] = regular(b"")
    with pytest.raises(StoreError):
        image(root)


def test_xattrs_with_a_place() -> None:
    assert can_store_xattr(b"user.a")
    assert can_store_xattr(b"system.posix_acl_access")
    for name in (b"system.posix_acl_accessx", b"system.other", b"btrfs.x", b"user." + b"n" * 251):
        assert not can_store_xattr(name)


# --- damage


def small_image() -> bytes:
    root = full_tree()
    assert root.children is not None
    many = root.children[b"many"].children
    assert many is not None
    for name in list(many)[300:]:
        del many[name]
    return image(root)


SMALL = small_image()


@given(st.data())
@examples(300)
def test_damage_is_named_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 12))):
        where = data.draw(st.one_of(st.integers(1024, 8192), st.integers(0, len(damaged) - 9)))
        what = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8)]))
        )
        damaged[where : where + len(what)] = what
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = tmp_path / "index"
    path.write_bytes(damaged)
    with suppress(IndexCorrupt), Index(os.fsencode(path)) as index:
        read_all(index, b"entry-7", b"zzz")
        for nid in data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=5)):
            with suppress(IndexCorrupt):
                index.stat(nid)
                index.xattrs(nid)


@given(st.binary(max_size=3000))
@examples(150)
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "index"
    path.write_bytes(data)
    with pytest.raises(IndexCorrupt, match=r"index: byte [0-9]+: expected"):
        Index(os.fsencode(path))


def test_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "index"
    for length in (0, 1023, 1100, 4096, len(SMALL) - 1):
        path.write_bytes(SMALL[:length])
        with pytest.raises(IndexCorrupt):
            Index(os.fsencode(path))


def test_an_inode_of_no_kind_is_damage(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "index")
    root = directory()
    assert root.children is not None
    root.children[b"file"] = Node(stat.S_IFREG | 0o644)
    with open(path, "wb") as file:
        write_index(root, file)
    with Index(path) as index:
        nid = index.lookup(index.root_nid, b"file")
        assert nid is not None
        at = index._meta + nid * 32 + 4
    with open(path, "r+b") as file:
        file.seek(at)
        file.write((0o644).to_bytes(2, "little"))
    with Index(path) as index, pytest.raises(IndexCorrupt, match="found the mode 0o644"):
        index.stat(nid)
