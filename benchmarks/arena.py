"""What a workload gets to take one sample with: a fresh mount and ways to time things in it."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import commands
from benchmarks.errors import CannotMeasure
from benchmarks.forge import Forge
from benchmarks.mounts import Layers, Mounted, Mounter
from benchmarks.probe import ProbeResult, command_line, read_output
from benchmarks.subjects import Spec
from benchmarks.workload import MICROSECONDS, SECONDS_OF, Measurement

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(slots=True)
class Arena:
    """One sample's surroundings.

    `place` is a directory on the base for whatever else a workload needs; `mount` is missing for
    those that mount by themselves, who have `mounter`, `spec` and `layers` for it.
    """

    spec: Spec
    layers: Layers
    place: Path
    forge: Forge
    mounter: Mounter
    live: Mounted | None = None

    @property
    def mount(self) -> Mounted:
        """The live mount."""
        assert self.live is not None, "this workload mounts by itself"
        return self.live

    @property
    def root(self) -> Path:
        """The directory to work in."""
        return self.mount.root

    def drop_caches(self) -> None:
        """Drops dentries and inodes, so that names are cold; needs root.

        Without it a fresh mount is cold above and warm below, which `Machine.privileged` tells.
        The page cache stays: data is not what these rows are about.
        """
        if os.geteuid() == 0:
            DROP_CACHES.write_text("2\n")

    def probe(
        self,
        operation: str,
        names: Sequence[str] | None = None,
        *,
        inside: str = "d",
        unit: str = MICROSECONDS,
        **numbers: int,
    ) -> Measurement:
        """Lets the helper do `operation` in directory `inside`; a measurement per operation.

        `numbers` are the helper's size, passes, warm. Raises CannotMeasure where it is refused.
        """
        _, measurement = self.probe_raw(operation, names, inside=inside, unit=unit, **numbers)
        return measurement

    def probe_raw(
        self,
        operation: str,
        names: Sequence[str] | None = None,
        *,
        inside: str = "d",
        unit: str = MICROSECONDS,
        **numbers: int,
    ) -> tuple[ProbeResult, Measurement]:
        """As `probe`, with all that the helper said."""
        listed = None if names is None else self.forge.names(names)
        if operation in ("stat", "absent") and self.spec.lookup_delay_ns:
            numbers["delay_ns"] = self.spec.lookup_delay_ns
        argv = command_line(self.forge.binary, operation, self.root / inside, listed, **numbers)
        before = self.mount.daemon_cpu_s()
        finished = commands.run(argv)
        daemon_cpu_s = difference(before, self.mount.daemon_cpu_s())
        result = read_output(finished.output, finished.status)
        if result.operations == 0:
            raise CannotMeasure(f"{operation} found nothing to do")
        wall_s = result.wall_ns / 1e9
        measurement = Measurement(
            value=wall_s / result.operations / SECONDS_OF[unit],
            wall_s=wall_s,
            operations=result.operations,
            daemon_cpu_s=daemon_cpu_s,
            caller_cpu_s=(result.user_ns + result.system_ns) / 1e9,
            extra={
                "p50_us": result.p50_ns / 1e3,
                "p99_us": result.p99_ns / 1e3,
                "max_us": result.max_ns / 1e3,
                "clock_us": result.clock_ns / 1e3,
            },
        )
        return result, measurement

    def untimed(
        self, operation: str, names: Sequence[str], *, inside: str = "d", **numbers: int
    ) -> None:
        """Lets the helper prepare something through the mount."""
        argv = command_line(
            self.forge.binary, operation, self.root / inside, self.forge.names(names), **numbers
        )
        finished = commands.run(argv)
        read_output(finished.output, finished.status)

    def command(
        self,
        argv: Sequence[str | Path],
        *,
        environment: dict[str, str] | None = None,
        operations: int = 1,
        timeout_s: float = 300.0,
    ) -> Measurement:
        """Runs a program inside the mount; a measurement in milliseconds.

        Raises CannotMeasure with its last words where it fails.
        """
        before = self.mount.daemon_cpu_s()
        finished = commands.run(argv, cwd=self.root, environment=environment, timeout_s=timeout_s)
        daemon_cpu_s = difference(before, self.mount.daemon_cpu_s())
        commands.must(finished)
        return Measurement(
            value=finished.wall_s * 1e3,
            wall_s=finished.wall_s,
            operations=operations,
            daemon_cpu_s=daemon_cpu_s,
            caller_cpu_s=finished.cpu_s,
        )

    @contextmanager
    def timed(self, operations: int = 1) -> Iterator[Measurement]:
        """Times the body in milliseconds, for what Python itself may do: long single calls."""
        measurement = Measurement(0.0, 0.0, operations)
        before = self.mount.daemon_cpu_s()
        cpu, wall = time.process_time(), time.perf_counter()
        yield measurement
        measurement.wall_s = time.perf_counter() - wall
        measurement.caller_cpu_s = time.process_time() - cpu
        measurement.daemon_cpu_s = difference(before, self.mount.daemon_cpu_s())
        measurement.value = measurement.wall_s * 1e3


def difference(before: float | None, after: float | None) -> float | None:
    """`after` less `before`, where both are known."""
    return None if before is None or after is None else after - before
