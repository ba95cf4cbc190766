"""What the tests of layers in parts share: an image before and one after, and what must be the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerstore.registry.access import Access
from layerstore.registry.images import pull
from layerstore.registry.pull import Traffic
from layerstore.store import Image, Store
from tests.layerstore.archives import Item, digest_of, folder, hard_link, symlink, tar_of
from tests.layerstore.chunked import Change, layout_with, plain
from tests.layerstore.registry.served import Served
from tests.layerstore.stores import litter, problems

CHANCE = random.Random(1)
CONTENT = {f"etc/f{number}": CHANCE.randbytes(9_000 + 100 * number) for number in range(40)}
CHANGED = {name: CHANCE.randbytes(7_000) for name in ("etc/f3", "etc/f4", "etc/f20")}
TWICE = CHANCE.randbytes(30_000)

Writer = Callable[..., tuple[bytes, dict[str, str]]]


def tree(content: dict[str, bytes]) -> bytes:
    """A layer with everything that a layer may have."""
    files = [Item(name, data, mtime=1.5, xattrs={"user.x": "y"}) for name, data in content.items()]
    return tar_of(
        [
            folder("etc"),
            *files[:20],
            symlink("etc/link", "f1"),
            hard_link("etc/hard", "etc/f2"),
            Item("etc/small", b"small"),
            Item("etc/empty"),
            *files[20:],
            Item(".wh.gone"),
            folder("last"),
        ]
    )


BEFORE = tree(CONTENT)
AFTER = tree(CONTENT | CHANGED | {"etc/twice": TWICE, "etc/again": TWICE})
MISSING = sum(map(len, CHANGED.values())) + len(TWICE)


def served_as(served: Served, tag: str, tar: bytes, write: Writer, **options: Any) -> bytes:
    """Serve an image of one layer; returns its blob."""
    blob, annotations = write(tar, **options)
    served.add(layout_with([(plain(blob), blob, annotations)]), tag)
    return blob


def pulled(
    root: Path, served: Served, tag: str, access: Access, **options: Any
) -> tuple[Image, Traffic]:
    traffic = Traffic()
    with Store.open(str(root), create=True) as store:
        reference = f"{served.name}/a:{tag}"
        image = pull(store, reference, access=access, traffic=traffic, **options)
    assert problems(root) == []
    assert litter(root) == []
    return image, traffic


def indexes(root: Path) -> dict[str, bytes]:
    """All that is in the store of layers and images, but for their tars' splits' compression."""
    found = [*(root / "layers").iterdir(), *(root / "images").iterdir()]
    return {path.name: path.read_bytes() for path in found}


def is_as_whole(
    root: Path, served: Served, image: Image, access: Access, other: Path, tar: bytes = AFTER
) -> None:
    """Compare a store with one that was filled without tables of contents."""
    pulled(other, served, "before", access, partial=False)
    whole, traffic = pulled(other, served, "after", access, partial=False)
    assert traffic.fetched == traffic.total
    assert (image.id, image.chain_id, image.manifest) == (whole.id, whole.chain_id, whole.manifest)
    assert indexes(root) == indexes(other)
    with Store.open(str(root)) as store, Store.open(str(other)) as there:
        assert list(store.objects()) == list(there.objects())
        with store.layer_tar(digest_of(tar)) as rebuilt:
            assert rebuilt.read() == tar


def changed(name: str, /, **values: Any) -> Change:
    """Changes an entry of a table."""

    def change(table: dict[str, Any]) -> None:
        (found,) = [one for one in table["entries"] if one["name"] == name]
        found.update(values)

    return change
