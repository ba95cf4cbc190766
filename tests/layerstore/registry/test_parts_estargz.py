"""The same as in test_parts for eStargz, whose members hold a file's content and the next headers."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from layerstore.errors import StoreError
from layerstore.oci.tar_writer import END, Member, header
from layerstore.registry.access import Access
from layerstore.registry.images import pull
from layerstore.store import Store
from tests.layerstore.chunked import Change, estargz, layout_with, plain
from tests.layerstore.registry.partial import (
    AFTER,
    CHANGED,
    CONTENT,
    MISSING,
    TWICE,
    changed,
    is_as_whole,
    pulled,
    served_as,
)
from tests.layerstore.registry.served import Served
from tests.layerstore.stores import litter, problems


def by_go(*, odd: bool = False) -> bytes:
    """The files after, in headers as Go writes them, but for one where it is `odd`."""
    files = CONTENT | CHANGED | {"etc/twice": TWICE, "etc/.wh.gone": b""}
    parts = [header(Member(b"etc/", stat.S_IFDIR, 0o755))]
    for name, data in files.items():
        mtime_ns = 1_500_000_000 if odd and name == "etc/f33" else 7_000_000_000
        member = Member(name.encode(), stat.S_IFREG, 0o644, mtime_ns=mtime_ns)
        parts += [header(member, len(data)), data, bytes(-len(data) % 512)]
    parts += [header(Member(b"etc/link", stat.S_IFLNK, 0o777, link=b"f1")), END]
    return b"".join(parts)


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("chunk_size", [4000, 50_000])
def test_estargz(
    served: Served, root: Path, access: Access, tmp_path: Path, chunk_size: int
) -> None:
    blob = served_as(served, "after", by_go(), estargz, chunk_size=chunk_size)
    image, traffic = pulled(root, served, "after", access)
    # Beside the files: the table, and the member before the whiteout.
    assert MISSING < traffic.fetched < MISSING + 45_000 < len(blob) // 3
    is_as_whole(root, served, image, access, tmp_path / "other", plain(blob))


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("so it is when put together with files of the store; it is read whole")
def test_estargz_with_a_header_that_no_table_has(
    served: Served, root: Path, access: Access, tmp_path: Path
) -> None:
    blob = served_as(served, "after", by_go(odd=True), estargz)
    image, traffic = pulled(root, served, "after", access)
    assert traffic.fetched > len(blob)
    is_as_whole(root, served, image, access, tmp_path / "other", plain(blob))


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("chunk_size", [4000, 50_000])
def test_estargz_of_another_archiver(
    served: Served, root: Path, access: Access, tmp_path: Path, chunk_size: int
) -> None:
    """No header is made; of files in several members only the last is fetched."""
    blob = served_as(served, "after", AFTER, estargz, chunk_size=chunk_size)
    image, traffic = pulled(root, served, "after", access)
    assert (traffic.fetched < len(blob) * 3 // 5) == (chunk_size == 4000)
    is_as_whole(root, served, image, access, tmp_path / "other", plain(blob))


ESTARGZ: dict[str, tuple[Change, str]] = {
    "files in each other": (changed("etc/f5", offset=300), "files lie in each other"),
    "a place behind the end": (changed("etc/f5", offset=1 << 40), "cannot be"),
    "several files in a member": (changed("etc/f5", innerOffset=5), "which is not read"),
    "a kind that is none": (changed("etc/f5", type="door"), "is of type door"),
    "a time that is none": (changed("etc/f5", modtime="noon"), "cannot be read"),
    "a name that is none": (changed("etc/f5", name=7), "cannot be read"),
    "a size that is none": (changed("etc/f5", size=-7), "cannot be"),
    "another size": (changed("etc/f3", size=70_000), ""),
    "another name": (changed("etc/f9", name="etc/f8"), "so it is when put together"),
    "another mode": (changed("etc/f9", mode=0o777), "so it is when put together"),
    "no digest": (changed("etc/f9", digest=None), "has no SHA-256 digest"),
    "xattrs that are none": (changed("etc/f9", xattrs=[1]), "cannot be read"),
    "no entries": (lambda table: table.update(entries=[]), "has no file with content"),
    "parts of no file": (
        lambda table: table["entries"].insert(0, {"type": "chunk", "offset": 9}),
        "is a part of no file",
    ),
}


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("whole")
@pytest.mark.parametrize("what", ESTARGZ)
def test_an_estargz_table_that_lies(
    served: Served,
    root: Path,
    access: Access,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    change, said = ESTARGZ[what]
    blob = served_as(served, "after", by_go(), estargz, change=change)
    image, _ = pulled(root, served, "after", access)
    (line,) = caplog.messages
    assert said in line
    assert line.endswith("whole")
    is_as_whole(root, served, image, access, tmp_path / "other", plain(blob))


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("whole")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda blob: blob[:-1] + b"x" + blob[-1:], "does not end with the footer"),
        (lambda blob: blob[-51:], "the blob is too small for one"),
        (lambda blob: blob[:-35] + b"f" * 16 + blob[-19:], "is not within the"),
        (lambda blob: blob[:-35] + b"%016x" % 99 + blob[-19:], "its table of contents"),
    ],
)
def test_an_estargz_footer_that_lies(
    served: Served,
    root: Path,
    access: Access,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[bytes], bytes],
    said: str,
) -> None:
    """The diff id is what comes out of the blob as it is; where nothing does, the pull fails."""
    blob, annotations = estargz(by_go())
    spoilt = spoil(blob)
    served.add(layout_with([(by_go(), spoilt, annotations)]), "after")
    with Store.open(str(root)) as store, pytest.raises(StoreError):
        pull(store, f"{served.name}/a:after", access=access)
    assert said in caplog.text
    assert litter(root) == []
    assert problems(root) == []
