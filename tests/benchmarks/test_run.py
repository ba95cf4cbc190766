"""Real runs, small ones: the kernel's overlayfs and fuse-overlayfs measured, interrupted, killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import cli, processes, results, scratch
from benchmarks.mounts import Layers, Mounter
from benchmarks.results import Results
from benchmarks.subjects import locate, parse

pytestmark = pytest.mark.mount

ROW = "lookup-hot/layers=1@tmpfs"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a run may work; nothing may be left in it."""
    path = tmp_path / "work"
    path.mkdir()
    return path


def run(directory: Path, *arguments: str, expect: int = 0) -> Results:
    """One run within this process."""
    output = directory.parent / "result.json"
    words = ["run", *arguments, "--directory", str(directory), "--json", str(output)]
    assert cli.main(words) == expect
    assert list(directory.iterdir()) == []
    assert scratch.mounts_below(directory) == []
    return results.load(output)


def start(directory: Path, output: Path) -> subprocess.Popen[bytes]:
    """A long run in a process of its own, with at least one sample taken."""
    words = ["--only", "lookup-cold/layers=1,create@tmpfs", "--rounds", "1000"]
    words += ["--subject", "kernel", "--subject", "fuse-overlayfs", "--directory", str(directory)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "run", *words, "--json", str(output)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not output.exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    assert output.exists()
    return process


def test_a_run_measures_all_subjects_and_names_those_missing(directory: Path) -> None:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed")
    rows = f"{ROW},rename-directory/of=lower@tmpfs,copyup/bytes=4096@disk"
    rows += ",mount/daemon=fresh/layers=10@disk"
    subjects = ["plain", "kernel,redirect_dir=off", "fuse-overlayfs", "/no/such/program"]
    asked = [word for subject in subjects for word in ("--subject", subject)]
    found = run(directory, "--only", rows, *asked, "--rounds", "2")
    assert found.complete
    assert [subject.label for subject in found.subjects] == subjects[:3]
    skipped = {entry.what: entry.reason for entry in found.skipped}
    assert skipped["subject program"] == "/no/such/program: no such program"
    for label in subjects[1:3]:
        assert skipped[f"row rename-directory/of=lower@tmpfs of {label}"].startswith("EXDEV")
    for label in subjects[:3]:
        assert sorted(found.values(ROW, label)) == [0, 1]
        assert len(found.samples_of("copyup.total/bytes=4096@disk", label)) == 2
    assert len(found.samples_of("mount/daemon=fresh/layers=10@disk", "fuse-overlayfs")) == 2
    daemon = [sample.daemon_cpu_s for sample in found.samples_of(ROW, "fuse-overlayfs")]
    assert all(seconds is not None and seconds > 0 for seconds in daemon)
    assert {sample.daemon_cpu_s for sample in found.samples_of(ROW, "kernel,redirect_dir=off")} == {
        None
    }


def test_a_delay_put_into_lookup_is_found_by_compare(directory: Path) -> None:
    arguments = ["--only", ROW, "--subject", "plain", "--subject", "kernel", "--rounds", "9"]
    results.save(run(directory, *arguments), old := directory.parent / "old.json")
    delayed = run(directory, *arguments, "--delay", "kernel:lookup=5")
    assert [subject.lookup_delay_ns for subject in delayed.subjects] == [0, 5000]
    assert cli.main(["compare", str(old), str(directory.parent / "result.json")]) == 1


def test_four_hundred_layers_fit_a_mount_command(directory: Path) -> None:
    found = run(
        directory,
        "--only",
        "readdir-merged/layers=400@tmpfs",
        "--subject",
        "kernel",
        "--rounds",
        "1",
    )
    assert len(found.samples) == 1


def test_a_read_only_row_mounts_without_an_upper(directory: Path) -> None:
    row = "data/call=mmap-read/of=read-only/cache=first/block=4096@tmpfs"
    found = run(
        directory, "--only", row, "--subject", "plain", "--subject", "kernel", "--rounds", "1"
    )
    assert [sample.subject for sample in found.samples] == ["plain", "kernel"]


def test_a_time_limit_ends_a_run_with_what_it_has(directory: Path) -> None:
    arguments = ["--only", ROW, "--subject", "plain", "--rounds", "100000", "--limit", "0.03"]
    began = time.monotonic()
    found = run(directory, *arguments)
    assert time.monotonic() - began < 20
    assert (found.complete, found.ended_by) == (False, "time limit")
    assert found.samples


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_unmounts_all_and_writes_what_it_has(
    directory: Path, number: signal.Signals
) -> None:
    output = directory.parent / "result.json"
    process = start(directory, output)
    for _ in range(5):  # an impatient user: tidying up must not be interrupted
        process.send_signal(number)
        time.sleep(0.005)
    assert process.wait(60) == 130
    assert list(directory.iterdir()) == []
    assert scratch.mounts_below(directory) == []
    found = results.load(output)
    assert (found.complete, found.ended_by) == (False, "interrupted")
    assert found.samples


def test_what_a_killed_run_left_is_cleared_by_the_next(directory: Path) -> None:
    process = start(directory, directory.parent / "killed.json")
    process.kill()
    process.wait()
    assert scratch.mounts_below(directory)
    (directory / f"{scratch.PREFIX}half-removed").mkdir(0o700)
    run(directory, "--only", ROW, "--subject", "plain", "--rounds", "1")


def test_what_a_living_run_uses_is_left_alone(tmp_path: Path) -> None:
    living = scratch.Scratch(tmp_path)
    assert scratch.sweep(tmp_path) == []
    assert living.path.exists()
    assert living.close() == []
    assert not living.path.exists()


DIES = """#!/bin/sh
fuse-overlayfs -f "$@" & pid=$!
until [ "$(stat -c %d "$3")" != "$(stat -c %d "$3/..")" ]; do sleep 0.01; done
if WHEN; then kill -9 $pid; fi
"""


@pytest.mark.parametrize("when", ["at once", "in a sample"])
def test_a_daemon_that_dies_ends_its_rows_and_not_the_run(
    directory: Path, tmp_path: Path, when: str
) -> None:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed")
    program = tmp_path / "dies"
    # The trial has one layer, the row has ten: the command is run where the layers are.
    test = "true" if when == "at once" else "[ -e 9 ]"
    program.write_text(DIES.replace("WHEN", test))
    program.chmod(0o755)
    found = run(
        directory,
        *("--only", "lookup-hot/layers=10@tmpfs,create@tmpfs", "--rounds", "2"),
        *("--subject", str(program), "--subject", "plain"),
    )
    assert found.complete
    assert len(found.samples_of("lookup-hot/layers=10@tmpfs", "plain")) == 2
    assert len(found.samples_of("create@tmpfs", "dies")) == (0 if when == "at once" else 2)
    what = "subject dies" if when == "at once" else "row lookup-hot/layers=10@tmpfs of dies"
    (reason,) = [entry.reason for entry in found.skipped if entry.what == what]
    assert "not connected" in reason or "ENOTCONN" in reason


def test_what_others_put_there_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(0o700)
    (precious / "file").touch()
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(precious)
    (tmp_path / f"{scratch.PREFIX}open").mkdir()
    (tmp_path / f"{scratch.PREFIX}open").chmod(0o777)
    foreign = tmp_path / f"{scratch.PREFIX}foreign"
    foreign.mkdir(0o700)
    (foreign / "tmpfs").symlink_to(precious)
    os.chown(foreign, 65534, 65534)
    assert scratch.sweep(tmp_path) == []
    os.chown(foreign, 0, 0)
    assert scratch.sweep(tmp_path) == [foreign]
    assert (precious / "file").exists()
    assert not foreign.exists()


def test_the_daemon_of_a_mount_is_found_and_gone_with_it(tmp_path: Path) -> None:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed")
    for name in ("0/d", "place"):
        (tmp_path / name).mkdir(parents=True)
    mounter = Mounter(tmp_path)
    spec = locate(parse("fuse-overlayfs"))
    with mounter.mounted(spec, Layers(tmp_path, ("0",)), tmp_path / "place") as live:
        assert len(live.pids) == 1
        name = Path(f"/proc/{live.pids[0]}/comm").read_text().strip()
        assert name == "fuse-overlayfs"
        assert live.mount_s > 0
        assert (live.daemon_cpu_s() or 0) > 0
        assert 0 < processes.memory(live.pids).pss <= processes.memory(live.pids).rss
        pids = live.pids
    until = time.monotonic() + 10
    while processes.start_time(pids[0]) is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert processes.cpu_seconds(pids) is None
    assert list((tmp_path / "place").iterdir()) == []


def test_processor_time_is_exact() -> None:
    before = processes.cpu_seconds([os.getpid()])
    burnt = time.process_time() + 0.05
    while time.process_time() < burnt:
        pass
    after = processes.cpu_seconds([os.getpid()])
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(0.05, abs=0.02)
    assert processes.cpu_seconds([]) is None


def test_stores_are_measured_without_being_mounted(directory: Path) -> None:
    if shutil.which("umoci") is None:
        pytest.skip("umoci is not installed")
    found = run(
        directory,
        *("--only", "store-import", "--on", "tmpfs", "--rounds", "1"),
        *("--subject", "plain", "--subject", "umoci", "--subject", "kernel"),
    )
    assert [entry.what for entry in found.skipped] == []
    for label in ("plain", "umoci"):
        assert found.values("store-import.disk@tmpfs", label)[0] > 10_000
        assert found.values("store-import.time@tmpfs", label)[0] > 0
