"""The `layerstore` command: argv to a command of `layerstore.commands`, errors to one line.

Exit status 0: done; 1: an error, said in one line; 2: a command line that cannot be meant.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from typing import NoReturn

from layerstore.commands import (
    images,
    leases,
    registry,
    transfer,
    trees,
    upkeep,
    usage,
)
from layerstore.commands.output import complain
from layerstore.commands.parsing import Commands
from layerstore.errors import StoreError, show


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
        return complain(str(error))
    except BrokenPipeError:
        # Nobody reads on; nor should the interpreter try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        return complain(f"{show(error.filename)}: {error.strerror}")
    except sqlite3.OperationalError as error:
        return complain(f"the store's database: {error}: is another layerstore stuck?")


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerstore", description="Keeps container images, every distinct file once."
    )
    commands = Commands(parser)
    for subject in (
        transfer,
        images,
        registry,
        trees,
        leases,
        upkeep,
        usage,
    ):
        subject.add(commands)
    return parser
