"""How a command is told to the parser, and the options that every command has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from layerstore.store import Store

Function = Callable[[argparse.Namespace], int]
"""Runs a command and returns the exit status."""


class Commands:
    """The commands of a parser; the options that all of them have may also stand before the command.

    Args:
        parser: of the whole command line.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--root", metavar="DIR", default=None, help="the store")
        parser.add_argument("--json", action="store_true", help="print JSON, not text")
        self._subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
        self._place = argparse.ArgumentParser(add_help=False)
        self._place.add_argument(
            "--root",
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="the store (default: $LAYERSTORE_ROOT, /var/lib/layerstore for root,"
            " ~/.local/share/layerstore for users)",
        )
        self._place.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, not text"
        )

    def add(
        self,
        name: str,
        function: Function,
        summary: str,
        *,
        epilog: str | None = None,
        **more: Any,
    ) -> argparse.ArgumentParser:
        """Add a command; returns its parser, for its arguments.

        Args:
            name: of the command.
            function: what it does.
            summary: what it does, in a few words that start with a small letter.
            epilog: what its help ends with, in these lines.
            more: for `ArgumentParser`.
        """
        if epilog is not None:
            more |= {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}
        made: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:],
            parents=[self._place],
            **more,
        )
        made.set_defaults(function=function)
        return made

    def group(self, name: str, summary: str) -> Commands:
        """Add a command that has commands of its own; returns those, none as yet."""
        made = self._subparsers.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:]
        )
        inner = Commands.__new__(Commands)
        inner._subparsers = made.add_subparsers(metavar="COMMAND", required=True)
        inner._place = self._place
        return inner


def open_store(arguments: argparse.Namespace, *, create: bool = False) -> Store:
    """The store that the command line means; see `Store.open`."""
    return Store.open(arguments.root, create=create)
