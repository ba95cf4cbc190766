"""The command `overlayfs-py`: arguments to calls, results to text. The only module that prints.

Each command imports what it needs itself: a mount must not wait for the imports of `diff`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from overlayfs_py.errors import UserError
from overlayfs_py.escaping import escape
from overlayfs_py.options import PROGRAM, MountOptions, parse_mount_options

_USAGE = """\
usage: overlayfs-py [-f] [-d] -o lowerdir=DIR[:DIR...][,upperdir=DIR,workdir=DIR][,OPTION...] MNT
       overlayfs-py SOURCE MNT -o OPTIONS        (as mount.fuse3 calls it; SOURCE is not looked at)
       overlayfs-py -o remount,ro|rw MNT
       overlayfs-py mount [--ro | --upper DIR --work DIR | --name NAME] [--root STORE]
                          [--engine fuse|kernel|auto] IMAGE MNT
       overlayfs-py umount [--lazy] MNT...
       overlayfs-py sync MNT...
       overlayfs-py commit [--tag NAME[:TAG]] [--base IMAGE] [--root STORE] [--message TEXT]
                           [--author TEXT] [--change INSTRUCTION]... [--json] MNT
       overlayfs-py ps [--json]
       overlayfs-py diff [--json] [--lower DIR]... MNT|UPPER
       overlayfs-py which [--json] PATH...
       overlayfs-py bench run|compare|report ...

Mounts a union of directories, or of the layers of an image in the layer store, and returns once it
is live.

  -o OPTIONS     mount options of the kernel's overlayfs, of fuse-overlayfs(1) and of mount(8)
  -f             stay in the foreground
  -d, --debug    log every request; -d implies -f
  -V, --version  print the version
  -h, --help     print this

A mountpoint named like a command is written with its directory: ./mount
"""


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: of the process, without the program's name.

    Returns:
        The exit status: 0, or 1 after one line on stderr.
    """
    try:
        return _choose(arguments)(arguments)
    except UserError as error:
        return _complain(error)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _complain(error: UserError) -> int:
    print(f"{PROGRAM}: {_shown(str(error))}", file=sys.stderr)
    return 1


def _choose(arguments: list[str]) -> Callable[[list[str]], int]:
    commands: dict[str, Callable[[list[str]], int]] = {
        "mount": _mount_image,
        "umount": _umount,
        "sync": _sync,
        "commit": _commit,
        "ps": _ps,
        "diff": _diff,
        "which": _which,
        "bench": _bench,
    }
    if not arguments or arguments[0] not in commands:
        return _mount_directories
    # mount.fuse3's form with a source that happens to be named like a command: SOURCE MNT -o
    # OPTIONS.
    if arguments[2:3] == ["-o"] and "lowerdir" in "".join(arguments[3:4]):
        return _mount_directories
    return commands[arguments[0]]


def _bench(arguments: list[str]) -> int:
    """Hand over to the benchmarks, which are a program of their own and import nothing of ours.

    Raises:
        UserError: this installation has no benchmarks.
    """
    if importlib.util.find_spec("benchmarks") is None:
        raise UserError("bench: not part of this installation; in a checkout: python -m benchmarks")
    # -P: a directory called benchmarks where the caller stands is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "benchmarks", *arguments[1:]])


class _Arguments(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does."""

    def __init__(self) -> None:
        super().__init__(prog=PROGRAM, add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {PROGRAM} --help")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Parse; options and positions may come in any order.

        Raises:
            UserError: something is missing, unknown or too much.
        """
        if "-h" in arguments or "--help" in arguments:
            print(_USAGE, end="")
            raise SystemExit(0)
        return self.parse_intermixed_args(arguments)


def _mount_arguments() -> _Arguments:
    parser = _Arguments()
    parser.add_argument("-o", "--options", dest="options", action="append", default=[])
    parser.add_argument("-f", dest="foreground", action="store_true")
    parser.add_argument("-d", dest="debug_foreground", action="store_true")
    parser.add_argument("--debug", action="store_true")
    return parser


def _mount_directories(arguments: list[str]) -> int:
    parser = _mount_arguments()
    parser.add_argument("-V", "--version", action="store_true")
    # mount(8) hands these to a helper: no mtab, sloppy, verbose; fuse-overlayfs has -s for one
    # thread.
    for letter in "nsv":
        parser.add_argument(f"-{letter}", dest="ignored", action="store_true")
    parser.add_argument("-r", dest="words", action="append_const", const="ro")
    parser.add_argument("-w", dest="words", action="append_const", const="rw")
    parser.add_argument("places", nargs="*")
    given = parser.read(arguments)
    if given.version:
        from overlayfs_py import __version__

        print(f"{PROGRAM}: version {__version__}")
        return 0
    if not 1 <= len(given.places) <= 2:
        raise UserError(f"expected MNT, or SOURCE MNT, not {len(given.places)} names: see --help")
    options = parse_mount_options(given.options + (given.words or []))
    mountpoint = _mountpoint(given.places[-1])
    if options.remount:
        from overlayfs_py.remount import remount

        remount(options, mountpoint)
        return 0
    return _mount(options, mountpoint, given)


def _mount_image(arguments: list[str]) -> int:
    parser = _mount_arguments()
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--ro", action="store_true")
    how.add_argument("--upper")
    how.add_argument("--name")
    parser.add_argument("--work")
    parser.add_argument("--root", default=os.environ.get("LAYERSTORE_ROOT"))
    parser.add_argument("--engine", default="fuse")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("mountpoint", metavar="MNT")
    given = parser.read(arguments[1:])
    if (given.upper is None) != (given.work is None):
        raise UserError(
            "--upper and --work go together: the work directory is on the upper's filesystem"
        )
    if given.upper is not None:
        given.options.append(f"upperdir={escape(given.upper)},workdir={escape(given.work)}")
    options = parse_mount_options(
        given.options, image=given.image, upper_name=given.name, store_root=given.root or None
    )
    options.read_only = options.read_only or given.ro
    mountpoint = _mountpoint(given.mountpoint)
    if given.engine != "fuse" and _mount_by_kernel(options, mountpoint, given):
        return 0
    return _mount(options, mountpoint, given)


def _mount_by_kernel(options: MountOptions, mountpoint: bytes, given: argparse.Namespace) -> bool:
    """False: the daemon has to do it, and the options say why."""
    from overlayfs_py import engine

    if given.engine not in engine.ENGINES:
        raise UserError(f"--engine={given.engine}: must be one of {', '.join(engine.ENGINES)}")
    _settle_debug(options, given)
    if not engine.mount(given.engine, options, mountpoint):
        return False
    for note in options.notes:
        print(f"{PROGRAM}: {_shown(note)}", file=sys.stderr)
    return True


def _settle_debug(options: MountOptions, given: argparse.Namespace) -> None:
    # libfuse: -d and -o debug imply -f; fuse-overlayfs's --debug does not.
    options.foreground = given.foreground or given.debug_foreground or options.debug
    options.debug = options.debug or given.debug or given.debug_foreground


def _mount(options: MountOptions, mountpoint: bytes, given: argparse.Namespace) -> int:
    _settle_debug(options, given)
    if options.foreground:
        from overlayfs_py import foreground

        foreground.serve(options, mountpoint)
    else:
        from overlayfs_py import client

        client.start(options, mountpoint)
    return 0


def _mountpoint(name: str) -> bytes:
    if not name:
        raise UserError("the mountpoint is empty: name a directory")
    return _absolute(name)


def _absolute(name: str) -> bytes:
    return os.path.join(os.getcwdb(), os.fsencode(name))


def _umount(arguments: list[str]) -> int:
    parser = _Arguments()
    parser.add_argument("-l", "--lazy", action="store_true")
    parser.add_argument("mountpoints", metavar="MNT", nargs="+")
    given = parser.read(arguments[1:])
    from overlayfs_py.unmount import unmount

    status = 0
    for mountpoint in given.mountpoints:
        try:
            unmount(os.fsencode(mountpoint), lazy=given.lazy)
        except UserError as error:
            status = _complain(error)
    return status


def _sync(arguments: list[str]) -> int:
    parser = _Arguments()
    parser.add_argument("mountpoints", metavar="MNT", nargs="+")
    given = parser.read(arguments[1:])
    from overlayfs_py.sync import sync

    status = 0
    for mountpoint in given.mountpoints:
        try:
            sync(os.fsencode(mountpoint))
        except UserError as error:
            status = _complain(error)
    return status


def _commit(arguments: list[str]) -> int:
    parser = _Arguments()
    parser.add_argument("-t", "--tag")
    parser.add_argument("--base")
    parser.add_argument("--root", default=os.environ.get("LAYERSTORE_ROOT"))
    parser.add_argument("-m", "--message", default="")
    parser.add_argument("-a", "--author", default="")
    parser.add_argument("-c", "--change", dest="changes", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("mountpoint", metavar="MNT")
    given = parser.read(arguments[1:])
    from overlayfs_py.commit import Wishes, commit

    wishes = Wishes(
        given.base, given.root or None, given.tag, given.author, given.message, given.changes
    )
    image = commit(_mountpoint(given.mountpoint), wishes)
    if given.json:
        _print_json({"id": image.id, "tags": image.tags})
    else:
        _print_line(" ".join([image.id, *image.tags]))
    return 0


def _ps(arguments: list[str]) -> int:
    parser = _Arguments()
    parser.add_argument("--json", action="store_true")
    given = parser.read(arguments[1:])
    from overlayfs_py import processes

    mounts = processes.mounts()
    if given.json:
        _print_json([mount.as_data() for mount in mounts])
    else:
        for row in _columns([processes.HEADER, *(mount.as_row() for mount in mounts)]):
            _print_line(row)
    return 0


def _diff(arguments: list[str]) -> int:
    parser = _Arguments()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--lower", action="append", default=[])
    parser.add_argument("path", metavar="MNT|UPPER")
    given = parser.read(arguments[1:])
    from overlayfs_py.inspect import diff

    found = diff.diff(os.fsencode(given.path), [os.fsencode(lower) for lower in given.lower])
    if given.json:
        _print_json(found.as_data())
        return 0
    for change in found.changes:
        _print_line(f"{change.kind} {os.fsdecode(change.path)}")
    for note in found.notes():
        # Beside the list, so that the list can be piped on.
        print(note, file=sys.stderr)
    return 0


def _which(arguments: list[str]) -> int:
    parser = _Arguments()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("paths", metavar="PATH", nargs="+")
    given = parser.read(arguments[1:])
    from overlayfs_py.inspect import which

    answers = []
    status = 0
    for path in given.paths:
        try:
            answers.append(which.which(os.fsencode(path)))
        except UserError as error:
            status = _complain(error)
    if given.json:
        _print_json([answer.as_data() for answer in answers])
        return status
    for answer in answers:
        for line in answer.as_lines():
            _print_line(line)
    return status


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _print_line(line: str) -> None:
    """One line, whatever bytes a name has."""
    sys.stdout.buffer.write(os.fsencode(_shown(line)) + b"\n")


def _shown(line: str) -> str:
    """Control characters in octal, as `ls -b` shows them, so that a line stays one."""
    return "".join(
        f"\\{ord(character):03o}" if ord(character) < 32 or character == "\x7f" else character
        for character in line
    )


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
