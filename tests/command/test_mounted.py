"""Real mounts through the real command: what it leaves, what it refuses, how it ends."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs_py import mount_flags, mountinfo, registry
from overlayfs_py.escaping import escape
from tests.command.command import COMMAND, ROOT, refusal, run

pytestmark = pytest.mark.mount


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Layers and a mountpoint; whatever is mounted below is unmounted and its daemon ended."""
    for name in ("a", "b", "u", "w", "m"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/low").write_text("low")
    (tmp_path / "b/low").write_text("lowest")
    (tmp_path / "b/dir").mkdir()
    try:
        yield tmp_path
    finally:
        for record in registry.live():
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGTERM)
        for entry in reversed(mountinfo.entries()):
            if entry.mountpoint.startswith(os.fsencode(tmp_path) + b"/"):
                with contextlib.suppress(OSError):
                    mount_flags.umount(entry.mountpoint, mount_flags.MNT_DETACH)
        eventually(lambda: not registry.live())


UPPER = "lowerdir=a:b,upperdir=u,workdir=w"


def mount(base: Path, *arguments: str) -> registry.Record:
    """Mount with the working directory `base`; the mountpoint is the last argument."""
    done = run(*arguments, cwd=base)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    record = registry.find(os.fsencode(base / arguments[-1]))
    assert record is not None
    return record


def listed(base: Path) -> list[dict[str, Any]]:
    """What `ps` says of the mounts below `base`; other mounts of the machine are nobody's business
    here.
    """
    mounts = json.loads(run("ps", "--json").stdout)
    return [mount for mount in mounts if mount["mountpoint"].startswith(f"{base}/")]


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_live_when_the_command_returns(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    assert (base / "m/low").read_text() == "low"
    (base / "m/new").write_text("new")
    assert (base / "u/new").read_text() == "new"
    entry = mountinfo.top(os.fsencode(base / "m"))
    assert entry is not None
    assert (entry.source, entry.fstype) == (b"overlayfs-py", b"fuse.overlayfs-py")
    assert record.device == os.fsdecode(entry.device)


def test_the_daemon_leaves_its_caller(base: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        subprocess.run(
            [*COMMAND, "-o", UPPER, "m"],
            cwd=base,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            close_fds=False,
            check=True,
        )
    finally:
        os.close(writing)
    # End of file: the daemon has not kept a descriptor of its caller's.
    assert os.read(reading, 1) == b""
    os.close(reading)
    record = registry.find(os.fsencode(base / "m"))
    assert record is not None
    assert os.getsid(record.pid) == record.pid
    assert os.readlink(f"/proc/{record.pid}/cwd") == "/"
    for standard in (0, 1, 2):
        assert os.readlink(f"/proc/{record.pid}/fd/{standard}") == "/dev/null"


def test_mount_8_with_our_type(base: Path) -> None:
    """mount -t fuse.overlayfs-py and an fstab line; mount(8) looks in the system's own directories
    only.
    """
    # Not in the working directory: mount -a would take the source in fstab for this file.
    script = base / "b/overlayfs-py"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    script.chmod(0o755)
    layers = f"lowerdir={base}/a:{base}/b,upperdir={base}/u,workdir={base}/w"
    (base / "fstab").write_text(f"overlayfs-py {base}/m fuse.overlayfs-py {layers},nofail,_netdev")
    steps = f"""
        mount -t tmpfs none /usr/local/bin && cp b/overlayfs-py /usr/local/bin
        mount -t fuse.overlayfs-py overlay m -o '{layers},noexec,nofail'
        grep {base}/m /proc/self/mountinfo
        mount -o remount,ro m
        touch m/new || echo read-only
        umount m
        while overlayfs-py ps | grep {base}; do sleep 0.1; done
        mount -a -T fstab
        mount -a -T fstab
        cat m/low
        overlayfs-py umount m
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-e", "-c", steps],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    mounted, *rest = done.stdout.splitlines()
    assert "noexec" in mounted
    assert " - fuse.overlayfs-py overlayfs-py rw," in mounted
    assert rest[0] == "read-only"
    assert rest[-1] == "low"


def test_a_mountpoint_named_like_a_command(base: Path) -> None:
    (base / "mount").mkdir()
    mount(base, "-o", UPPER, "./mount")
    assert (base / "mount/low").read_text() == "low"
    run("umount", "./mount", cwd=base)
    (base / "diff").mkdir()
    done = run("diff", "./diff", "-o", UPPER, cwd=base)
    assert done.returncode == 0, done.stderr
    assert (base / "diff/low").read_text() == "low"


def test_source_mountpoint_and_options_in_any_order(base: Path) -> None:
    for arguments in (
        ["overlay", "m", "-o", UPPER],
        ["-o", UPPER, "overlay", "m"],
        ["overlay", "-o", UPPER, "m"],
        [f"-o{UPPER}", "m"],
    ):
        done = run(*arguments, cwd=base)
        assert done.returncode == 0, done.stderr
        assert (base / "m/low").exists()
        assert run("umount", "m", cwd=base).returncode == 0


def test_fsname_and_subtype(base: Path) -> None:
    mount(base, "-o", UPPER + ",fsname=name,subtype=kind", "m")
    entry = mountinfo.top(os.fsencode(base / "m"))
    assert entry is not None
    assert (entry.source, entry.fstype) == (b"name", b"fuse.kind")
    assert run("umount", "m", cwd=base).returncode == 0


def test_names_that_need_escapes(base: Path) -> None:
    for name in ("l:o,w\\er", "u,p", "w:k", "m p\n"):
        (base / name).mkdir()
    (base / "l:o,w\\er/here").touch()
    lower, upper, work = escape("l:o,w\\er"), escape("u,p"), escape("w:k")
    options = f"lowerdir={lower}:a,upperdir={upper},workdir={work}"
    mount(base, "-o", options, "m p\n")
    assert (base / "m p\n/here").exists()
    (base / "m p\n/new").touch()
    assert (base / "u,p/new").exists()


def test_five_hundred_layers(base: Path) -> None:
    (base / "l").mkdir()
    for number in range(500):
        (base / f"l/{number}").mkdir()
        (base / f"l/{number}/{number}").touch()
    lowers = ":".join(f"l/{number}" for number in range(500))
    mount(base, "-o", f"lowerdir={lowers},upperdir=u,workdir=w", "m")
    assert len(os.listdir(base / "m")) == 500


@pytest.mark.parametrize("options", [UPPER + ",ro", "lowerdir=a:b", "lowerdir=a"])
def test_read_only(base: Path, options: str) -> None:
    mount(base, "-o", options, "m")
    with pytest.raises(OSError, match="Read-only file system"):
        (base / "m/new").touch()
    (mounted,) = listed(base)
    assert mounted["mode"] == "ro"


def test_mount_flags_reach_the_kernel(base: Path) -> None:
    mount(base, "-o", UPPER + ",nosuid,nodev,noexec,noatime,nodiratime,nosymfollow,private", "m")
    entry = mountinfo.top(os.fsencode(base / "m"))
    assert entry is not None
    words = set(os.fsdecode(entry.options).split(","))
    assert {"nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"} <= words


def test_what_a_live_mount_holds_is_refused_by_name(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    (base / "m2").mkdir()
    why = f"upperdir {base}/u is held by the mount on {base}/m (process {record.pid})"
    assert why in refusal("-o", "lowerdir=a,upperdir=u,workdir=b", "m2", cwd=base)
    assert f"workdir {base}/w is held by the mount on {base}/m" in refusal(
        "-o", "lowerdir=a,upperdir=b,workdir=w", "m2", cwd=base
    )
    assert "is in use by an overlayfs-py mount" in refusal("-o", "lowerdir=a", "m", cwd=base)
    assert not os.path.ismount(base / "m2")
    assert len(registry.live()) == 1


def test_of_many_at_once_on_one_mountpoint_one_wins(base: Path) -> None:
    processes = [
        subprocess.Popen(
            [*COMMAND, "-o", "lowerdir=a", "m"],
            cwd=base,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.communicate(timeout=60)
    assert sorted(process.returncode for process in processes) == [0, 1, 1, 1]
    assert len(registry.live()) == 1


def test_a_daemon_whose_mount_is_gone_is_waited_for(base: Path) -> None:
    """Runtimes detach lazily and mount the same upper at once."""
    first = mount(base, "-o", UPPER, "m")
    (base / "m/kept").write_text("kept")
    with open(base / "m/kept"):
        mount_flags.umount(os.fsencode(base / "m"), mount_flags.MNT_DETACH)
        waiting = subprocess.Popen(
            [*COMMAND, "-o", UPPER, "m"],
            cwd=base,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        time.sleep(1)
        assert waiting.poll() is None
        assert not gone(first.pid)
    assert waiting.wait(timeout=30) == 0
    assert gone(first.pid)
    assert (base / "m/kept").read_text() == "kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(base: Path, number: signal.Signals) -> None:
    record = mount(base, "-o", UPPER, "m")
    os.kill(record.pid, number)
    eventually(lambda: gone(record.pid))
    assert not os.path.ismount(base / "m")
    assert registry.live() == []
    mount(base, "-o", UPPER, "m")


def test_a_signal_ends_a_mount_in_use(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    fd = os.open(base / "m/low", os.O_RDONLY)
    try:
        os.kill(record.pid, signal.SIGTERM)
        eventually(lambda: gone(record.pid))
    finally:
        # close(2) hears of the dead connection as well.
        with contextlib.suppress(OSError):
            os.close(fd)
    assert mountinfo.top(os.fsencode(base / "m")) is None


def test_a_killed_daemon_leaves_a_mount_that_says_what_to_do(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: gone(record.pid))
    (dead,) = listed(base)
    assert (dead["state"], dead["pid"]) == ("dead", None)
    assert "daemon is dead: run 'overlayfs-py umount" in refusal("-o", UPPER, "m", cwd=base)
    assert run("umount", "m", cwd=base).returncode == 0
    mount(base, "-o", UPPER, "m")


def test_auto_unmount_takes_a_killed_daemons_mount_away(base: Path) -> None:
    record = mount(base, "-o", UPPER + ",auto_unmount", "m")
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: mountinfo.top(os.fsencode(base / "m")) is None)
    assert (base / "m").is_dir()


def test_umount_names_who_is_in_the_way(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    with open(base / "m/low"):
        why = refusal("umount", "m", cwd=base)
        assert why.startswith("m is busy: in use by ")
        assert f"({os.getpid()})" in why
    assert run("umount", "m", cwd=base).returncode == 0
    assert gone(record.pid)


def test_umount_lazily(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    with open(base / "m/low") as file:
        assert run("umount", "--lazy", "m", cwd=base).returncode == 0
        assert not os.path.ismount(base / "m")
        assert file.read() == "low"
    eventually(lambda: gone(record.pid))


def test_remount(base: Path) -> None:
    mount(base, "-o", UPPER + ",noexec", "m")
    assert run("-o", "remount,ro", "m", cwd=base).returncode == 0
    entry = mountinfo.top(os.fsencode(base / "m"))
    assert entry is not None
    assert {b"ro", b"noexec"} <= set(entry.options.split(b","))
    with pytest.raises(OSError, match="Read-only"):
        (base / "m/new").touch()
    assert run("-o", "remount,rw,exec", "m", cwd=base).returncode == 0
    entry = mountinfo.top(os.fsencode(base / "m"))
    assert entry is not None
    assert b"noexec" not in entry.options.split(b",")
    (base / "m/new").touch()
    with open(base / "m/new", "w"):
        assert "files are open for writing" in refusal("-o", "remount,ro", "m", cwd=base)


def test_a_mount_without_upper_stays_read_only(base: Path) -> None:
    mount(base, "-o", "lowerdir=a:b", "m")
    assert "no upper directory" in refusal("-o", "remount,rw", "m", cwd=base)


def test_a_mount_made_read_only_can_become_writable(base: Path) -> None:
    mount(base, "-o", UPPER + ",ro", "m")
    assert run("-o", "remount,rw", "m", cwd=base).returncode == 0
    (base / "m/new").write_text("new")
    assert (base / "u/new").read_text() == "new"


def test_in_the_foreground(base: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-f", "-o", UPPER, "m"],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: os.path.ismount(base / "m"))
        assert (base / "m/low").read_text() == "low"
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert not os.path.ismount(base / "m")


def test_ps_diff_and_which(base: Path) -> None:
    record = mount(base, "-o", UPPER, "m")
    (base / "m/low").write_text("changed")
    (base / "m/dir").rmdir()
    (base / "m/new").touch()
    table = run("ps").stdout.splitlines()
    assert table[0].split()[0] == "MOUNTPOINT"
    (row,) = [line for line in table if line.startswith(f"{base}/")]
    assert row.split()[:4] == [str(base / "m"), "live", "rw", str(record.pid)]
    assert run("diff", "m", cwd=base).stdout == "D /dir\nC /low\nA /new\n"
    by_upper = json.loads(run("diff", "--json", "u", cwd=base).stdout)
    assert [change["path"] for change in by_upper["changes"]] == ["/dir", "/low", "/new"]
    assert by_upper["exact"]
    (low, new) = json.loads(run("which", "--json", "m/low", "m/new", cwd=base).stdout)
    assert low["copied_up"]
    assert low["from"]["layer"] == "upper"
    assert [shadow["place"] for shadow in low["shadows"]] == [f"{base}/a", f"{base}/b"]
    assert not new["copied_up"]
    assert new["shadows"] == []
    assert f"removed by a whiteout in {base}/u" in refusal("which", "m/dir", cwd=base)
    run("umount", "m", cwd=base)
    assert run("diff", "--lower", "a", "--lower", "b", "u", cwd=base).stdout.splitlines() == [
        "D /dir",
        "C /low",
        "A /new",
    ]


def test_no_fuse_device_is_one_line(base: Path) -> None:
    script = (
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "
        f"{shlex.join(COMMAND)} -o {UPPER} m"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "/dev/fuse cannot be opened" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _syncs(pid: int, act: Callable[[], Any]) -> list[str]:
    """The calls of syncfs(2) that a process and its threads make while `act` runs, to the end of the process."""
    with subprocess.Popen(
        ["strace", "-f", "-e", "trace=syncfs", "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        act()
        said = tracer.stderr.read()
    return [line for line in said.splitlines() if "syncfs(" in line]


@pytest.mark.parametrize(("options", "synced"), [("", 1), (",volatile", 1), (",fsync=0", 0)])
def test_the_end_of_a_mount_makes_the_upper_durable(base: Path, options: str, synced: int) -> None:
    """A volatile one is synced before its upper is declared to be good again."""
    record = mount(base, "-o", UPPER + options, "m")
    (base / "m/new").write_text("new")
    found = _syncs(record.pid, lambda: run("umount", "m", cwd=base))
    assert len(found) == synced, found


@pytest.mark.parametrize("transport", ["device", "pyfuse3"])
def test_sync_writes_what_a_mapping_changed(base: Path, transport: str) -> None:
    mount(base, "-o", f"{UPPER},transport={transport}", "m")
    with open(base / "m/low", "r+b") as file, mmap.mmap(file.fileno(), 3) as view:
        view[0:3] = b"LOW"
        done = run("sync", "m", cwd=base)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (base / "u/low").read_bytes() == b"LOW"


def test_sync_reaches_the_uppers_filesystem(base: Path) -> None:
    mount(base, "-o", UPPER, "m")
    trace = base / "trace"
    subprocess.run(
        ["strace", "-y", "-e", "trace=syncfs", "-o", trace, *COMMAND, "sync", base / "m"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    lines = [line for line in trace.read_text().splitlines() if line.startswith("syncfs")]
    assert [line.partition("<")[2].partition(">")[0] for line in lines] == [
        str(base / "m"), str(base / "u"),
    ]  # fmt: skip


def test_sync_says_what_it_cannot_do(base: Path) -> None:
    assert "is not a live mount" in refusal("sync", "m", cwd=base)
    mount(base, "-o", "lowerdir=a", "m")
    assert run("sync", "m", cwd=base).returncode == 0, "nothing to write"
    run("umount", "m", cwd=base)
    mount(base, "-o", UPPER, "m")
    (base / "u").rename(base / "elsewhere")
    assert "cannot be synced: No such file" in refusal("sync", "m", cwd=base)
    (base / "u").mkdir()
    assert "another directory is at" in refusal("sync", "m", cwd=base)
