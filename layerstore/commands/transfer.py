"""Images into the store and out of it: `import`, `export`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerstore.commands import compression_options, import_options
from layerstore.commands.output import print_json, print_pushed, progress_bars, summary
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

_DESTINATIONS = """
destinations, spelled like the sources of import:
  oci-archive:PATH[:TAG]           an OCI layout in a tar
  oci:DIR[:TAG]                    an OCI layout in a directory, a new one or one that has images
  docker-archive:PATH[:NAME:TAG]   what docker load and podman load read
  tar:PATH                         the root file system in a tar
  dir:PATH                         the root file system in a new directory
  docker://REFERENCE               an image in a registry; layerstore push has options for it
PATH is - for standard output, but for oci: and dir:.
"""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    one = commands.add(
        "import",
        _import,
        "bring an image into the store",
        epilog=_SOURCES,
    )
    one.add_argument("source", metavar="SOURCE")
    one.add_argument("--tag", "-t", metavar="NAME[:TAG]", help="the name it gets")
    import_options.add(one)
    one = commands.add(
        "export",
        _export,
        "write an image to a file or a directory",
        epilog=_DESTINATIONS,
    )
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("destination", metavar="DESTINATION")
    compression_options.add(
        one,
        "how layers are compressed, or all of a tar: (default: in OCI layouts as they came where"
        " they were kept or plain, else anew as they were; elsewhere none)",
    )
    one.add_argument("--force", "-f", action="store_true", help="replace a file that is there")


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


def _export(arguments: argparse.Namespace) -> int:
    compression = compression_options.chosen(arguments)
    with open_store(arguments) as store, progress_bars() as progress:
        if arguments.destination.startswith("docker://"):
            from layerstore.registry.images import push

            name, reference = arguments.image, arguments.destination
            pushed = push(store, name, reference, progress, compression=compression)
            return print_pushed(pushed, arguments.json)
        done = store.export_image(
            arguments.image,
            arguments.destination,
            progress,
            compression=compression,
            force=arguments.force,
        )
    if done.is_stream:
        return 0
    if arguments.json:
        print_json({"id": done.image_id, "manifest": done.manifest})
    else:
        print(done.image_id, *([done.manifest] if done.manifest is not None else []))
    return 0
