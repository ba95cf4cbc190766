"""What comes into the store goes out of it again: ids after export, trees when mounted."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks import commands
from benchmarks.errors import CannotMeasure
from benchmarks.family import archives, trees
from benchmarks.family.goals import Finding
from benchmarks.mounts import Mounter
from benchmarks.stores import Store

SHOWN = 3
"""Differences named of each image."""


def exports(layout: Path, tags: list[str], store: Store, place: Path) -> Iterator[Finding]:
    """Exports every image of a store that has them all, and compares ids; then whether skopeo takes it.

    Args:
        layout: where the images came from.
        tags: their names.
        store: filled; its blobs were kept.
        place: an empty directory.
    """
    for tag in tags:
        what = f"export {tag}: image id, diff ids, manifest digest as imported, read by skopeo"
        exported = place / tag
        try:
            words = store.layerstore("export", tag, f"oci:{exported}:{tag}")
            commands.must(commands.run(words, timeout_s=600))
            same = archives.identity(exported, tag) == archives.identity(layout, tag)
            manifest = archives.manifest_digest(exported, tag)
            kept = manifest == archives.manifest_digest(layout, tag)
            copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{exported}:{tag}"]
            commands.must(commands.run([*copy, f"dir:{place}/{tag}.dir"], timeout_s=600))
            said = f"ids {_same(same)}, manifest {_same(kept)}, taken by skopeo"
            yield Finding(what, said, "same", same and kept)
        except CannotMeasure as reason:
            yield Finding(what, str(reason), "same", False)
        finally:
            for path in (exported, place / f"{tag}.dir"):
                shutil.rmtree(path, ignore_errors=True)


def mounted(
    layout: Path, tags: list[str], store: Store, place: Path, mounter: Mounter
) -> Iterator[Finding]:
    """Mounts every image and compares the tree with what umoci unpacks; arguments as for `exports`."""
    for tag in tags:
        what = f"mount {tag}: the tree that umoci unpacks"
        bundle = place / f"{tag}.bundle"
        try:
            words = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)]
            commands.must(commands.run(words, timeout_s=600))
            with mounter.image(store.spec, store.directory, tag, place, read_only=True) as mount:
                found = list(
                    itertools.islice(trees.differences(mount.root, bundle / "rootfs"), SHOWN)
                )
            yield Finding(what, "; ".join(found) or "the same", "the same", not found)
        except CannotMeasure as reason:
            yield Finding(what, str(reason), "the same", False)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(bundle)


def _same(same: bool) -> str:
    return "the same" if same else "DIFFERENT"
