"""`commit`: an image of a mount that is in use."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerstore.index.reader import Index
from layerstore.store import Store
from overlayfs_py.freezing import freeze, thaw
from tests.command.command import refusal, run

pytestmark = pytest.mark.mount


@contextlib.contextmanager
def mounted(place: Path, *options: str, image: str = "app") -> Iterator[Path]:
    done = run("mount", *options, image, "m", cwd=place)
    assert done.returncode == 0, done.stderr
    yield place / "m"
    assert run("umount", "m", cwd=place).returncode == 0


def names(image: str) -> set[bytes]:
    with Store.open() as store, Index(store.index_of(image)) as index:
        return {name for name, _, _ in index.entries(index.root_nid)}


def test_an_image_of_a_live_mount(base: Path) -> None:
    with mounted(base, "--name", "mine") as root:
        (root / "new").write_bytes(b"new")
        (root / "file").unlink()
        held = (root / "held").open("wb")
        done = run("commit", "m", "--tag", "made", "-m", "why", "-c", "CMD=sh", cwd=base)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split()[1] == "made:latest"
        held.write(b"still open")
        held.close()
        (root / "later").touch()
    assert names("made") == {b"etc", b"new", b"held"}
    with mounted(base, "--ro", image="made") as root:
        assert (root / "new").read_bytes() == b"new"
    with Store.open() as store:
        config = store.resolve("made").config
    assert config["config"]["Cmd"] == ["/bin/sh", "-c", "sh"]
    assert config["history"][-1]["created_by"] == "overlayfs-py commit"
    assert config["history"][-1]["comment"] == "why"


def test_the_base_is_what_was_mounted_whatever_has_its_name_now(base: Path) -> None:
    with mounted(base, "--name", "mine") as root:
        (root / "new").touch()
        with Store.open() as store:
            store.tag("app", "kept")
            store.tag("other", "app")
        assert json.loads(run("commit", "m", "--json", "-t", "made", cwd=base).stdout)["tags"]
    assert b"file" in names("made")


def test_a_base_that_has_lost_its_name(base: Path) -> None:
    for name in "uw":
        (base / name).mkdir()
    with mounted(base, "--upper", "u", "--work", "w") as root:
        (root / "new").touch()
        with Store.open() as store:
            store.tag("app", "kept")
            store.tag("other", "app")
        assert "was made on another image than app:latest" in refusal("commit", "m", cwd=base)
        assert run("commit", "m", "--base", "kept", "-t", "made", cwd=base).returncode == 0
    assert names("made") == {b"etc", b"file", b"new"}


def test_of_directories_with_the_image_that_they_are(base: Path) -> None:
    for name in "luw":
        (base / name).mkdir()
    (base / "l/file").write_bytes(b"app")
    assert run("-o", "lowerdir=l,upperdir=u,workdir=w", "m", cwd=base).returncode == 0
    (base / "m/file").rename(base / "m/renamed")
    assert "say with --base which image its layers are" in refusal("commit", "m", cwd=base)
    assert run("commit", "m", "--base", "app", "-t", "made", cwd=base).returncode == 0
    assert run("umount", "m", cwd=base).returncode == 0
    assert names("made") == {b"etc", b"renamed"}


def test_mistakes(base: Path) -> None:
    assert "is not a live mount" in refusal("commit", "m", cwd=base)
    with mounted(base, "--ro"):
        assert "has no upper directory" in refusal("commit", "m", cwd=base)
    with mounted(base, "--name", "mine"):
        assert "no such image" in refusal("commit", "m", "--base", "nothing", cwd=base)
        assert "no instruction" in refusal("commit", "m", "-c", "RUN x", cwd=base)
        (base / "m/new").touch()


def test_pyfuse3_cannot_hold_still(base: Path) -> None:
    with mounted(base, "--name", "mine", "-o", "transport=pyfuse3"):
        assert "use 'layerstore commit'" in refusal("commit", "m", cwd=base)


@contextlib.contextmanager
def changing(work: Callable[[int], None]) -> Iterator[None]:
    """`work` called again and again by a thread."""
    end = threading.Event()

    def run_on() -> None:
        number = 0
        while not end.is_set():
            number += 1
            work(number)

    thread = threading.Thread(target=run_on)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_moment_in_the_middle_of_changes(base: Path) -> None:
    """At any moment there are one or two neighbours of a row of names that moves on, and many files that
    take long to be read."""
    with mounted(base, "--name", "mine") as root:
        for number in range(300):
            (root / f"many{number}").write_bytes(os.urandom(5000))
        (root / "row0").touch()

        def step(number: int) -> None:
            # Written in full before it has its name: a half written file shows.
            (root / "z").write_bytes(b"%d" % number * 1000)
            (root / "z").rename(root / f"row{number}")
            (root / f"row{number - 1}").unlink()

        with changing(step):
            for round in range(3):
                done = run("commit", "m", "--tag", f"made{round}", cwd=base)
                assert done.returncode == 0, done.stderr
    for round in range(3):
        row = sorted(int(n[3:]) for n in names(f"made{round}") if n.startswith(b"row"))
        assert len(row) == 1 or (len(row) == 2 and row[1] == row[0] + 1), row


def test_reading_goes_on_and_writing_waits(base: Path) -> None:
    with mounted(base, "--name", "mine") as root:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        freeze(fd)
        assert (root / "file").read_bytes() == b"app"
        assert "file" in os.listdir(root)
        done = threading.Event()

        def write() -> None:
            (root / "new").write_bytes(b"new")
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.3)
        assert "is being committed by somebody else" in refusal("commit", "m", cwd=base)
        thaw(fd)
        os.close(fd)
        assert done.wait(30)
        thread.join()


def test_whoever_is_killed_lets_the_mount_go_on(base: Path) -> None:
    with mounted(base, "--name", "mine") as root:
        code = (
            "import os, sys, time; from overlayfs_py.freezing import freeze\n"
            "freeze(os.open(sys.argv[1], os.O_RDONLY)); print('frozen', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"frozen\n"
            other.send_signal(signal.SIGKILL)
        (root / "new").write_bytes(b"new")
        assert run("commit", "m", "--tag", "made", cwd=base).returncode == 0
    assert b"new" in names("made")


def test_a_frozen_mount_ends(base: Path) -> None:
    assert run("mount", "--name", "mine", "app", "m", cwd=base).returncode == 0
    fd = os.open(base / "m", os.O_RDONLY | os.O_DIRECTORY)
    freeze(fd)
    assert run("umount", "--lazy", "m", cwd=base).returncode == 0
    os.close(fd)
    # The end of a mount syncs the upper's filesystem, which others may keep busy.
    deadline = time.monotonic() + 120
    while json.loads(run("ps", "--json").stdout):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_somebody_else_may_not(base: Path) -> None:
    with mounted(base, "--name", "mine") as root:
        os.chmod(base, 0o755)
        child = os.fork()
        if child == 0:
            status = 9
            with contextlib.suppress(BaseException):
                fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
                os.setuid(54321)
                try:
                    freeze(fd)
                except OSError as error:
                    status = 0 if error.errno == errno.EPERM else 8
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
