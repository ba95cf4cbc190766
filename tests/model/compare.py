"""Model and subjects side by side: the same operation for all, then everything they show."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from tests.model import layers, observe
from tests.model.generate import Features, Generator, Operation, op
from tests.model.layers import Layer
from tests.model.observe import Dialect, Identity, Seen
from tests.model.tree import OPERATIONS, Times, Tree, Unpredicted

ROTATIONS_MAX = 8
"""Each adds a lower layer, and mount(2) takes no more than a page of options. Later ones remount."""


View = tuple[dict[bytes, Seen], dict[int, Seen]]
"""What is seen by path, and through descriptors."""


class Subject(Protocol):
    """Something that carries operations out (methods named as in `tree.OPERATIONS`) and can be
    looked at."""

    name: str
    dialect: Dialect
    process_umask: int

    def observe(self) -> View: ...
    def glance(
        self, paths: Iterable[bytes], closely: Collection[bytes], slot: int | None
    ) -> View: ...
    def forget(self, seed: int) -> None: ...
    def remount(self) -> None: ...
    def rotate(self, settle: list[bytes]) -> None: ...
    def end(self) -> None: ...


class Disagreement(AssertionError):
    """A subject did or shows something else than the model."""


def _outcome(target: Subject | Tree, operation: Operation) -> Any:
    if not isinstance(target, Tree):
        os.umask(target.process_umask)
    try:
        return getattr(target, operation.name)(*operation.arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except Unpredicted:
        raise
    except Exception:
        return traceback.format_exc()


def _shown(outcome: Any) -> str:
    return outcome if isinstance(outcome, str) else repr(outcome)[:200]


class Comparison:
    """One run: a stack of layers, the model of it, subjects on copies of it.

    Args:
        stack: lower layers, the top one first.
        make: for each subject, a function of the stack.
        umask: of whoever carries the operations out.
    """

    def __init__(
        self,
        stack: list[Layer],
        make: Sequence[Callable[[list[Layer], int], Subject]],
        features: Features,
        umask: int = 0,
    ) -> None:
        self.stack = stack
        self.done: list[Operation] = []
        self.healthy = True
        self.rotations = 0
        self.tree = Tree(umask)
        self.tree.clock_ns = time.time_ns()
        layers.merge(stack, self.tree)
        self.generator = Generator(self.tree, features)
        self._old_umask = os.umask(0o022)
        self.subjects: list[Subject] = []
        try:
            for function in make:
                self.subjects.append(function(stack, umask))
        except BaseException:
            self.end()
            raise
        self._identities = [Identity() for _ in self.subjects]

    def run(self, operation: Operation) -> bool:
        """Carry `operation` out on all; False if the model does not predict it, and then nothing
        happened."""
        self.tree.clock_ns = time.time_ns()
        if operation.name in OPERATIONS:
            try:
                wanted = _outcome(self.tree, operation)
            except Unpredicted:
                return False
            self.done.append(operation)
            excused = False
            for subject in self.subjects:
                got = _outcome(subject, operation)
                if got != wanted and self._is_excused(subject, operation, got):
                    excused = True
                elif got != wanted:
                    self._fail(subject, [f"result is {_shown(got)}, should be {_shown(wanted)}"])
            if excused:
                self._let_go(operation.arguments[0])
            return True
        self.done.append(operation)
        # Where a mount fails there is nothing to look at afterwards.
        self.healthy = False
        getattr(self, "_" + operation.name)(*operation.arguments)
        self.healthy = True
        return True

    def _is_excused(self, subject: Subject, operation: Operation, got: Any) -> bool:
        handle = self.tree.handles.get(operation.arguments[0])
        removed = handle is not None and handle.inode.links == 0
        return removed and got in ("EEXIST", "ENOTDIR") and not subject.dialect.removed_copy_up

    def _let_go(self, slot: int) -> None:
        """Close what refers to an inode that a subject could not change as the model did."""
        inode = self.tree.handles[slot].inode
        for other in [s for s, handle in self.tree.handles.items() if handle.inode is inode]:
            self.run(op("close", other))

    def _forget(self, seed: int) -> None:
        for subject in self.subjects:
            subject.forget(seed)

    def _remount(self) -> None:
        self.tree.handles.clear()
        for subject in self.subjects:
            subject.remount()

    def _rotate(self) -> None:
        self.rotations += 1
        if self.rotations > ROTATIONS_MAX:
            self._remount()
            return
        self.tree.handles.clear()
        linked = [(path, inode) for path, inode in self.tree.walk() if inode.was_linked]
        for subject in self.subjects:
            subject.rotate([path for path, _ in linked])
        for _, inode in linked:
            inode.hidden_links = 0
            inode.was_linked = inode.links > 1
        root = self.tree.root
        root.mode, root.uid, root.gid = stat.S_IFDIR | 0o755, 0, 0
        root.xattrs.clear()
        root.mtime = Times(self.tree.clock_ns - 50_000_000, None)
        self._identities = [Identity() for _ in self.subjects]

    def check(self) -> None:
        """Compare all there is to see."""
        self._compare(lambda subject: subject.observe())

    def glance(self) -> None:
        """Compare the attributes of everything, and all of what the last operation named."""
        last = self.done[-1].arguments if self.done else ()
        named = {argument for argument in last if isinstance(argument, bytes)}
        named |= {path.rpartition(b"/")[0] for path in named}
        paths = [path for path, _ in self.tree.walk()]
        slot = last[0] if last and isinstance(last[0], int) else None
        self._compare(lambda subject: subject.glance(paths, named, slot))

    def _compare(self, look: Callable[[Subject], View]) -> None:
        for subject, identity in zip(self.subjects, self._identities, strict=True):
            try:
                seen, held = look(subject)
            except Exception:
                self._fail(subject, ["looking at the tree failed", traceback.format_exc()])
            for slot, handle in self.tree.handles.items():
                if not handle.readable:
                    held[slot] = held[slot]._replace(content=None)
            problems = observe.differences(self.tree, seen, held, identity, subject.dialect)
            if problems:
                self._fail(subject, problems)

    def _fail(self, subject: Subject, problems: list[str]) -> None:
        self.healthy = False
        last = self.done[-1] if self.done else "mounting"
        lines = "\n  ".join(problems[:12])
        raise Disagreement(f"{subject.name}, after {last}\n  {lines}")

    def end(self) -> None:
        """End every subject, then raise what went wrong with one."""
        os.umask(self._old_umask)
        with contextlib.ExitStack() as ends:
            for subject in self.subjects:
                ends.callback(subject.end)


def replay(make: Callable[[], Comparison], operations: Sequence[Operation]) -> str | None:
    """Run `operations` in a new comparison, checking after each; what disagreed, or None."""
    comparison = make()
    try:
        comparison.check()
        for operation in operations:
            if comparison.run(operation):
                comparison.check()
    except Disagreement as disagreement:
        return str(disagreement)
    finally:
        comparison.end()
    return None


def _kind_of(disagreement: str | None) -> str:
    """What went wrong, without names and numbers: a shorter sequence must fail the same way."""
    problem = (disagreement or "").partition("\n  ")[2].partition("\n")[0]
    return re.sub(r"b?'(?:[^'\\]|\\.)*'|\d+", "", problem)[:60]


def shorten(
    make: Callable[[], Comparison], operations: list[Operation], seconds: float = 120
) -> list[Operation]:
    """Leave out all that is not needed for the failure (delta debugging), for at most `seconds`."""
    deadline = time.monotonic() + seconds
    kind = _kind_of(replay(make, operations))
    size = max(1, len(operations) // 2)
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(operations) and time.monotonic() < deadline:
            shorter = operations[:at] + operations[at + size :]
            if kind and _kind_of(replay(make, shorter)) == kind:
                operations = shorter
            else:
                at += size
        size //= 2
    return operations
