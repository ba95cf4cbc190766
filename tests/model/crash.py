"""The end of the world before any one system call: what is found afterwards must be whole.

Every change to a tree goes through `overlayfs_py.syscalls`. Here each of those functions counts,
and at a chosen count raises `Crash` instead of doing its work; from then on none does anything.
Then upper and work directory are mounted anew, and the tree must be as before or as after.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from overlayfs_py import syscalls
from tests.model import layers, observe
from tests.model.compare import Disagreement
from tests.model.generate import Generator, Operation
from tests.model.mounts import Kernel
from tests.model.observe import Dialect, Identity
from tests.model.runs import Plan
from tests.model.tree import OPERATIONS, Times, Tree, Unpredicted
from tests.model.verbs import Verbs

CHANGES = (
    "create tmpfile mkdir mknod symlink link link_descriptor unlink rmdir rename chown "
    "chown_descriptor chown_opened chmod chmod_opened truncate utimens utimens_descriptor setxattr "
    "setxattr_opened removexattr pwrite fallocate copy_file_range clone_file"
)


class Crash(BaseException):
    """Power is gone."""


class Fuse:
    """Blows at the `left`-th change from now (None: never); `count` says how many there were."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.count = 0

    def spend(self) -> None:
        self.count += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Crash


@contextlib.contextmanager
def counted_changes() -> Iterator[Fuse]:
    """Put the fuse before every function of `syscalls` that changes a tree."""
    fuse = Fuse()
    originals = {
        name: getattr(syscalls, name) for name in CHANGES.split() if hasattr(syscalls, name)
    }

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            fuse.spend()
            return function(*arguments, **named)

        return call

    for name, function in originals.items():
        setattr(syscalls, name, guarded(function))
    try:
        yield fuse
    finally:
        for name, function in originals.items():
            setattr(syscalls, name, function)


OURS = Dialect(stable_ino=False)
THE_KERNELS = Dialect(directory_nlink=False, stable_ino=False, linked_d_ino=False)


def crash_run(plan: Plan, scratch: bytes, operations: int, *, kernel: bool) -> int:
    """Random operations, some of which end in a crash; returns how many did.

    After a crash the union is opened anew, where `kernel` is set by the kernel's overlayfs before
    that, and must show the tree as before the operation or as after it. Times are not compared
    (an operation that did not happen may have touched a directory) nor inode numbers.

    Raises:
        Disagreement: it shows something else.
    """
    chance = random.Random(~plan.seed)
    tree = Tree(plan.umask)
    layers.merge(plan.stack, tree)
    subject = Verbs(scratch, plan.stack, plan.umask)
    subject.kills_privileges = True  # else an owner changes in two requests
    crashes = 0
    try:
        with counted_changes() as fuse:
            for _ in range(operations):
                before = forget_times(copy.deepcopy(tree))
                operation = plan.draw(Generator(tree, plan.features), chance)
                if operation.name not in OPERATIONS:
                    continue
                try:
                    perform(tree, operation)
                except Unpredicted:
                    continue
                fuse.left = chance.choice([None, 0, 1, 2, 3, 5, 8, 13, 21])
                try:
                    perform(subject, operation)
                except Crash:
                    crashes += 1
                    mend(subject, fuse, chance)
                    tree = survivor(subject, operation, before, forget_times(tree), kernel)
                fuse.left = None
    finally:
        subject.end()
    return crashes


def perform(target: Tree | Verbs, operation: Operation) -> None:
    with contextlib.suppress(OSError):
        getattr(target, operation.name)(*operation.arguments)


def survivor(subject: Verbs, operation: Operation, before: Tree, after: Tree, kernel: bool) -> Tree:
    """Which of the two trees is there.

    st_nlink of one file may be one more than it should: the kernel's own order of steps leaves
    that (never one less, which would lose the file with its last name).
    """
    views = [("ours", subject.observe()[0], OURS)]
    if kernel:
        subject.overlay.close()
        views.insert(0, ("kernel", through_the_kernel(subject), THE_KERNELS))
        subject.start()
    left = [before, after]
    for name, seen, dialect in views:
        problems = [_problems(tree, seen, dialect) for tree in left]
        left = [tree for tree, lines in zip(left, problems, strict=True) if not lines]
        if not left:
            texts = "\n  or\n  ".join("\n  ".join(lines[:6]) for lines in problems)
            raise Disagreement(f"{name}, after a crash in {operation}\n  {texts}")
    return left[-1]


def _problems(tree: Tree, seen: dict[bytes, observe.Seen], dialect: Dialect) -> list[str]:
    lines = observe.differences(tree, seen, {}, Identity(), dialect)
    extra = {
        inode.number: inode
        for path, inode in tree.walk()
        if path in seen and not inode.is_directory and seen[path].nlink == inode.nlink + 1
    }
    if len(extra) == 1 and all(": nlink is " in line for line in lines):
        for inode in extra.values():
            inode.hidden_links += 1
            inode.was_linked = True
        lines = observe.differences(tree, seen, {}, Identity(), dialect)
    return lines


def mend(subject: Verbs, fuse: Fuse, chance: random.Random) -> None:
    """Throw the crashed union away, as the end of its process would, and open it anew; that may
    crash too, once."""
    fuse.left = chance.choice([None, 0, 1, 2, 4])
    with contextlib.suppress(Exception):
        subject.overlay.close()
    try:
        subject.start()
    except Crash:
        fuse.left = None
        subject.start()
    fuse.left = None


def through_the_kernel(subject: Verbs) -> dict[bytes, observe.Seen]:
    """What the kernel's overlayfs shows of the subject's directories."""
    viewer = Kernel.__new__(Kernel)
    viewer.scratch, viewer.lowers = subject.scratch, subject.lowers
    viewer.upper, viewer.work = subject.upper, subject.work
    viewer.merged = os.path.join(subject.scratch, b"kernel")
    os.makedirs(viewer.merged, exist_ok=True)
    viewer.start()
    try:
        return observe.of_directory(viewer.merged)
    finally:
        viewer.stop()


def forget_times(tree: Tree) -> Tree:
    """The same tree; every time stamp is unknown, and nothing is open."""
    tree.handles.clear()
    for _, inode in tree.walk():
        inode.mtime = Times(-(1 << 62), 1 << 62)
    return tree


def crash_everywhere(
    scratch: str, stack: list[layers.Layer], before: Sequence[Operation], operation: Operation
) -> int:
    """Do `before`, then `operation` with a crash before its first change, its second, and so on.

    Returns:
        How many changes it makes.

    Raises:
        Disagreement: after one of the crashes the tree was neither the old one nor the new.
    """
    for step in itertools.count():
        old = Tree()
        layers.merge(stack, old)
        subject = Verbs(os.fsencode(tempfile.mkdtemp(dir=scratch)), stack, 0)
        subject.kills_privileges = True
        try:
            for earlier in before:
                perform(old, earlier)
                perform(subject, earlier)
            new = copy.deepcopy(old)
            perform(new, operation)
            with counted_changes() as fuse:
                fuse.left = step
                try:
                    perform(subject, operation)
                except Crash:
                    pass
                else:
                    return step
            mend(subject, fuse, random.Random(step))
            survivor(subject, operation, forget_times(old), forget_times(new), kernel=True)
        finally:
            subject.end()
    raise AssertionError("unreachable")
