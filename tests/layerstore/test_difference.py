"""What diff says of two images agrees with comparing their trees naively; history says what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from layerstore.cli import run
from layerstore.difference import Change, differences
from layerstore.history import history
from layerstore.index.reader import Index, Inline, Object
from layerstore.index.tree import Node, directory
from layerstore.index.writer import write_index
from tests.layerstore.archives import layout_of
from tests.layerstore.stores import BASE, TOP, imported

NAMES = (b"a", b"b", b"c")


def nodes() -> st.SearchStrategy[Node]:
    """Trees that often agree in places."""
    common = {
        "uid": st.sampled_from([0, 1]),
        "mtime_ns": st.sampled_from([0, 1_000_000_001]),
    }

    def file(content: tuple[Any, int], **attributes: int) -> Node:
        node = Node(0o100644, **attributes)
        node.set_content(*content)
        return node

    def link(target: bytes, **attributes: int) -> Node:
        node = Node(0o120777, **attributes)
        node.target = target
        return node

    def of(children: dict[bytes, Node], mode: int, **attributes: int) -> Node:
        node = directory(mode, **attributes)
        node.children = children
        return node

    contents = st.sampled_from(
        [(Inline(b"1"), 1), (Inline(b"2"), 1), (Object(b"ab/" + b"c" * 62), 900)]
    )
    leaves = st.one_of(
        st.builds(file, contents, **common),
        st.builds(link, st.sampled_from([b"x", b"y"]), **common),
        st.builds(Node, st.just(0o010600), **common),
    )
    return st.recursive(
        leaves,
        lambda below: st.builds(
            of,
            st.dictionaries(st.sampled_from(NAMES), below, max_size=3),
            st.sampled_from([0o755, 0o700]),
            **common,
        ),
        max_leaves=8,
    )


def roots() -> st.SearchStrategy[Node]:
    def root(children: dict[bytes, Node]) -> Node:
        node = directory()
        node.children = children
        return node

    return st.builds(root, st.dictionaries(st.sampled_from(NAMES), nodes(), max_size=3))


def naive(old: Node, new: Node) -> set[tuple[str, bytes]]:
    """By the words of docker diff, on the trees themselves."""

    def attributes(node: Node) -> tuple[object, ...]:
        own: tuple[object, ...] = (node.mode, node.uid, node.gid, node.rdev)
        if node.children is not None:
            return own
        return (*own, node.mtime_ns, node.size, node.content, node.target)

    def compare(path: bytes, old: Node | None, new: Node | None) -> set[tuple[str, bytes]]:
        if new is None:
            return {("D", path)}
        before = old.children or {} if old is not None else {}
        now = new.children or {}
        # Of what is no directory any more nothing is named but itself.
        names = before.keys() | now.keys() if new.children is not None else set()
        below = [compare(path + b"/" + n, before.get(n), now.get(n)) for n in names]
        found = set[tuple[str, bytes]]().union(*below)
        if old is None:
            found.add(("A", path))
        elif attributes(old) != attributes(new) or found:
            found.add(("C", path))
        return found

    return compare(b"", old, new) - {("C", b"")}


@hypothesis.given(old=roots(), new=roots())
@hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_as_a_naive_comparison(tmp_path: Path, old: Node, new: Node) -> None:
    paths = [tmp_path / "old", tmp_path / "new"]
    for path, tree in zip(paths, (old, new), strict=True):
        with path.open("wb") as file:
            write_index(tree, file)
    with Index(str(paths[0])) as before, Index(str(paths[1])) as now:
        found = differences(before, now)
        assert {(kind, path) for kind, path, _ in found} == naive(old, new)
        assert [change.path.split(b"/") for change in found] == sorted(
            change.path.split(b"/") for change in found
        )
        assert differences(now, now) == []


def test_the_root_alone(tmp_path: Path) -> None:
    for name, mode in (("old", 0o755), ("new", 0o700)):
        with (tmp_path / name).open("wb") as file:
            write_index(directory(mode), file)
    with Index(str(tmp_path / "old")) as old, Index(str(tmp_path / "new")) as new:
        assert differences(old, new) == [Change("C", b"/", "directory")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    imported(tmp_path / "store", layout_of([BASE]).archive(tmp_path / "one.tar"), "one")
    imported(tmp_path / "store", layout_of([BASE, TOP]).archive(tmp_path / "two.tar"), "two")
    return tmp_path / "store"


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(root), "diff", "one", "two"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("C /etc", "A /etc/copy", "C /etc/hostname", "A /etc/new", "D /gone"),
    ]
    assert run(["--root", str(root), "--json", "diff", "two", "one"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert changes[-1] == {"kind": "A", "path": "/gone/file", "type": "file"}
    assert run(["--root", str(root), "diff", "one", "three"]) == 1
    assert capsys.readouterr().err.startswith("layerstore: three: no such image")


def test_no_content_is_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    assert run(["--root", str(root), "diff", "one", "two"]) == 0


def test_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [
        {"created": "2001-02-03T04:05:06.7Z", "created_by": "first " + "x" * 60},
        {"created_by": "CMD sh", "empty_layer": True, "comment": "nothing new"},
        {"created_by": "second", "author": "me"},
    ]
    source = layout_of([BASE, TOP], config={"history": told}).archive(tmp_path / "image.tar")
    imported(tmp_path / "store", source, "told")
    command = ["--root", str(tmp_path / "store"), "history", "told"]
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["LAYER", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert [line.split()[0] == "-" for line in lines[1:]] == [False, True, False]
    assert "2001-02-03 04:05:06" in lines[3]
    assert "first xxx" in lines[3]
    assert "x..." in lines[3]
    assert run([*command, "--no-trunc"]) == 0
    assert "x" * 60 in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["size"] for step in steps] == [11_004, 0, 8005]
    assert (steps[0]["author"], steps[1]["diff_id"]) == ("me", None)


@pytest.mark.parametrize(
    ("told", "layers"),
    [(None, [1, 0]), ([], [1, 0]), ([{"created_by": "one"}], [1, 0]), ("nonsense", [1, 0])],
)
def test_a_history_that_does_not_tell_of_all_layers(
    tmp_path: Path, told: object, layers: list[int]
) -> None:
    source = layout_of([BASE, TOP], config={"history": told}).archive(tmp_path / "image.tar")
    image = imported(tmp_path / "store", source)
    assert [step.layer for step in history(image)] == [image.layers[at] for at in layers]
