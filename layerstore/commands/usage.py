"""What the store takes: `du`."""

from __future__ import annotations

import argparse
from typing import Any

from layerstore.commands.output import print_json, print_table, size
from layerstore.commands.parsing import Commands, open_store
from layerstore.refs import short_id


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    one = commands.add("du", _du, "show what images and the whole store take")
    one.add_argument(
        "--apparent-size", action="store_true", help="bytes in files, not the blocks they take"
    )


def _du(arguments: argparse.Namespace) -> int:
    from layerstore.usage import Size, usage

    with open_store(arguments) as store:
        found = usage(store)

    def data(what: Size) -> dict[str, int]:
        return what._asdict()

    if arguments.json:
        images: list[dict[str, Any]] = [
            {
                "id": one.image.id,
                "tags": one.image.tags,
                "total": data(one.total),
                "unique": data(one.unique),
                "shared": data(one.shared),
                "reclaimable": data(one.reclaimable),
                "held_by": one.held_by,
            }
            for one in found.images
        ]
        print_json(
            {
                "images": images,
                "parts": {name: data(part) for name, part in found.parts.items()},
                "total": data(found.total),
                "shared": data(found.shared),
                "unneeded": data(found.unneeded),
                "content_bytes": found.content_bytes,
                "ratio": round(found.ratio, 3),
            }
        )
        return 0

    def shown(what: Size) -> str:
        return size(what.apparent if arguments.apparent_size else what.disk)

    rows = [
        (
            one.image.name,
            short_id(one.image.id),
            shown(one.total),
            shown(one.unique),
            shown(one.shared),
            shown(one.reclaimable) + (f" ({one.held_by} holds it)" if one.held_by else ""),
        )
        for one in found.images
    ]
    print_table(("NAME", "ID", "TOTAL", "UNIQUE", "SHARED", "RECLAIMABLE"), rows)
    print()
    parts = [(name, shown(part)) for name, part in found.parts.items() if part.disk]
    print_table(("PART", "SIZE"), [*parts, ("total", shown(found.total))])
    print()
    print(
        f"shared by several images: {shown(found.shared)}; needed by none: {shown(found.unneeded)}"
    )
    print(
        f"files of all images: {size(found.content_bytes)}, kept in {size(found.kept_bytes)}:"
        f" {found.ratio:.2f} to 1"
    )
    return 0
