"""The image that a commit makes: its layers, its config, mistakes, and crashes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from layerstore.cli import run
from layerstore.commit.committing import Committed, commit, named
from layerstore.commit.config import Description, committed, parse_change
from layerstore.errors import StoreError
from layerstore.marks import USER
from layerstore.session import lock
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import TOP, image_ids, litter, problems
from tests.layerstore.test_crash import DIED, at_step, in_child
from tests.layerstore.uppers import BASE, Place, needs_root


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
