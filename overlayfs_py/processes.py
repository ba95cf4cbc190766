"""What `ps` shows: live mounts, and those whose daemon is dead."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from overlayfs_py import mountinfo, registry
from overlayfs_py.registry import Record

HEADER = ["MOUNTPOINT", "STATE", "MODE", "PID", "UP", "LAYERS", "UPPER"]


@dataclass(slots=True)
class Mount:
    """`record` None: nobody serves the mount; `entry` None: it is not in this mount namespace."""

    mountpoint: bytes
    record: Record | None
    entry: mountinfo.MountEntry | None

    @property
    def state(self) -> str:
        """live, starting, elsewhere (another mount namespace, or detached and still in use), or
        dead.
        """
        if self.record is None:
            return "dead"
        if not self.record.device:
            return "starting"
        return "live" if self.entry is not None else "elsewhere"

    @property
    def mode(self) -> str:
        """ro or rw, as it is now."""
        if self.entry is not None:
            words = self.entry.options.split(b",") + self.entry.super_options.split(b",")
            return "ro" if b"ro" in words else "rw"
        return "ro" if self.record is not None and self.record.read_only else "rw"

    def as_data(self) -> dict[str, Any]:
        """For JSON; the same keys for every mount, null where nothing is known."""
        record, entry = self.record, self.entry
        source = record.source if record is not None else None
        fstype = record.fstype if record is not None else None
        return {
            "mountpoint": os.fsdecode(self.mountpoint),
            "state": self.state,
            "mode": self.mode,
            "source": source if entry is None else os.fsdecode(entry.source),
            "type": fstype if entry is None else os.fsdecode(entry.fstype),
            "pid": (record and record.pid) or None,
            "started": record and record.started,
            "lowerdirs": record and [os.fsdecode(path) for path in record.lowerdirs],
            "data_lowerdirs": record and [os.fsdecode(path) for path in record.data_lowerdirs],
            "upperdir": record and _text(record.upperdir),
            "workdir": record and _text(record.workdir),
            "image": record and record.image,
            "name": record and record.upper_name,
            "transport": record and record.transport,
            "engine": record and record.engine,
        }

    def as_row(self) -> list[str]:
        """For a table under `HEADER`."""
        record = self.record
        if record is None:
            return [os.fsdecode(self.mountpoint), self.state, self.mode, "-", "-", "-", "-"]
        layers = record.image or str(len(record.lowerdirs) + len(record.data_lowerdirs))
        return [
            os.fsdecode(self.mountpoint),
            self.state,
            self.mode,
            str(record.pid) if record.pid else "kernel",
            _duration(time.time() - record.started),
            layers,
            record.upper_name or _text(record.upperdir) or "-",
        ]


def mounts() -> list[Mount]:
    """All mounts that are known or seen, oldest first; the dead ones last."""
    entries = {
        (entry.mountpoint, os.fsdecode(entry.device)): entry for entry in mountinfo.entries()
    }
    found = [
        Mount(record.mountpoint, record, entries.pop((record.mountpoint, record.device), None))
        for record in registry.live()
    ]
    found += [
        Mount(entry.mountpoint, None, entry)
        for entry in entries.values()
        if entry.fstype == b"fuse.overlayfs-py"
    ]
    return found


def _text(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
