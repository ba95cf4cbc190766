"""A request as something that can be tried, and tried again. Plain data; any thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from overlayfs_py.wire.nodes import Record

T = TypeVar("T")


class Call(Generic[T]):
    """One request, ready to be tried, and tried again: verb, arguments, what makes the reply.

    `pins` are the nodes that must outlive it; `begun` is the gate's.
    """

    __slots__ = ("arguments", "begun", "finish", "pins", "verb")

    def __init__(
        self,
        verb: Callable[..., Any],
        arguments: tuple[Any, ...],
        finish: Callable[[Any], T] | None = None,
        pins: tuple[Record, ...] = (),
    ) -> None:
        self.verb = verb
        self.arguments = arguments
        self.finish = finish
        self.pins = pins
        self.begun = False

    def complete(self, result: Any) -> T:
        return cast(T, result) if self.finish is None else self.finish(result)

    @property
    def name(self) -> str:
        return getattr(self.verb, "__name__", repr(self.verb))
