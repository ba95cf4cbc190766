"""Stops the lane at a chosen system call: it fails there, or the process ends. See stops.c."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_STATE = struct.Struct("<qqq")
_VARIABLE = "LANE_STOPS"


class Ended(NamedTuple):
    """What became of a process: its status as waitpid(2) has it, and how many calls the lane made in it."""

    status: int
    calls: int


class Stops:
    """Args: directory: where the library is built and the calls are counted."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "stops.so"
        self._state = directory / "stops"
        source = Path(__file__).with_name("stops.c")
        compiler = os.environ.get("CC", "gcc")
        argv = [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(self._library), "-ldl"]
        subprocess.run(argv, check=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is stopped as this one says: see `arm`."""
        return {"LD_PRELOAD": str(self._library), _VARIABLE: str(self._state)}

    def arm(self, call: int = 0) -> None:
        """Count from now on; the `call`-th fails with EIO, 0: none."""
        self._state.write_bytes(_STATE.pack(0, call, errno.EIO))

    def disarm(self) -> int:
        """How many calls there were."""
        count = _calls(self._state)
        self._state.unlink()
        return count

    def run(
        self, module: str, calls: Sequence[int], arguments: Sequence[Sequence[str]], number: int
    ) -> list[Ended]:
        """Run `module` with this library, which has `each` run what it does, once for every call.

        Args:
            calls: at which call each run is stopped; 0: at none.
            arguments: what each run is given.
            number: the errno with which the call fails, 0: the process ends there.
        """
        runs = [(call, number, own) for call, own in zip(calls, arguments, strict=True)]
        environment = {**os.environ, "LD_PRELOAD": str(self._library)}
        argv = [sys.executable, "-m", module, str(self._state)]
        done = subprocess.run(
            argv,
            cwd=Path(__file__).parents[3],
            env=environment,
            input=json.dumps(runs),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return [Ended(*row) for row in json.loads(done.stdout)]


def each(state: str, work: Callable[..., None]) -> None:
    """Do the work once for every run that `Stops.run` wants, each in a process of its own.

    The work calls `stopped` around what may be stopped.
    """
    ended = []
    for call, number, arguments in json.load(sys.stdin):
        Path(state).write_bytes(_STATE.pack(0, call, number))
        pid = os.fork()
        if not pid:
            try:
                work(lambda on: _turn(on, state), *arguments)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        ended.append((status, _calls(Path(state))))
    print(json.dumps(ended))


def _calls(state: Path) -> int:
    return int(_STATE.unpack(state.read_bytes())[0])


def _turn(on: bool, state: str) -> None:
    if on:
        os.environ[_VARIABLE] = state
    else:
        del os.environ[_VARIABLE]
