"""Stops the lane at a chosen system call: it fails there, or the process ends. See stops.c."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

_STATE = struct.Struct("<qq")


class Stops:
    """Args: directory: where the library is built and the calls are counted."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "stops.so"
        self._state = directory / "stops"
        source = Path(__file__).with_name("stops.c")
        argv = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", "-O1", source, "-o", self._library]
        subprocess.run([*argv, "-ldl"], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of the process to stop."""
        return {"LD_PRELOAD": str(self._library), "LANE_STOPS": str(self._state)}

    def arm(self, call: int = 0, *, die: bool = False) -> None:
        """Count from now on, and stop at the `call`-th; 0: at none."""
        self._state.write_bytes(_STATE.pack(0, -call if die else call))

    def disarm(self) -> int:
        """How many calls there were."""
        count = _STATE.unpack(self._state.read_bytes())[0]
        self._state.unlink()
        return int(count)
