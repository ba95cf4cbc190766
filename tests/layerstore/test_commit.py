"""What a commit makes of an upper directory, entry by entry, and of a mistake.

That the image shows what the mount showed is tests/interop/test_commit.py.
"""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerstore import marks
from layerstore.cli import run
from layerstore.commit.base import Base
from layerstore.commit.changes import UpperTar
from layerstore.commit.committing import Committed, commit, named
from layerstore.commit.config import Description, committed, parse_change
from layerstore.commit.upper import Upper
from layerstore.errors import StoreError
from layerstore.index import handles
from layerstore.index.reader import Index
from layerstore.marks import USER, format_handle
from layerstore.session import lock
from layerstore.store import Image, Store
from tests.layerstore.archives import Item, folder, hard_link, layout_of, tar_of
from tests.layerstore.stores import TOP, image_ids, litter, problems
from tests.layerstore.test_crash import DIED, at_step, in_child

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices and trusted.* xattrs need root")

BASE = tar_of(
    [
        folder("etc", 0o755, mtime=1.5),
        Item("etc/hostname", b"base\n"),
        Item("etc/big", b"B" * 5000, mode=0o600, uid=7, gid=8),
        hard_link("etc/big-link", "etc/big"),
        folder("gone", 0o700, uid=3),
        Item("gone/file", b"G" * 3000),
        folder("gone/deep"),
        Item("gone/deep/leaf", b"leaf"),
        hard_link("gone/deep/big", "etc/big"),
    ]
)


class Place:
    """A store with an image `base`, and an upper directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "store"
        self.upper = directory / "upper"
        self.upper.mkdir()
        self.work = directory / "work"
        (self.work / "index").mkdir(parents=True)
        source = layout_of([BASE]).archive(directory / "base.tar")
        self.store = Store.open(str(self.root), create=True)
        self.base = self.store.import_image(source, "base")

    def mark(self, name: str, mark: bytes, value: bytes) -> None:
        os.setxattr(self.upper / name, mark, value)

    def tar(self, *, work: bool = False, base: bool = True) -> tarfile.TarFile:
        """The layer that the upper is."""
        upper = Upper(os.fsencode(self.upper), os.fsencode(self.work) if work else None, USER)
        with Index(self.base.image_index) as index:
            below = Base(index, self.store.objects()) if base else None
            stream = UpperTar(upper, below)
            data = b"".join(iter(lambda: stream.read(1 << 20), b""))
        return tarfile.open(fileobj=io.BytesIO(data))

    def names(self, **how: bool) -> list[str]:
        """Its entries; ` -> ` before what a hard link is a link to."""
        return [
            f"{entry.name} -> {entry.linkname}" if entry.islnk() else entry.name
            for entry in self.tar(**how)
        ]

    def commit(self, base: str | None = "base") -> Image:
        what = Committed(os.fsencode(self.upper), None, base, "the upper", userxattr=True)
        return commit(self.store, what, Description(1, "test"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


# --- entries


def test_only_what_the_upper_has(place: Place) -> None:
    (place.upper / "etc").mkdir()
    (place.upper / "etc/new").write_bytes(b"new")
    os.utime(place.upper / "etc/new", ns=(0, 1_234_567_890_123_456_789))
    assert place.names() == [".", "etc", "etc/new"]
    entry = place.tar().getmember("etc/new")
    assert entry.pax_headers["mtime"] == "1234567890.123456789"
    assert not any(entry.pax_headers for entry in place.tar() if "xattr" in entry.pax_headers)


@needs_root
def test_a_whiteout_in_each_form(place: Place) -> None:
    (place.upper / "etc").mkdir()
    os.mknod(place.upper / "etc/hostname", stat.S_IFCHR, 0)
    (place.upper / "etc/big").touch()
    place.mark("etc/big", USER.whiteout, b"y")
    place.mark("etc", USER.opaque, b"x")
    (place.upper / ".wh.gone").touch()
    os.mknod(place.upper / "never", stat.S_IFCHR, 0)
    assert place.names() == [".", "etc", "etc/.wh.big", "etc/.wh.hostname", ".wh.gone"]


@pytest.mark.parametrize("form", ["overlay", "fuse-overlayfs", "oci"])
def test_an_opaque_directory_names_what_it_hides(place: Place, form: str) -> None:
    (place.upper / "etc").mkdir()
    (place.upper / "etc/big").write_bytes(b"mine")
    if form == "overlay":
        place.mark("etc", USER.opaque, b"y")
    elif form == "fuse-overlayfs":
        place.mark("etc", marks.FUSE_OVERLAYFS.opaque, b"y")
    else:
        (place.upper / "etc/.wh..wh..opq").touch()
    assert place.names() == [".", "etc", "etc/big", "etc/.wh.big-link", "etc/.wh.hostname"]


def test_a_renamed_directory_is_written_whole(place: Place) -> None:
    (place.upper / ".wh.gone").touch()
    (place.upper / "here").mkdir(0o700)
    place.mark("here", USER.redirect, b"gone")
    (place.upper / "here/file").write_bytes(b"changed")
    assert place.names() == [
        *(".", ".wh.gone", "here", "here/deep", "here/deep/big", "here/deep/leaf", "here/file"),
        # The hard links stay links; the parent is as the base has it, so that no engine makes it.
        *("etc", "etc/big -> here/deep/big", "etc/big-link -> here/deep/big"),
    ]
    tar = place.tar()
    assert (tar.getmember("here/deep/big").uid, tar.getmember("here/deep/big").mode) == (7, 0o600)
    assert tar.extractfile("here/deep/big").read() == b"B" * 5000  # type: ignore[union-attr]
    assert tar.extractfile("here/file").read() == b"changed"  # type: ignore[union-attr]


def test_redirects_on_the_way_and_from_the_root(place: Place) -> None:
    (place.upper / "a/b").mkdir(parents=True)
    place.mark("a", USER.redirect, b"gone")
    place.mark("a/b", USER.redirect, b"deep")
    (place.upper / "c").mkdir()
    place.mark("c", USER.redirect, b"/gone/deep")
    assert place.names()[:9] == [
        *(".", "a", "a/b", "a/b/big", "a/b/leaf", "a/deep", "a/deep/big -> a/b/big"),
        *("a/deep/leaf", "a/file"),
    ]


def test_a_renamed_directory_over_another(place: Place) -> None:
    (place.upper / ".wh.gone").touch()
    (place.upper / "etc").mkdir()
    place.mark("etc", USER.redirect, b"gone")
    assert place.names() == [
        *(".", "etc", "etc/.wh.big", "etc/.wh.big-link", "etc/deep", "etc/deep/big"),
        *("etc/deep/leaf", "etc/file", "etc/.wh.hostname", ".wh.gone"),
    ]


def test_a_metacopy_has_the_data_of_the_base(place: Place) -> None:
    (place.upper / "etc").mkdir()
    with (place.upper / "etc/renamed").open("wb") as file:
        file.truncate(3000)
    place.mark("etc/renamed", USER.metacopy, b"")
    place.mark("etc/renamed", USER.redirect, b"/gone/file")
    os.chmod(place.upper / "etc/renamed", 0o751)
    before = len(list(place.store.objects()))
    entry = place.tar().getmember("etc/renamed")
    assert place.tar().extractfile(entry).read() == b"G" * 3000  # type: ignore[union-attr]
    assert entry.mode == 0o751
    place.commit()
    assert len(list(place.store.objects())) == before


def test_hard_links_in_the_upper(place: Place) -> None:
    (place.upper / "one").write_bytes(b"1")
    os.link(place.upper / "one", place.upper / "two")
    os.symlink("one", place.upper / "soft")
    os.link(place.upper / "soft", place.upper / "softer", follow_symlinks=False)
    assert place.names() == [".", "one", "soft", "softer -> soft", "two -> one"]


@pytest.mark.parametrize("in_upper", [True, False])
def test_names_of_a_hard_link_that_the_upper_has_not_seen(place: Place, in_upper: bool) -> None:
    with Index(place.base.image_index) as index:
        etc = index.lookup(index.root_nid, b"etc")
        assert etc is not None
        nid = index.lookup(etc, b"big")
        assert nid is not None
    handle = format_handle(handles.handle_of(handles.identity(place.base.image_index), nid))
    indexed = place.work / "index" / handle.hex()
    indexed.write_bytes(b"changed")
    (place.upper / "etc").mkdir()
    if in_upper:
        os.link(indexed, place.upper / "etc/big-link")
    else:
        (place.upper / "etc/.wh.big-link").touch()
    first = "etc/big-link" if in_upper else "etc/big"
    tar = place.tar(work=True)
    assert tar.extractfile(first).read() == b"changed"  # type: ignore[union-attr]
    added = ["etc/big -> etc/big-link", "gone", "gone/deep", "gone/deep/big -> etc/big-link"]
    if not in_upper:
        added = ["etc/big", "gone", "gone/deep", "gone/deep/big -> etc/big"]
    known = "etc/big-link" if in_upper else "etc/.wh.big-link"
    assert place.names(work=True) == [".", "etc", known, *added]
    assert place.tar(work=True).getmember("gone").uid == 3
    assert place.names() == [".", "etc", known]


def test_marks_are_dropped_and_escaped_ones_are_content(place: Place) -> None:
    (place.upper / "file").write_bytes(b"x")
    for name in ("origin", "nlink", "protattr", "impure", "uuid"):
        place.mark("file", USER.prefix + name.encode(), b"U+1")
    place.mark("file", USER.escape(b"user.overlay.opaque"), b"y")
    place.mark("file", b"user.own", b"1")
    xattrs = {
        key.removeprefix("SCHILY.xattr."): value
        for key, value in place.tar().getmember("file").pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    assert xattrs == {"user.overlay.opaque": "y", "user.own": "1"}


def test_owners_and_modes_in_xattrs(place: Place) -> None:
    override = marks.CONTAINERS_OVERRIDE_STAT
    (place.upper / "file").write_bytes(b"x")
    (place.upper / "null").write_bytes(b"")
    os.setxattr(place.upper, override, b"1:2:0711")
    place.mark("file", override, b"1000:1001:4755")
    place.mark("null", override, b"0:0:0666:char-1-3")
    tar = place.tar()
    root, file, null = (tar.getmember(name) for name in (".", "file", "null"))
    assert (root.uid, root.gid, root.mode) == (1, 2, 0o711)
    assert (file.uid, file.gid, file.mode) == (1000, 1001, 0o4755)
    assert (null.ischr(), null.devmajor, null.devminor) == (True, 1, 3)
    assert not any("override" in key for entry in tar for key in entry.pax_headers)


def test_sockets_are_left_out(place: Place) -> None:
    (place.upper / "etc").mkdir()
    os.chdir(place.upper / "etc")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind("new")
        other.bind("hostname")
    assert place.names() == [".", "etc", "etc/.wh.hostname"]


def test_the_family_of_marks_is_found_in_the_upper(place: Place) -> None:
    (place.upper / "etc").mkdir()
    place.mark("etc", USER.redirect, b"gone")
    place.mark("", USER.impure, b"y")
    what = Committed(os.fsencode(place.upper), None, "base", "the upper")
    with Index(commit(place.store, what, Description(1, "test")).image_index) as index:
        etc = index.lookup(index.root_nid, b"etc")
        assert etc is not None
        assert index.lookup(etc, b"file") is not None


# --- the image


def test_the_same_upper_gives_the_same_layer_and_keeps_nothing_twice(place: Place) -> None:
    (place.upper / "copy").write_bytes(b"B" * 5000)
    (place.upper / "new").write_bytes(b"N" * 5000)
    before = set(place.store.objects())
    first = place.commit()
    assert len(set(place.store.objects()) - before) == 1
    second = place.commit()
    assert second.id == first.id
    assert [layer.diff_id for layer in first.layers[:-1]] == [
        layer.diff_id for layer in place.base.layers
    ]
    assert first.size == place.base.size + 10_000
    assert problems(place.root) == []
    assert litter(place.root) == []


def test_without_a_base(place: Place) -> None:
    (place.upper / "file").write_bytes(b"x")
    (place.upper / "new").mkdir()
    place.mark("new", USER.opaque, b"y")  # as the kernel marks what it makes
    image = place.commit(base=None)
    assert len(image.layers) == 1
    assert image.config["rootfs"]["diff_ids"] == [image.layers[0].diff_id]


@pytest.mark.parametrize("mark", ["redirect", "metacopy", "whiteout", "name"])
def test_an_upper_that_needs_a_base_is_refused_without(place: Place, mark: str) -> None:
    if mark == "redirect":
        (place.upper / "x").mkdir()
    else:
        (place.upper / ("x" if mark != "name" else ".wh.x")).touch()
    if mark != "name":
        place.mark("x", USER.prefix + mark.encode(), b"" if mark == "metacopy" else b"y")
    with pytest.raises(StoreError, match=r"x: .*: name that with --base IMAGE") as refused:
        place.commit(base=None)
    assert "\n" not in str(refused.value)
    assert len(image_ids(place.root)) == 1
    assert litter(place.root) == []


@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        (b"/nowhere", "x: goes on in the base at nowhere, where the base has nothing of its kind"),
        (b"/etc/hostname", "x: goes on in the base at etc/hostname"),
        (b"/../etc", "x: redirect b'/../etc' has the component b'..': this upper is damaged"),
        (b"a/b", "is neither absolute nor a single name"),
    ],
)
def test_a_redirect_that_leads_nowhere(place: Place, redirect: bytes, message: str) -> None:
    (place.upper / "x").mkdir()
    place.mark("x", USER.redirect, redirect)
    with pytest.raises(StoreError) as refused:
        place.commit()
    assert message in str(refused.value)
    assert litter(place.root) == []


@needs_root
def test_a_removed_name_that_no_layer_can_say(tmp_path: Path) -> None:
    long = "n" * 252
    root = str(tmp_path / "store")
    (tmp_path / "upper").mkdir()
    os.mknod(tmp_path / "upper" / long, stat.S_IFCHR, 0)
    with Store.open(root, create=True) as store:
        source = layout_of([tar_of([Item(long, b"x")])]).archive(tmp_path / "base.tar")
        store.import_image(source, "base")
        what = Committed(os.fsencode(tmp_path / "upper"), None, "base", "the upper")
        with pytest.raises(StoreError, match="cannot say of a name over 251 bytes"):
            commit(store, what, Description(1, "test"))


def test_an_upper_that_is_mounted(place: Place) -> None:
    held = lock(os.fsencode(place.upper), 2)
    try:
        with pytest.raises(StoreError, match="the upper is mounted: unmount it first"):
            place.commit()
    finally:
        os.close(held)
    place.commit()


def test_a_named_upper_knows_its_base(place: Place) -> None:
    upper, _ = place.store.named_upper("mine", place.base)
    with open(os.path.join(upper, b"new"), "wb") as file:
        file.write(b"new")
    image = commit(place.store, named(place.store, "mine"), Description(1, "test"), "made")
    assert image.tags == ["made:latest"]
    assert image.layers[:-1] == place.base.layers
    assert image.source == "commit of the upper mine on base:latest"
    with pytest.raises(StoreError, match="there is no named upper other"):
        named(place.store, "other")


# --- the config


def config_of(*changes: str, base: dict[str, Any] | None = None) -> dict[str, Any]:
    description = Description(
        1_700_000_000_000_000_001, "test", "me", "why", [parse_change(text) for text in changes]
    )
    found: dict[str, Any] = json.loads(committed(base, 1, ["sha256:a", "sha256:b"], description))
    return found


def test_what_the_config_says() -> None:
    base = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "config": {"Env": ["PATH=/bin", "A=0"], "Cmd": ["old"], "Labels": {"kept": "1"}},
        "history": [{"created_by": "one"}, {"created_by": "two", "empty_layer": True}],
    }
    found = config_of('CMD ["a", "b"]', 'env A=1 B="two words"', "LABEL=new=2", base=base)
    when = "2023-11-14T22:13:20.000000001Z"
    assert (found["architecture"], found["variant"], found["created"]) == ("arm64", "v8", when)
    assert found["config"] == {
        "Env": ["PATH=/bin", "A=1", "B=two words"],
        "Cmd": ["a", "b"],
        "Labels": {"kept": "1", "new": "2"},
    }
    assert found["history"][2:] == [
        {"created": when, "created_by": "test", "author": "me", "comment": "why"}
    ]
    assert found["rootfs"] == {"type": "layers", "diff_ids": ["sha256:a", "sha256:b"]}
    assert base["config"] == {
        "Env": ["PATH=/bin", "A=0"],
        "Cmd": ["old"],
        "Labels": {"kept": "1"},
    }


def test_every_instruction() -> None:
    found = config_of(
        "CMD=echo hi",
        'ENTRYPOINT ["/bin/sh"]',
        "ENV HOME /root or so",
        "EXPOSE 80 53/udp",
        "STOPSIGNAL SIGINT",
        "USER 1000:1000",
        "VOLUME /data /more",
        "WORKDIR /srv",
    )
    assert found["config"] == {
        "Cmd": ["/bin/sh", "-c", "echo hi"],
        "Entrypoint": ["/bin/sh"],
        "Env": ["HOME=/root or so"],
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "StopSignal": "SIGINT",
        "User": "1000:1000",
        "Volumes": {"/data": {}, "/more": {}},
        "WorkingDir": "/srv",
    }


def test_a_base_whose_history_does_not_tell_of_all_its_layers() -> None:
    found = config_of(base={"history": [{"empty_layer": True}]})
    assert [entry.get("comment") for entry in found["history"]] == [None, "not told", "why"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("FROM x", "known are CMD, ENTRYPOINT"),
        ("CMD", "is no instruction with a value"),
        ("ENV =1", "is not NAME=VALUE"),
        ("EXPOSE http", "is not PORT"),
        ("LABEL a='b", "No closing quotation"),
    ],
)
def test_a_change_that_cannot_be(change: str, message: str) -> None:
    with pytest.raises(StoreError) as refused:
        parse_change(change)
    assert message in str(refused.value)


# --- the command


def test_the_command(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.upper / "file").write_bytes(b"x")
    words = ["--root", str(place.root), "commit", str(place.upper), "--base", "base"]
    assert run([*words, "--tag", "made", "-c", "CMD=sh", "-m", "why", "-a", "me"]) == 0
    image_id, tag = capsys.readouterr().out.split()
    assert tag == "made:latest"
    assert run(["--root", str(place.root), "--json", "inspect", "made"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["id"] == image_id
    assert found["config"]["config"]["Cmd"] == ["/bin/sh", "-c", "sh"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name either a directory or, with --upper, a named upper"),
        (["x", "--upper", "y"], "name either a directory"),
        (["--upper", "y", "--base", "z"], "a named upper knows its base"),
        (["--upper", "y"], "there is no named upper y"),
        (["nowhere", "--base", "base"], "nowhere: there is no such directory"),
        ([".", "--base", "other"], "other: no such image"),
        ([".", "--base", "base", "--tag", "UPPER"], "is no name for an image"),
        ([".", "--base", "base", "-c", "RUN x"], "is no instruction with a value"),
    ],
)
def test_mistakes(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    os.chdir(place.upper)
    assert run(["--root", str(place.root), "commit", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(image_ids(place.root)) == 1


# --- crashes


def test_killed_at_every_step(tmp_path: Path) -> None:
    (tmp_path / "upper/etc").mkdir(parents=True)
    (tmp_path / "upper/etc/new").write_bytes(b"N" * 5000)
    (tmp_path / "upper/.wh.gone").touch()
    source = layout_of([BASE, TOP]).archive(tmp_path / "base.tar")
    what = Committed(os.fsencode(tmp_path / "upper"), None, "base", "the upper")
    number = outcomes = 0
    while True:
        number += 1
        root = tmp_path / f"store-{number}"
        with Store.open(str(root), create=True) as store:
            store.import_image(source, "base")

        def work(root: Path = root, number: int = number) -> None:
            with Store.open(str(root)) as store:
                at_step(number, root, lambda: os._exit(DIED))
                commit(store, what, Description(1, "test"), "made")

        status = in_child(work)
        assert status in (0, DIED)
        ids = image_ids(root)
        outcomes |= 1 << len(ids)
        assert problems(root) == []
        if status == 0:
            break
        with Store.open(str(root)) as store:
            commit(store, what, Description(1, "test"), "made")
        assert problems(root) == []
        assert litter(root) == []
        assert len(image_ids(root)) == 2
    assert number > 20
    assert outcomes == 0b110  # some crashed before it was visible, some after
