"""Images from tools/images, a store of the test's own, and mounts that end with the test."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
OVERLAYFS = PROGRAMS / "overlayfs-py"
CONTAINER = [
    "--network=none",
    "--ulimit=nofile=1024:2048",
    "--ulimit=nproc=1000:1000",
]
"""What `podman run` and `build` need inside a container or a small virtual machine."""


def run(*words: str | Path, **environment: str) -> str:
    """Run a program that has to succeed.

    Returns:
        What it printed.
    """
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
    return done.stdout


def archive(name: str) -> Path:
    """The OCI archive of one of the images of tools/images, built if need be."""
    return Path(run(TOP / "tools/images", name).strip())


@dataclass
class Ours:
    """The two commands, on a store below `place`."""

    place: Path
    _mounted: list[Path] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.environment = {
            "LAYERSTORE_ROOT": str(self.place / "store"),
            "OVERLAYFS_PY_RUNTIME_DIR": str(self.place / "runtime"),
        }
        (self.place / "runtime").mkdir(mode=0o700)

    def layerstore(self, *words: str | Path) -> str:
        return run(PROGRAMS / "layerstore", *words, **self.environment)

    def overlayfs(self, *words: str | Path) -> str:
        return run(OVERLAYFS, *words, **self.environment)

    def mount(self, image: str, *options: str) -> Path:
        """Mount an image of the store until the test ends.

        Returns:
            The mountpoint.
        """
        mountpoint = self.place / f"mounted{next(self._numbers)}"
        mountpoint.mkdir()
        self.overlayfs("mount", *options, image, mountpoint)
        self._mounted.append(mountpoint)
        return mountpoint

    def unmount(self, mountpoint: Path) -> None:
        self.overlayfs("umount", mountpoint)
        self._mounted.remove(mountpoint)
        mountpoint.rmdir()

    def end(self) -> None:
        for mountpoint in list(self._mounted):
            self.unmount(mountpoint)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Ours]:
    made = Ours(tmp_path)
    yield made
    made.end()


@dataclass
class Engine:
    """podman or buildah with storage of its own, on a mount program or the kernel's overlayfs."""

    program: str
    place: Path
    options: list[str]
    environment: dict[str, str]

    def __call__(self, *words: str | Path) -> str:
        return run(self.program, *self.options, *words, **self.environment)


class Engines:
    """Makes engines, and takes away what they leave mounted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._made: list[Engine] = []
        # podman takes no path over 50 characters for its state, and pytest's are longer.
        self._state = Path(tempfile.mkdtemp(prefix="overlayfs-py-engine-"))

    def make(self, program: str, mount_program: Path | None = None) -> Engine:
        number = len(self._made)
        place = self.place / f"{program}{number}"
        place.mkdir()
        runtime = place / "overlayfs-py"
        runtime.mkdir(mode=0o700)
        options = [
            f"--root={place}/storage",
            f"--runroot={self._state}/{number}",
            "--storage-driver=overlay",
        ]
        if mount_program:
            options.append(f"--storage-opt=overlay.mount_program={mount_program}")
        if program == "podman":
            options += ["--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file"]
        environment = {"OVERLAYFS_PY_RUNTIME_DIR": str(runtime)}
        engine = Engine(program, place, options, environment)
        self._made.append(engine)
        return engine

    def end(self) -> None:
        for engine in self._made:
            # The engines leave this bind mount behind, by design.
            overlay = engine.place / "storage/overlay"
            subprocess.run(["umount", "-l", overlay], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self._state)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("engines"))
    yield made
    made.end()
