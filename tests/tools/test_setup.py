"""tools/setup.sh: the pieces that the tools are made of; and the small answers of the tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.tools.conftest import TOP, Tool, one_line


def shell(script: str, cwd: Path = TOP, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -eu -o pipefail\n. {TOP}/tools/setup.sh\n{script}", "tool"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        check=False,
    )


def test_a_step_says_how_long_it_took_and_keeps_its_output_to_itself() -> None:
    done = shell("step 'counting words' echo a lot; echo after")
    assert done.stdout == "after\n"
    assert re.fullmatch(r"counting words: [0-9]+ s\n", done.stderr)


def test_a_step_that_fails_shows_why_and_ends_the_tool() -> None:
    done = shell("step 'trying' sh -c 'echo because >&2; exit 3'; echo after")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "because\ntool: trying: failed with status 3\n"


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A PATH in which apt-get, dpkg-query, id and sudo only write down what they are asked.

    Installing for real would change the machine that the tests run on.
    """
    place = tmp_path / "bin"
    place.mkdir()
    for name, body in {
        "apt-get": 'echo "apt-get $DEBIAN_FRONTEND $*" >> "$LOG"',
        "dpkg-query": 'for last; do :; done; [ "$last" = here ] && printf installed',
        "sudo": 'echo "sudo $*" >> "$LOG"; while [ "$1" = -n ]; do shift; done; exec "$@"',
        "id": "echo $FAKE_UID",
    }.items():
        (place / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / name).chmod(0o755)
    return place


def install(fakes: Path, names: str, uid: int) -> tuple[subprocess.CompletedProcess[str], str]:
    log = fakes.parent / "log"
    done = shell(
        f"debian_packages {names}",
        PATH=f"{fakes}:/usr/bin:/bin",
        LOG=str(log),
        FAKE_UID=str(uid),
        DEBIAN_FRONTEND="",
    )
    return done, log.read_text() if log.exists() else ""


def test_only_missing_packages_are_installed(fakes: Path) -> None:
    done, log = install(fakes, "here missing here also-missing", uid=0)
    assert done.returncode == 0, done.stderr
    update, installed = log.splitlines()
    assert update.endswith(" update")
    assert installed.startswith("apt-get noninteractive ")
    assert installed.endswith(" install --no-install-recommends missing also-missing")


def test_nothing_is_asked_of_apt_when_all_is_there(fakes: Path) -> None:
    done, log = install(fakes, "here", uid=0)
    assert done.returncode == 0
    assert log == done.stderr == ""


def test_sudo_where_the_user_is_not_root(fakes: Path) -> None:
    done, log = install(fakes, "missing", uid=1000)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("sudo -n apt-get ") for line in log.splitlines()) == 1
    assert sum(line.startswith("sudo -n env ") for line in log.splitlines()) == 1


def test_without_sudo_the_packages_are_named(fakes: Path) -> None:
    (fakes / "sudo").unlink()
    for tool in ("sh", "bash", "sed", "tail", "tr", "mktemp", "sleep", "rm", "env"):
        (fakes / tool).symlink_to(f"/bin/{tool}")
    done = shell(
        "PATH=$FAKES; debian_packages missing",
        FAKES=str(fakes),
        LOG=str(fakes / "log"),
        FAKE_UID="1000",
    )
    assert one_line(done, "tool") == "neither root nor sudo; have missing installed and run again"


def test_check_takes_no_other_argument(tool: Tool) -> None:
    assert "--static" in one_line(tool("check", "--fast"), "check")


def test_images_lists_what_there_is(tool: Tool) -> None:
    done = tool("images", "--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("debian", "debian-hello", "odd", "podman"),
        *("family-debian-a", "family-debian-b", "family-python-a", "family-python-b"),
        *("family-django", "family-node", "family-gcc"),
    ]
    assert "tools/images --list" in one_line(tool("images", "windows"), "images")


def test_ci_runs_tools_test() -> None:
    run = TOP / ".ci/run"
    assert run.stat().st_mode & 0o111 == 0o111
    assert "tools/test" in run.read_text()
