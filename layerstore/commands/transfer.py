"""Images into the store and out of it: `import`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerstore.commands import import_options
from layerstore.commands.output import print_json, progress_bars, summary
from layerstore.commands.parsing import Commands, open_store
from layerstore.store import Image, Store

if TYPE_CHECKING:
    from layerstore.importer import Progress

_SOURCES = """
sources, as skopeo spells them:
  oci-archive:PATH[:TAG]               an OCI layout in a tar (podman save --format oci-archive)
  oci:DIR[:TAG]                        an OCI layout in a directory (umoci, buildah push oci:)
  docker-archive:PATH[:NAME:TAG|:@N]   what docker save and podman save write
  tar:PATH                             a root file system in a tar; - is standard input
  dir:PATH                             a root file system in a directory
  docker://REFERENCE                   an image in a registry; layerstore pull has options for it
A PATH alone is looked at. Archives and layers may be plain, gzip or zstd.
"""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    one = commands.add(
        "import",
        _import,
        "bring an image into the store",
        epilog=_SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("source", metavar="SOURCE")
    one.add_argument("--tag", "-t", metavar="NAME[:TAG]", help="the name it gets")
    import_options.add(one)


def _import(arguments: argparse.Namespace) -> int:
    with open_store(arguments, create=True) as store, progress_bars() as progress:
        image = _take_in(store, arguments, progress)
    if arguments.json:
        print_json(summary(image))
    else:
        print(image.id, *image.tags)
    return 0


def _take_in(store: Store, arguments: argparse.Namespace, progress: Progress | None) -> Image:
    source, tag, options = arguments.source, arguments.tag, import_options.chosen(arguments)
    if source.startswith("docker://"):
        from layerstore.registry.images import pull

        return pull(store, source, tag, progress, **options)
    return store.import_image(source, tag, progress, **options)
