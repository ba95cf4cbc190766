"""The tar of a layer comes out as it came in, whatever it was; damage never gives wrong bytes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore.collect import split_path
from layerstore.errors import ObjectCorrupt, ObjectMissing, SplitCorrupt, SplitMissing, StoreError
from layerstore.layer_tar import LayerTar
from layerstore.objects import Objects, Staging
from layerstore.oci.layer import LayerBuilder
from layerstore.oci.tar import TarReader
from layerstore.split import Content, SplitReader, SplitWriter, read_split
from layerstore.store import Store
from tests.layerstore.archives import Item, digest_of, folder, hard_link, layout_of, symlink, tar_of
from tests.layerstore.stores import BASE, TOP, imported, litter, problems
from tests.layerstore.test_tar import gnu_tar, header, pad, pax

END = bytes(1024)
BIG = b"big" * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def rebuilt(root: Path, diff_id: str) -> bytes:
    with Store.open(str(root)) as store, store.layer_tar(diff_id) as tar:
        data = tar.read()
        assert tar.size == len(data)
    return data


def comes_out(root: Path, tmp_path: Path, layer: bytes) -> None:
    """Import a layer and compare its tar."""
    source = layout_of([layer]).archive(tmp_path / "one.tar")
    image = imported(root, source)
    assert rebuilt(root, image.layers[0].diff_id) == layer


def edited(block: bytes, at: int, data: bytes) -> bytes:
    """A header with other bytes somewhere and the checksum that goes with them."""
    new = bytearray(block)
    new[at : at + len(data)] = data
    new[148:156] = b" " * 8
    new[148:156] = b"%06o\0 " % sum(new)
    return bytes(new)


def signed(block: bytes) -> bytes:
    """A header with the sum that old archivers wrote, of signed bytes."""
    total = sum(block[:148] + block[156:]) + 8 * 32 - 256 * sum(byte > 127 for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


FILE = header(b"f", b"0", len(BIG)) + pad(BIG)
ODD: dict[str, bytes] = {
    "replaced content": header(b"f", b"0", 2000) + pad(b"x" * 2000) + FILE + END,
    "replaced by a directory": FILE + header(b"f", b"5", 0) + END,
    "whiteout with content": header(b".wh.f", b"0", len(BIG)) + pad(BIG) + END,
    "aufs leftovers": header(b".wh..wh.plnk", b"0", len(BIG)) + pad(BIG) + END,
    "directory with a size": header(b"d", b"5", 4096) + FILE + END,
    "symlink with a size": edited(header(b"l", b"2", 77), 157, b"target") + FILE + END,
    "hard link with a size": FILE + edited(header(b"h", b"1", len(BIG)), 157, b"f") + END,
    "dump directory": header(b"d", b"D", 600) + pad(b"Yf\0" * 200) + END,
    "volume label": header(b"label", b"V", 0) + FILE + END,
    "continuous file": header(b"f", b"7", len(BIG)) + pad(BIG) + END,
    "old file": header(b"f", b"\0", len(BIG)) + pad(BIG) + END,
    "garbage in the padding": FILE[:-8] + b"\xffgarbage"[:8] + END,
    "garbage after the end": FILE + END + os.urandom(5000),
    "many end marks": FILE + bytes(512 * 41),
    "end mark, then an archive": FILE + END + FILE + END,
    "no end mark": FILE,
    "half an end mark": FILE + bytes(512),
    "padding cut short": header(b"f", b"0", 1000) + b"x" * 1000,
    "not UTF-8": header(b"\xff\xfe\x80", b"0", len(BIG)) + pad(BIG) + END,
    "spaces in numbers": edited(header(b"f", b"0", 0), 100, b"   644 \0") + END,
    "base 256": edited(header(b"f", b"0", 0), 108, b"\x80\0\0\0\0\1\0\0") + END,
    "signed sum": signed(edited(header(b"f", b"0", 0), 500, b"\xff" * 12)) + END,
    "unused fields": edited(header(b"f", b"0", 0), 265, b"nobody\0trash") + END,
    "global header": header(b"g", b"g", 12) + pad(b"12 comment=\n") + FILE + END,
    "unknown records": pax({b"VENDOR.thing": b"\0\1\2", b"path": b"g"}, data=BIG),
    "record twice": pax({b"mtime": b"1.50000", b"ctime": b"2"}, data=BIG),
    "long name twice": (
        header(b"././@LongLink", b"L", 300) + pad(b"n" * 300) + header(b"n", b"L", 5) + pad(b"name\0")
        + FILE + END
    ),
    "sparse, nothing but a hole": pax({b"GNU.sparse.map": b"", b"GNU.sparse.size": b"99999"}),
    "sparse, empty runs": pax(
        {b"GNU.sparse.map": b"5,0,600,3,1000,0", b"GNU.sparse.size": b"5000"}, data=b"abc"
    ),
    "sparse in the data, replaced": pax(
        {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.realsize": b"9000",
            b"GNU.sparse.name": b"s",
        },
        data=pad(b"1\n600\n1000\n") + b"s" * 1000,
    )[:-1024]
    + header(b"s", b"0", 0)
    + END,
    "nothing": END,
    "less than nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_oddities(name: str, root: Path, tmp_path: Path) -> None:
    comes_out(root, tmp_path, ODD[name])


@pytest.mark.parametrize("layer", [BASE, TOP])
def test_the_usual(root: Path, tmp_path: Path, layer: bytes) -> None:
    comes_out(root, tmp_path, layer)


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=oldgnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=v7"],
        ["--format=ustar", "-b", "77"],
    ],
)
def test_gnu_tars(options: list[str], root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "fragments", "wb") as file:
        os.truncate(file.fileno(), 40 << 16)
        for number in range(40):
            os.pwrite(file.fileno(), b"piece %d" % number, number << 16)
    with open(tree / "hole", "wb") as file:
        os.truncate(file.fileno(), 1 << 21)
    (tree / "plain").write_bytes(BIG)
    os.link(tree / "plain", tree / "link")
    comes_out(root, tmp_path, gnu_tar(tree, *options))


ITEMS = st.one_of(
    st.builds(
        Item,
        st.sampled_from(["a", "b", "d/a", ".wh.a", "n" * 120, "\udcff"]),
        st.one_of(st.binary(max_size=1200), st.just(BIG), st.just(BIG + b"x")),
        mtime=st.sampled_from([0.0, 1.5, 2.0**34]),
        uid=st.sampled_from([0, 2**22]),
    ),
    st.builds(folder, st.sampled_from(["d", "d/e", "."])),
    st.builds(symlink, st.sampled_from(["s", "t"]), st.sampled_from(["a", "x" * 300])),
    st.just(hard_link("h", "first")),
)


@given(
    items=st.lists(ITEMS, max_size=8),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    trailer=st.one_of(st.just(b""), st.binary(max_size=600)),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written(items: list[Item], form: int, trailer: bytes, tmp_path: Path) -> None:
    layer = tar_of([Item("first", BIG), *items], form) + trailer
    for name in ("objects", "staging"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        (tmp_path / name).mkdir()
    objects = Objects(bytes(tmp_path / "objects"))
    staging = Staging(objects, bytes(tmp_path / "staging"))
    with open(tmp_path / "split", "wb") as file:
        writer = SplitWriter(file)
        reader = TarReader(io.BytesIO(layer), "layer", record=writer.raw)
        LayerBuilder(staging, "layer", split=writer).apply_all(reader)
        writer.finish(digest_of(layer), len(layer))
    staging.place()
    with LayerTar(objects, bytes(tmp_path / "split"), digest_of(layer), len(layer)) as tar:
        assert tar.read() == layer


def test_a_directory(root: Path, tmp_path: Path) -> None:
    from tests.layerstore.test_tar import whole_tar

    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(BIG)
    os.link(tree / "d" / "f", tree / "g")
    with open(tree / "sparse", "wb") as file:
        os.truncate(file.fileno(), 1 << 22)
        os.pwrite(file.fileno(), b"data", 1 << 21)
    image = imported(root, f"dir:{tree}")
    assert rebuilt(root, image.layers[0].diff_id) == whole_tar(tree)


def test_from_standard_input(root: Path, tmp_path: Path) -> None:
    layer = ODD["many end marks"]
    subprocess.run(
        [sys.executable, "-m", "layerstore", "--root", str(root), "import", "tar:-"],
        input=layer,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert rebuilt(root, digest_of(layer)) == layer


# --- reading


def test_pieces(root: Path, tmp_path: Path) -> None:
    layer = tar_of([Item("big", os.urandom(3 << 20)), Item("small", b"x"), Item("b", BIG)])
    image = imported(root, layout_of([layer]).archive(tmp_path / "one.tar"))
    with Store.open(str(root)) as store:
        with store.layer_tar(image.layers[0].diff_id) as tar:
            first = tar.read(7)
            chunks = list(tar.chunks())
            assert first + b"".join(chunks) == layer
            assert max(map(len, chunks)) <= 1 << 20
            assert tar.read(10) == b""
        with store.layer_tar(image.layers[0].diff_id) as tar:
            pieces = list(iter(lambda: tar.read(1000), b""))
            assert b"".join(pieces) == layer
        with pytest.raises(StoreError, match="there is no layer sha256:0000"):
            store.layer_tar("sha256:" + "0" * 64)


# --- lives


def objects_in(root: Path) -> list[Path]:
    return [path for path in (root / "objects").rglob("*") if path.is_file()]


def test_content_that_only_the_tar_has_stays_and_goes(root: Path, tmp_path: Path) -> None:
    layer = ODD["replaced content"]
    source = layout_of([layer]).archive(tmp_path / "one.tar")
    imported(root, source, "x")
    with Store.open(str(root)) as store:
        assert len(objects_in(root)) == 2
        assert store.collect() == (0, 0, 0)
        assert rebuilt(root, digest_of(layer)) == layer
        with store.layer_tar(digest_of(layer)) as tar:
            store.remove("x")
            assert len(objects_in(root)) == 2  # as long as somebody reads it
            assert tar.read() == layer
        store.collect()
    assert objects_in(root) == []
    assert os.listdir(root / "layers") == []


def test_a_split_that_is_being_removed_is_not_opened(root: Path, tmp_path: Path) -> None:
    from layerstore import session

    imported(root, layout_of([BASE]).archive(tmp_path / "one.tar"))
    with Store.open(str(root)) as store:
        held = session.try_lock(split_path(bytes(root), digest_of(BASE)))
        assert held is not None
        with pytest.raises(SplitMissing):
            store.layer_tar(digest_of(BASE))
        os.close(held)


# --- damage


@pytest.fixture
def split(root: Path, tmp_path: Path) -> Path:
    """The split of BASE, which may be overwritten."""
    imported(root, layout_of([BASE]).archive(tmp_path / "one.tar"), "x")
    path = Path(os.fsdecode(split_path(bytes(root), digest_of(BASE))))
    path.chmod(0o644)
    return path


def tries(root: Path) -> bytes | None:
    """The tar of BASE, None if it was refused; never another one."""
    with Store.open(str(root)) as store, store.layer_tar(digest_of(BASE)) as tar:
        got = b""
        try:
            for chunk in tar.chunks():
                got += chunk
        except SplitCorrupt:
            assert len(got) < len(BASE)
            return None
    assert got == BASE
    return got


def test_a_split_cut_short(root: Path, split: Path) -> None:
    whole = split.read_bytes()
    for length in range(len(whole)):
        split.write_bytes(whole[:length])
        assert tries(root) is None
        with pytest.raises(SplitCorrupt):
            read_split(bytes(split))
    assert len(problems(root)) == 1
    assert str(split) in problems(root)[0]


def test_a_split_with_a_wrong_byte(root: Path, split: Path) -> None:
    whole = split.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        split.write_bytes(damaged)
        assert tries(root) is None, at
        with pytest.raises(SplitCorrupt):
            read_split(bytes(split))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_no_split(data: bytes, after_magic: bool) -> None:
    import zstandard

    plain = b"LSSPLIT1" + data if after_magic else data
    reader = SplitReader(io.BytesIO(zstandard.compress(plain)), b"x")
    with pytest.raises(SplitCorrupt):
        list(reader.records())


def test_something_after_a_split(root: Path, split: Path) -> None:
    split.write_bytes(split.read_bytes() + b"more")
    assert tries(root) is None


def test_the_split_of_another_layer(root: Path, split: Path, tmp_path: Path) -> None:
    imported(root, layout_of([TOP]).archive(tmp_path / "two.tar"))
    other = Path(os.fsdecode(split_path(bytes(root), digest_of(TOP))))
    split.write_bytes(other.read_bytes())
    assert tries(root) is None
    assert problems(root) == [f"{split}: is of another layer"]


def test_a_missing_split(root: Path, split: Path) -> None:
    split.unlink()
    with Store.open(str(root)) as store, pytest.raises(SplitMissing, match="import them again"):
        store.layer_tar(digest_of(BASE))
    assert len(problems(root)) == 1
    with Store.open(str(root)) as store:
        store.remove("x")
    assert litter(root) == []


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(damage, ObjectCorrupt), (cut, ObjectCorrupt), (Path.unlink, ObjectMissing)],
)
def test_a_spoilt_object(
    root: Path, split: Path, spoil: Callable[[Path], None], error: type[Exception]
) -> None:
    victim = objects_in(root)[0]
    spoil(victim)
    with Store.open(str(root)) as store, store.layer_tar(digest_of(BASE)) as tar:
        got: list[bytes] = []
        with pytest.raises(error, match=victim.parent.name + victim.name):
            got.extend(tar.chunks())
        assert len(b"".join(got)) < len(BASE)


# --- the format


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.just(b"z" * ((1 << 20) + 3)),
            st.builds(
                Content,
                st.binary(min_size=32, max_size=32).map(lambda key: "sha256:" + key.hex()),
                st.integers(0, 2**62 - 1),
                st.integers(0, 2**62 - 1),
            ),
        ),
        max_size=6,
    )
)
@settings(max_examples=60)
def test_records(parts: list[bytes | Content]) -> None:
    file = io.BytesIO()
    writer = SplitWriter(file)
    wanted: list[bytes | Content] = []
    size = 0
    for part in parts:
        if isinstance(part, bytes):
            writer.raw(part)
            size += len(part)
            if wanted and isinstance(wanted[-1], bytes):
                wanted[-1] += part
            elif part:
                wanted.append(part)
        elif part.length:
            writer.content(*part)
            size += part.length
            wanted.append(part)
    if size >= 1 << 64:
        return
    writer.finish(digest_of(b"tar"), size)
    file.seek(0)
    reader = SplitReader(file, b"x")
    found: list[bytes | Content] = []
    for record in reader.records():
        assert isinstance(record, Content) or len(record) <= 1 << 20
        if found and isinstance(record, bytes) and isinstance(found[-1], bytes):
            found[-1] += record
        else:
            found.append(record)
    assert found == wanted
    assert (reader.diff_id, reader.size) == (digest_of(b"tar"), size)
