"""One subject mounted once on a fresh upper: made, found live, measured around, taken down."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import commands, processes, scratch
from benchmarks.errors import CannotMeasure
from benchmarks.subjects import PLAIN, PROGRAM, Spec

DAEMON_EXIT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Layers:
    """Lower directories, top first, by name inside `directory`; the mount command runs there.

    Relative names, because one page of mount options (mount(2)) does not hold 400 long ones.
    """

    directory: Path
    names: tuple[str, ...]

    def paths(self) -> list[Path]:
        """The lower directories, top first."""
        return [self.directory / name for name in self.names]


@dataclass(slots=True)
class Mounted:
    """A live mount. `root` is what to work in, `upper` where changes go (None: nowhere of its own)."""

    spec: Spec
    root: Path
    upper: Path | None
    command: list[str]
    mount_s: float = 0.0
    mount_cpu_s: float = 0.0
    pids: list[int] = field(default_factory=list)
    connection: int = -1  # of FUSE: the minor number of the mount's device

    def daemon_cpu_s(self) -> float | None:
        """Processor time that the serving processes have used so far; None where there are none."""
        return processes.cpu_seconds(self.pids)


class Mounter:
    """Mounts subjects below a run's directory, and ends the daemons that outlive their mounts."""

    def __init__(self, scratch_directory: Path) -> None:
        self._runtime = scratch_directory / "runtime"
        self._runtime.mkdir(exist_ok=True)
        self._count = 0
        self._daemons: dict[int, float | None] = {}
        # Our own daemon serves all mounts of a user; a run must not measure inside theirs.
        self.environment = {
            "XDG_RUNTIME_DIR": str(self._runtime),
            "OVERLAYFS_PY_RUNTIME_DIR": str(self._runtime / "overlayfs-py"),
            "OVERLAYFS_PY_LOG": str(self._runtime / "overlayfs-py.log"),
        }

    @contextmanager
    def mounted(
        self,
        spec: Spec,
        layers: Layers,
        place: Path,
        plain: Path | None = None,
        read_only: bool = False,
    ) -> Iterator[Mounted]:
        """Mounts `layers` with a fresh upper below `place`, both gone at the end.

        `read_only` mounts have no upper. The plain directory has `layers` merged by copying;
        `plain` is such a copy that may be used again. Raises CannotMeasure with the reason where the mount fails.
        """
        if spec.kind == PLAIN and plain is not None:
            yield Mounted(spec, plain, None, [])
            return
        with self._home(place) as home:
            work, root = home / "work", home / "merged"
            if spec.kind == PLAIN:
                copy_merged(layers, root)
                yield Mounted(spec, root, None, [])
                return
            upper = None if read_only else home / "upper"
            for directory in (root, *((upper, work) if upper is not None else ())):
                directory.mkdir()
            argv = spec.mount_command(list(layers.names), upper, work, root)
            with self._live(spec, argv, layers.directory, root, upper) as mount:
                yield mount

    @contextmanager
    def image(
        self, spec: Spec, store: Path, image: str, place: Path, read_only: bool = False
    ) -> Iterator[Mounted]:
        """Mounts an image of our store with a fresh upper below `place`, both gone at the end.

        `read_only` mounts have no upper. Raises CannotMeasure with the reason where the mount fails.
        """
        with self._home(place) as home:
            work, root = home / "work", home / "merged"
            upper = None if read_only else home / "upper"
            for directory in (root, *((upper, work) if upper is not None else ())):
                directory.mkdir()
            words = ["--ro"] if upper is None else ["--upper", str(upper), "--work", str(work)]
            argv = [spec.program, "mount", "--root", str(store), *words, image, str(root)]
            with self._live(spec, argv, home, root, upper) as mount:
                yield mount

    @contextmanager
    def _home(self, place: Path) -> Iterator[Path]:
        """A directory for one mount, gone at the end with all that is mounted in it."""
        self._count += 1
        home = place / f"m{self._count}"
        home.mkdir()
        try:
            yield home
        finally:
            for mountpoint in scratch.mounts_below(home):
                scratch.unmount(mountpoint)
            shutil.rmtree(home)

    @contextmanager
    def _live(
        self, spec: Spec, argv: list[str], cwd: Path, root: Path, upper: Path | None
    ) -> Iterator[Mounted]:
        """Runs a command that mounts on `root`, and unmounts at the end."""
        mount = self._run(spec, argv, cwd, root, upper)
        try:
            yield mount
        finally:
            scratch.unmount(mount.root)
            processes.wait_until_released(mount.pids, mount.connection, DAEMON_EXIT_TIMEOUT_S)

    def _run(
        self, spec: Spec, argv: list[str], cwd: Path, root: Path, upper: Path | None
    ) -> Mounted:
        finished = commands.run(argv, cwd=cwd, environment=self.environment, timeout_s=60)
        commands.must(finished)
        started = time.perf_counter()
        try:
            connection = os.minor(os.stat(root).st_dev)
        except OSError as error:
            raise CannotMeasure(
                f"{argv[0]} returned, but the mount says {error.strerror}"
            ) from None
        live_s = time.perf_counter() - started
        if not scratch.is_mounted(root):
            raise CannotMeasure(f"{argv[0]} returned, but nothing is mounted")
        mount = Mounted(spec, root, upper, argv, finished.wall_s + live_s, finished.cpu_s)
        if spec.kind == PROGRAM:
            mount.connection = connection
            mount.pids = processes.daemons_of(root)
            self._daemons.update((pid, processes.start_time(pid)) for pid in mount.pids)
        return mount

    def end_daemons(self) -> None:
        """Ends the daemons that are still there, which by now serve no mount of this run."""
        same = [pid for pid, at in self._daemons.items() if processes.start_time(pid) == at]
        processes.end(same)
        self._daemons.clear()


def copy_merged(layers: Layers, target: Path) -> None:
    """Lays the layers over each other, lowest first, as one directory of copies.

    cp(1) shares blocks where the file system can. Raises CannotMeasure if it fails.
    """
    target.mkdir()
    for layer in reversed(layers.paths()):
        words = ["cp", "-a", "--reflink=auto", "--sparse=auto", f"{layer}/."]
        commands.must(commands.run([*words, target]))
