"""A user without privilege, made for one test in namespaces of its own; the machine stays as it is.

Inside, /etc/passwd knows one user more, who has subordinate ids, and /dev/fuse may be opened by
everybody, as distributions have it. Programs and sources that the user could not reach, because they
are below a closed directory such as /root, are shown in an open one. All of it, mounts and processes
included, ends with the command.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.images.conftest import TOP

USER, UID = "overlaytest", 54321


def run_as_user(place: Path, script: str, **environment: str) -> str:
    """Run a shell script as the user, in their empty home directory.

    Args:
        place: an empty directory, which has to be reachable by everyone.
        script: for `sh -e`.
        environment: added to HOME, PATH, USER and XDG_RUNTIME_DIR.

    Returns:
        What it printed.
    """
    home, runtime = place / "home", place / "run"
    for directory in (home, runtime):
        directory.mkdir(mode=0o700)
        os.chown(directory, UID, UID)
    (place / "script").write_text(f"cd {shlex.quote(str(home))}\n{script}")
    (place / "setup").write_text(_setup(place))
    variables = {
        "HOME": str(home),
        "USER": USER,
        "XDG_RUNTIME_DIR": str(runtime),
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        **environment,
    }
    namespaces = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        ["unshare", *namespaces, "--mount-proc", "sh", "-e", str(place / "setup")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=variables,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def _setup(place: Path) -> str:
    """What root does before it becomes the user."""
    files = {
        "passwd": Path("/etc/passwd").read_text() + f"{USER}:x:{UID}:{UID}::{place}/home:/bin/sh\n",
        "group": Path("/etc/group").read_text() + f"{USER}:x:{UID}:\n",
        "subuid": f"{USER}:200000:65536\n",
        "subgid": f"{USER}:200000:65536\n",
    }
    lines = []
    for name, text in files.items():
        (place / name).write_text(text)
        if not Path("/etc", name).exists():
            lines.append(f": > /etc/{name}")
        lines.append(f"mount --bind {place}/{name} /etc/{name}")
    lines += [
        f"mknod -m 666 {place}/fuse c 10 229",
        f"mount --bind {place}/fuse /dev/fuse",
        *_open_up([Path(sys.base_prefix), TOP], place),
        f"exec setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all"
        f" sh -e {place}/script",
    ]
    return "\n".join(lines)


def _open_up(wanted: Iterable[Path], place: Path) -> list[str]:
    """Commands that put an open directory, with only what is wanted in it, over each closed one."""
    lines = []
    for number, path in enumerate(wanted):
        closed = [parent for parent in path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            stash = f"{place}/stash{number}"
            lines += [
                f"mkdir {stash}",
                f"mount --bind {path} {stash}",
                f"mountpoint -q {closed[-1]} || mount -t tmpfs -o mode=755 open {closed[-1]}",
                f"mkdir -p {path}",
                f"mount --bind {stash} {path}",
            ]
    return lines
