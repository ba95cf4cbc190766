"""What an index refers to, read in two ways; and collections that meet damage or many files."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from layerstore import digests
from layerstore.collect import IMAGES, LAYERS, index_path, objects_named_in, objects_of
from layerstore.errors import IndexCorrupt
from layerstore.index.reader import Inline, Object
from layerstore.index.tree import Node, directory
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import problems
from tests.layerstore.test_index import image
from tests.layerstore.trees import trees


def both(path: Path, root: Node) -> tuple[set[bytes], set[bytes]]:
    """The objects of the index of a tree, from its text and from its structure."""
    path.write_bytes(image(root))
    where = os.fsencode(path)
    return objects_named_in(where, digests.of_file(where)), objects_of(where)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trees())
def test_the_text_of_an_index_names_its_objects(tmp_path: Path, root: Node) -> None:
    named, referred = both(tmp_path / "index", root)
    assert named == referred


def test_marks_between_two_reads(tmp_path: Path) -> None:
    """An index of several MiB, with marks at every possible place around their borders."""
    root = directory()
    assert root.children is not None
    keys = set()
    for number in range(30_000):
        node = Node(stat.S_IFREG | 0o644)
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        node.set_content(Object(f"{digest[:2]}/{digest[2:]}".encode()), 1000)
        node.xattrs = {b"user.x": bytes(number % 32)}
        root.children[b"%d" % number] = node
        keys.add(bytes.fromhex(digest))
    named, referred = both(tmp_path / "index", root)
    assert named == referred == keys


def test_what_looks_like_a_mark_keeps_an_object_and_harms_nobody(tmp_path: Path) -> None:
    root = directory()
    assert root.children is not None
    digest = hashlib.sha256(b"x").hexdigest()
    text = f"overlay.redirect/{digest[:2]}/{digest[2:]}".encode()
    node = Node(stat.S_IFREG | 0o644)
    node.set_content(Inline(text), len(text))
    root.children[b"f"] = node
    named, referred = both(tmp_path / "index", root)
    assert named == {bytes.fromhex(digest)}
    assert referred == set()


@pytest.mark.parametrize("kind", [LAYERS, IMAGES])
def test_damage_that_can_be_read_puts_a_collection_off(tmp_path: Path, kind: bytes) -> None:
    """One digit of a redirect is another: the index is sound but for its digest, and the object that
    it should name must stay."""
    with Store.open(str(tmp_path / "store"), create=True) as store:
        archive = layout_of([tar_of([Item("f", b"1" * 600)])]).archive(tmp_path / "a.tar")
        kept = store.import_image(archive, "kept")
        digest = kept.layers[0].diff_id if kind == LAYERS else kept.chain_id
        path = index_path(store.root, kind, digest)
        data = Path(os.fsdecode(path)).read_bytes()
        at = data.index(b"overlay.redirect/") + 40
        os.chmod(path, 0o644)
        Path(os.fsdecode(path)).write_bytes(
            data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]
        )
        before = list(store.objects())
        with pytest.raises(IndexCorrupt, match="as it was made"):
            store.collect()
        assert list(store.objects()) == before
        Path(os.fsdecode(path)).write_bytes(data)
        store.collect()
        assert list(store.objects()) == before
        assert problems(Path(os.fsdecode(store.root))) == []
