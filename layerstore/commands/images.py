"""What is in the store, and its names: `images`, `inspect`, `history`, `diff`, `tag`, `rm`,
`uppers`."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from layerstore.commands.output import complain, print_json, print_table, size, summary, when
from layerstore.commands.parsing import Commands, open_store
from layerstore.errors import StoreError, show
from layerstore.refs import short_id
from layerstore.store import Image

log = logging.getLogger(__name__)

_COMMAND_MAX = 45
"""As many characters of a command as podman history shows."""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    commands.add("images", _images, "list the images", aliases=["ls"])
    one = commands.add("inspect", _inspect, "show an image and its layers")
    one.add_argument("image", metavar="IMAGE")
    one = commands.add("history", _history, "show the steps that made an image, newest first")
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("--no-trunc", action="store_true", help="print all of each command")
    one = commands.add("diff", _diff, "show what one image adds, changes and deletes in another")
    one.add_argument("old", metavar="IMAGE")
    one.add_argument("new", metavar="IMAGE")
    one = commands.add("tag", _tag, "give an image one more name")
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("name", metavar="NAME[:TAG]")
    one = commands.add("rm", _rm, "remove images, or named uppers")
    one.add_argument("names", metavar="IMAGE", nargs="+")
    one.add_argument("--force", "-f", action="store_true", help="by id, whatever tags it has")
    one.add_argument("--upper", action="store_true", help="remove named uppers, not images")
    commands.add("uppers", _uppers, "list the named uppers")


def _images(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        images = store.images()
    if arguments.json:
        print_json([summary(image) for image in images])
        return 0
    rows = [
        (tag, short_id(image.id), str(len(image.layers)), size(image.size), when(image))
        for image in images
        for tag in image.tags or ["<none>"]
    ]
    print_table(("NAME", "ID", "LAYERS", "SIZE", "IMPORTED"), rows)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        image = store.resolve(arguments.image)
    if arguments.json:
        print_json(_details(image))
        return 0
    print("id:      ", image.id)
    print("tags:    ", ", ".join(image.tags) or "none")
    system = [image.config.get("os"), image.config.get("architecture")]
    print("platform:", show("/".join(str(part) for part in system if part)))
    print("source:  ", image.source)
    print("imported:", when(image))
    print("index:   ", show(image.image_index))
    print("size:    ", size(image.size))
    print("layers, top first:")
    for number in range(len(image.layers), 0, -1):
        layer = image.layers[number - 1]
        entries = f"{layer.entries} entries"
        print(f"  {number:3} {layer.diff_id}  {entries:>15}  {size(layer.content_size)}")
    return 0


def _details(image: Image) -> dict[str, Any]:
    layers = [
        {**layer._asdict(), "index": show(path)}
        for layer, path in zip(image.layers, image.layer_indexes, strict=True)
    ]
    return {
        **summary(image),
        "chain_id": image.chain_id,
        "index": show(image.image_index),
        "layers": layers,
        "config": image.config,
    }


def _history(arguments: argparse.Namespace) -> int:
    from layerstore.history import history

    with open_store(arguments) as store:
        steps = history(store.resolve(arguments.image))
    if arguments.json:
        print_json([step.as_data() for step in steps])
        return 0
    rows = []
    for step in steps:
        by = show(step.created_by)
        if len(by) > _COMMAND_MAX and not arguments.no_trunc:
            by = by[: _COMMAND_MAX - 3] + "..."
        layer = short_id(step.layer.diff_id) if step.layer is not None else "-"
        created = step.created[:19].replace("T", " ") or "-"
        rows.append((layer, created, by, size(step.size), show(step.comment)))
    print_table(("LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"), rows)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from layerstore.difference import differences
    from layerstore.index.reader import Index

    with open_store(arguments) as store:
        paths = [store.index_of(name) for name in (arguments.old, arguments.new)]
        with Index(paths[0]) as old, Index(paths[1]) as new:
            changes = differences(old, new)
    if arguments.json:
        rows = [
            {"kind": kind, "path": os.fsdecode(path), "type": kind_of_file}
            for kind, path, kind_of_file in changes
        ]
        print_json({"changes": rows})
        return 0
    for change in changes:
        print(change.kind, show(change.path))
    return 0


def _tag(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        store.tag(arguments.image, arguments.name)
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    status = 0
    objects = freed = 0
    with open_store(arguments) as store:
        for name in arguments.names:
            try:
                if arguments.upper:
                    store.remove_upper(name)
                    continue
                done = store.remove(name, force=arguments.force)
            except StoreError as error:
                status = complain(str(error))
                continue
            if done is None:
                log.warning("an import is running: what %s took is freed after it", name)
            else:
                objects, freed = objects + done.objects, freed + done.bytes
    if arguments.json:
        print_json({"objects": objects, "bytes": freed})
    elif freed:
        print(f"freed {size(freed)} in {objects} objects")
    return status


def _uppers(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        uppers = store.uppers()
        images = {image.id: image for image in store.images()}
    if arguments.json:
        print_json([{"name": name, "image": image_id} for name, image_id in uppers.items()])
        return 0
    rows = [(name, images[image_id].name) for name, image_id in uppers.items()]
    print_table(("NAME", "IMAGE"), rows)
    return 0
