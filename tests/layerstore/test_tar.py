"""The tar reader: archives of Python and GNU tar in every format; damage is named, never a crash."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layerstore.errors import SourceInvalid
from layerstore.oci.tar import TarReader
from layerstore.oci.tree_tar import TreeTar
from tests.layerstore.archives import Item, folder, hard_link, symlink, tar_of


class Seen(NamedTuple):
    """An entry as it was read, content and all."""

    name: bytes
    kind: int
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes | None
    xattrs: dict[bytes, bytes]


def read_all(data: bytes, *, needs_end: bool = True) -> list[Seen]:
    """Every entry of an archive, holes filled with zeros."""
    reader = TarReader(io.BytesIO(data), "archive", needs_end=needs_end)
    seen = []
    for entry in reader:
        content = None
        if entry.segments is not None:
            content = b""
            for start, pieces in reader.segments(entry):
                content += bytes(start - len(content)) + b"".join(pieces)
            content += bytes(entry.size - len(content))
        elif entry.kind == stat.S_IFREG and not entry.hard_link:
            content = b"".join(reader.data(entry))
        kind = -1 if entry.hard_link else entry.kind
        owner = (entry.uid, entry.gid)
        seen.append(
            Seen(
                entry.name,
                kind,
                entry.link,
                entry.mode,
                *owner,
                entry.mtime_ns,
                content,
                entry.xattrs,
            )
        )
    return seen


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=200,
)


@given(
    st.lists(
        st.builds(
            Item,
            name=TEXT.filter(lambda n: not n.endswith("/")),
            data=st.binary(max_size=1500),
            mode=st.integers(0, 0o7777),
            uid=st.integers(0, 2**32 - 2),
            gid=st.integers(0, 2**32 - 2),
            mtime=st.integers(0, 2**40).map(float),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@settings(deadline=None)
def test_reads_what_python_writes(items: list[Item], form: int) -> None:
    for item, seen in zip(items, read_all(tar_of(items, form)), strict=True):
        assert seen.name == item.name.encode()
        assert seen.kind == stat.S_IFREG
        assert seen.content == item.data
        assert (seen.mode, seen.uid, seen.gid) == (item.mode, item.uid, item.gid)
        assert seen.mtime_ns == int(item.mtime) * 10**9


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind(form: int) -> None:
    items = [
        folder("d", 0o1777),
        Item("d/f", b"data", mode=0o4755),
        hard_link("d/h", "d/f"),
        symlink("d/s", "../elsewhere"),
        Item("d/c", None, tarfile.CHRTYPE, device=(4, 64)),
        Item("d/b", None, tarfile.BLKTYPE, device=(8, 1)),
        Item("d/p", None, tarfile.FIFOTYPE),
    ]
    seen = {entry.name.rstrip(b"/"): entry for entry in read_all(tar_of(items, form))}
    kinds = [stat.S_IFDIR, stat.S_IFREG, -1, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]
    assert [entry.kind for entry in seen.values()] == kinds
    assert seen[b"d/h"].link == b"d/f"
    assert seen[b"d/s"].link == b"../elsewhere"


def pax(records: dict[bytes, bytes], name: bytes = b"f", data: bytes = b"") -> bytes:
    """An archive of one file with these PAX records, whatever they are."""
    body = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        body += str(length).encode() + rest
    return (
        header(b"x", b"x", len(body))
        + pad(body)
        + header(name, b"0", len(data))
        + pad(data)
        + bytes(1024)
    )


def header(name: bytes, kind: bytes, size: int) -> bytes:
    """A ustar header."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:148] = b"0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % size
    block[148:157] = b"        " + kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("value", "time_ns"),
    [
        (b"1", 10**9),
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"0.123456789999", 123456789),
        (b"99999999999.000000001", 99999999999 * 10**9 + 1),
        (b"7.", 7 * 10**9),
    ],
)
def test_pax_times(value: bytes, time_ns: int) -> None:
    assert read_all(pax({b"mtime": value}))[0].mtime_ns == time_ns


def test_pax_names_and_xattrs() -> None:
    value = b"binary\0=\n\xff"
    (seen,) = read_all(
        pax(
            {
                b"path": b"\xff/na me",
                b"SCHILY.xattr.user.x": value,
                b"LIBARCHIVE.xattr.user.y": b"AP8",
            }
        )
    )
    assert seen.name == b"\xff/na me"
    assert seen.xattrs == {b"user.x": value, b"user.y": b"\x00\xff"}


@pytest.mark.parametrize(
    "records",
    [
        {b"mtime": b"yesterday"},
        {b"mtime": b"1.5.5"},
        {b"mtime": b"1" * 30},
        {b"size": b"-1"},
        {b"uid": b"4294967295"},
        {b"gid": b"x"},
        {b"LIBARCHIVE.xattr.user.y": b"*"},
        {b"SCHILY.xattr.user.x": b"x" * (257 << 10)},
        {b"GNU.sparse.map": b"0,5", b"GNU.sparse.size": b"3"},
        {b"GNU.sparse.map": b"5,1,0,1", b"GNU.sparse.size": b"9"},
        {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"5"},
    ],
)
def test_pax_nonsense(records: dict[bytes, bytes]) -> None:
    with pytest.raises(SourceInvalid, match=r"archive: byte \d+: "):
        read_all(pax(records))


@pytest.mark.parametrize(
    "body", [b"x", b"5 a=b\n", b"99 a=b\n", b"6 a=b\n", b"6 a-b\n", b"0 a=b\n"]
)
def test_broken_pax_records(body: bytes) -> None:
    archive = header(b"x", b"x", len(body)) + pad(body) + header(b"f", b"0", 0) + bytes(1024)
    if body == b"6 a=b\n":
        assert len(read_all(archive)) == 1
        return
    with pytest.raises(SourceInvalid, match="PAX"):
        read_all(archive)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"", "without an end mark"),
        (b"x" * 512, "no tar header"),
        (header(b"f", b"0", 10), "cut short"),
        (header(b"f", b"0", 0)[:300], "inside a header"),
        (header(b"f", b"M", 0) + bytes(1024), "type b'M'"),
        (header(b"x", b"x", 9 << 20), "over the limit"),
        (header(b"x", b"x", 0) + bytes(1024), "is missing"),
        (header(b"x", b"L", 0), "cut short"),
        (header(b"f", b"0", 0) + bytes(512) + b"x" * 512, "followed by something else"),
        (header(b"f", b"0", 0).replace(b"0000644", b"0o00644"), "no tar header"),
    ],
)
def test_broken_archives(archive: bytes, message: str) -> None:
    with pytest.raises(SourceInvalid, match=message):
        read_all(archive)


def test_cut_anywhere() -> None:
    whole = tar_of([folder("d"), Item("d/f", b"x" * 700), Item("n" * 150, b"y")])
    end = max(i for i in range(0, len(whole), 512) if any(whole[i : i + 512])) + 512
    for length in range(end):
        with pytest.raises(SourceInvalid, match="cut short"):
            read_all(whole[:length])
    assert len(read_all(whole[: end + 512])) == 3
    # A digest covers it: then the end mark may be missing, but nothing else.
    assert len(read_all(whole[:end], needs_end=False)) == 3
    with pytest.raises(SourceInvalid):
        read_all(whole[: end - 512 - 1], needs_end=False)


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_damage(data: st.DataObject) -> None:
    whole = bytearray(
        tar_of(
            [folder("d"), Item("d/f", b"x" * 700), Item("n" * 150, b"y", xattrs={"user.a": "b"})]
        )
        + pax({b"GNU.sparse.map": b"0,3", b"GNU.sparse.size": b"9"}, data=b"abc")
    )
    for _ in range(data.draw(st.integers(1, 6))):
        where = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=12), st.just(b"\xff" * 12)))
        whole[where : where + len(new)] = new
        start = where // 512 * 512
        if data.draw(st.booleans()) and len(whole) >= start + 512:
            block = whole[start : start + 512]
            block[148:156] = b" " * 8
            whole[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    try:
        read_all(bytes(whole))
    except SourceInvalid as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(st.binary(max_size=3000))
@example(b"\x80" * 512)
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(SourceInvalid):
        read_all(data)


# --- real archivers


def gnu_tar(tree: Path, *options: str) -> bytes:
    """What GNU tar makes of a directory."""
    done = subprocess.run(
        ["tar", "-C", str(tree), *options, "-cf", "-", "."], capture_output=True, check=True
    )
    return done.stdout


SPARSE = b"begin" + bytes(1 << 20) + b"middle" + bytes((1 << 20) + 7)


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=oldgnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=v7"],
        ["--format=ustar"],
    ],
)
def test_gnu_tar(tmp_path: Path, options: list[str]) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        os.truncate(file.fileno(), len(SPARSE))
        os.pwrite(file.fileno(), b"begin", 0)
        os.pwrite(file.fileno(), b"middle", 5 + (1 << 20))
    with open(tmp_path / "fragments", "wb") as file:
        os.truncate(file.fileno(), 40 << 16)
        for number in range(40):  # more than an old header has room for
            os.pwrite(file.fileno(), b"piece %d" % number, number << 16)
    with open(tmp_path / "hole", "wb") as file:
        os.truncate(file.fileno(), 1 << 21)
    (tmp_path / "plain").write_bytes(b"plain")
    seen = {entry.name: entry.content for entry in read_all(gnu_tar(tmp_path, *options))}
    for name in ("sparse", "fragments", "hole", "plain"):
        assert seen[f"./{name}".encode()] == (tmp_path / name).read_bytes(), name


def test_gnu_tar_names_and_times(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    name = os.fsencode(deep) + b"/\xff" + b"f" * 200
    with open(name, "wb"):
        pass
    os.utime(name, ns=(0, -1_234_567_890))
    os.symlink("t" * 4000, deep / "link")
    for form in ("--format=posix", "--format=gnu"):
        seen = {entry.name: entry for entry in read_all(gnu_tar(tmp_path, form))}
        key = b"." + name[len(os.fsencode(tmp_path)) :]
        whole = -2 if form == "--format=gnu" else None
        assert seen[key].mtime_ns == (-1_234_567_890 if whole is None else whole * 10**9)
        assert seen[os.path.join(os.path.dirname(key), b"link")].link == b"t" * 4000


# --- tars we make of trees


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=1000), max_size=3), st.integers(-(2**33), 2**33))
def test_tree_tar(tmp_path: Path, contents: list[bytes], time_ns: int) -> None:
    for number, content in enumerate(contents):
        path = tmp_path / f"file-{number}"
        path.write_bytes(content)
        os.utime(path, ns=(0, time_ns))
    data = whole_tar(tmp_path)
    seen = {entry.name: entry for entry in read_all(data)}
    for number, content in enumerate(contents):
        entry = seen[b"./file-%d" % number]
        assert entry.content == content
        assert entry.mtime_ns == os.stat(tmp_path / f"file-{number}").st_mtime_ns
    assert whole_tar(tmp_path) == data


def whole_tar(path: Path) -> bytes:
    stream = TreeTar(os.fsencode(path))
    return b"".join(iter(lambda: stream.read(100_000), b""))


def test_tree_tar_suits_gnu_tar(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d" / ("e" * 120)).mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"x" * 10000)
    os.link(tree / "d" / "f", tree / "g")
    os.symlink("l" * 300, tree / "symlink")
    os.mkfifo(tree / "fifo")
    with open(os.fsencode(tree) + b"/\xff", "wb") as file:
        os.truncate(file.fileno(), 1 << 22)
        os.pwrite(file.fileno(), b"data", 1 << 21)
    with open(tree / "hole", "wb") as file:
        os.truncate(file.fileno(), 1 << 22)
    if os.geteuid() == 0:
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(tree / "g", 3_000_000, 4_000_000)
        os.setxattr(tree / "g", "user.x", b"\0\xff\n=")
    data = whole_tar(tree)
    archive = tmp_path / "tree.tar"
    archive.write_bytes(data)
    done = subprocess.run(
        ["tar", "--xattrs", "--compare", "-f", str(archive), "-C", str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(data) < 1 << 20  # holes stay holes
    assert {entry.name for entry in read_all(data)} >= {b"./\xff", b"./g", b"./symlink"}
