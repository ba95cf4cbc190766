"""The `layerstore` command: argv to `Store`, results to standard output, errors to one line.

Exit status 0: done; 1: an error, said in one line; 2: a command line that cannot be meant.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from layerstore.errors import StoreError, show
from layerstore.refs import short_id
from layerstore.store import Image, Store

if TYPE_CHECKING:
    from layerstore.importer import Progress

log = logging.getLogger(__name__)

_SOURCES = """
sources, as skopeo spells them:
  oci-archive:PATH[:TAG]               an OCI layout in a tar (podman save --format oci-archive)
  oci:DIR[:TAG]                        an OCI layout in a directory (umoci, buildah push oci:)
  docker-archive:PATH[:NAME:TAG|:@N]   what docker save and podman save write
  tar:PATH                             a root file system in a tar; - is standard input
  dir:PATH                             a root file system in a directory
A PATH alone is looked at. Archives and layers may be plain, gzip or zstd.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(format="layerstore: %(message)s", level=logging.WARNING)
    # Ended by a signal, an import still tidies up.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _terminated)
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.function(arguments)
        sys.stdout.flush()
        return status
    except StoreError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Nobody reads on; nor should the interpreter try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{show(error.filename)}: {error.strerror}")
    except sqlite3.OperationalError as error:
        return _fail(f"the store's database: {error}: is another layerstore stuck?")


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _fail(message: str, status: int = 1) -> int:
    print("layerstore:", " ".join(message.split("\n")), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerstore", description="Keeps container images, every distinct file once."
    )
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--root",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="the store (default: $LAYERSTORE_ROOT, /var/lib/layerstore for root,"
        " ~/.local/share/layerstore for users)",
    )
    place.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, not text"
    )
    parser.add_argument("--root", metavar="DIR", default=None, help="the store")
    parser.add_argument("--json", action="store_true", help="print JSON, not text")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, summary: str, **more: Any) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:],
            parents=[place],
            **more,
        )
        made.set_defaults(function=function)
        return made

    one = command(
        "import",
        _import,
        "bring an image into the store",
        epilog=_SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("source", metavar="SOURCE")
    one.add_argument("--tag", "-t", metavar="NAME[:TAG]", help="the name it gets")
    one.add_argument(
        "--absolute-names",
        "-P",
        action="store_true",
        help="take absolute names in a layer as below the root of the image",
    )
    command("images", _images, "list the images", aliases=["ls"])
    one = command("inspect", _inspect, "show an image and its layers")
    one.add_argument("image", metavar="IMAGE")
    one = command("tag", _tag, "give an image one more name")
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("name", metavar="NAME[:TAG]")
    one = command("rm", _rm, "remove images, or named uppers")
    one.add_argument("names", metavar="IMAGE", nargs="+")
    one.add_argument("--force", "-f", action="store_true", help="by id, whatever tags it has")
    one.add_argument("--upper", action="store_true", help="remove named uppers, not images")
    command("uppers", _uppers, "list the named uppers")
    command("gc", _gc, "delete what nothing refers to")
    one = command("fsck", _fsck, "check that the store holds what its images need")
    one.add_argument("--content", action="store_true", help="also compare content with its digest")
    return parser


# --- commands


def _open(arguments: argparse.Namespace, *, create: bool = False) -> Store:
    return Store.open(arguments.root, create=create)


def _import(arguments: argparse.Namespace) -> int:
    with _open(arguments, create=True) as store, _progress() as progress:
        image = store.import_image(
            arguments.source,
            arguments.tag,
            progress,
            absolute_names=arguments.absolute_names,
        )
    if arguments.json:
        _print_json(_summary(image))
    else:
        print(image.id, *image.tags)
    return 0


def _images(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        images = store.images()
    if arguments.json:
        _print_json([_summary(image) for image in images])
        return 0
    rows = [
        (tag, short_id(image.id), str(len(image.layers)), _size(image.size), _when(image))
        for image in images
        for tag in image.tags or ["<none>"]
    ]
    _print_table(("NAME", "ID", "LAYERS", "SIZE", "IMPORTED"), rows)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        image = store.resolve(arguments.image)
    if arguments.json:
        _print_json(_details(image))
        return 0
    print("id:      ", image.id)
    print("tags:    ", ", ".join(image.tags) or "none")
    system = [image.config.get("os"), image.config.get("architecture")]
    print("platform:", show("/".join(str(part) for part in system if part)))
    print("source:  ", image.source)
    print("imported:", _when(image))
    print("index:   ", show(image.image_index))
    print("size:    ", _size(image.size))
    print("layers, top first:")
    for number in range(len(image.layers), 0, -1):
        layer = image.layers[number - 1]
        entries = f"{layer.entries} entries"
        print(f"  {number:3} {layer.diff_id}  {entries:>15}  {_size(layer.content_size)}")
    return 0


def _tag(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        store.tag(arguments.image, arguments.name)
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    status = 0
    objects = freed = 0
    with _open(arguments) as store:
        for name in arguments.names:
            try:
                if arguments.upper:
                    store.remove_upper(name)
                    continue
                done = store.remove(name, force=arguments.force)
            except StoreError as error:
                status = _fail(str(error))
                continue
            if done is None:
                log.warning("an import is running: what %s took is freed after it", name)
            else:
                objects, freed = objects + done.objects, freed + done.bytes
    if arguments.json:
        _print_json({"objects": objects, "bytes": freed})
    elif objects:
        print(f"freed {_size(freed)} in {objects} objects")
    return status


def _uppers(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        uppers = store.uppers()
        images = {image.id: image for image in store.images()}
    if arguments.json:
        _print_json([{"name": name, "image": image_id} for name, image_id in uppers.items()])
        return 0
    rows = [(name, images[image_id].name) for name, image_id in uppers.items()]
    _print_table(("NAME", "IMAGE"), rows)
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        done = store.collect()
    if done is None:
        raise StoreError("an import is running: try again when it is done")
    if arguments.json:
        _print_json(done._asdict())
    else:
        print(f"freed {_size(done.bytes)} in {done.objects} objects and {done.indexes} indexes")
    return 0


def _fsck(arguments: argparse.Namespace) -> int:
    from layerstore.check import check

    with _open(arguments) as store:
        problems = list(check(store, content=arguments.content))
    if arguments.json:
        _print_json([problem._asdict() for problem in problems])
    else:
        for problem in problems:
            print(f"{problem.what} (images: {', '.join(problem.images) or 'none'})")
        print(f"{len(problems)} problems" if problems else "nothing wrong")
    return 1 if problems else 0


# --- output


def _summary(image: Image) -> dict[str, Any]:
    return {
        "id": image.id,
        "tags": image.tags,
        "layers": [layer.diff_id for layer in image.layers],
        "size": image.size,
        "imported": image.imported_ns / 1e9,
        "source": image.source,
    }


def _details(image: Image) -> dict[str, Any]:
    layers = [
        {**layer._asdict(), "index": show(path)}
        for layer, path in zip(image.layers, image.layer_indexes, strict=True)
    ]
    return {
        **_summary(image),
        "chain_id": image.chain_id,
        "index": show(image.image_index),
        "layers": layers,
        "config": image.config,
    }


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def _size(count: int) -> str:
    """A number of bytes as podman and docker show one."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _when(image: Image) -> str:
    time = datetime.datetime.fromtimestamp(image.imported_ns / 1e9).astimezone()
    return time.strftime("%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def _progress() -> Iterator[Progress | None]:
    """Bars on the terminal, nothing anywhere else."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int | None) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield report
