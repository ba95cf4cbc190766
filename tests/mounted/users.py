"""System calls as another user, and their errors by name."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ALICE, BOB = 65101, 65102
"""Users without any right; their groups have the same numbers."""


def as_user(
    uid: int,
    call: Callable[..., T],
    *arguments: Any,
    groups: Sequence[int] = (),
    umask: int = 0o022,
) -> T:
    """The result of `call` in a child that is `uid` for good; its OSError is raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            try:
                outcome = (True, call(*arguments))
            except OSError as error:
                outcome = (False, error.errno)  # type: ignore[assignment]
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(outcome, pipe)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child of {call} ended with {status}"
    done, result = pickle.loads(raw)
    if not done:
        raise OSError(result, os.strerror(result))
    return result  # type: ignore[no-any-return]


def errno_of(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """The name of the errno that `call` fails with, "" if it succeeds."""
    try:
        result = call(*arguments, **keywords)
        if call is os.open:
            os.close(result)
    except OSError as error:
        # Two names of one number on Linux; Python gives the other.
        return errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")
    return ""


def user_errno(
    uid: int, call: Callable[..., Any], *arguments: Any, groups: Sequence[int] = ()
) -> str:
    """The same for a call as another user."""
    return errno_of(as_user, uid, call, *arguments, groups=groups)
