"""The commands in README.md do what it says, in its order, as root in a copy of nothing but a home."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py.errors import UserError
from overlayfs_py.options import parse_mount_options
from tests import scratch
from tests.tools.conftest import TOP

README = TOP / "README.md"
NOT_AGAIN = {
    "tools/quickstart": "test_quickstart runs it",
    "tools/test": "runs this test",
    "overlayfs-py bench run --quick --json result.json": "takes two minutes; tests/benchmarks",
    "overlayfs-py bench report result.json --output result.html": "needs the result of that",
}
"""Commands that are not run here, with the reason."""

EXPECTED = {
    "overlayfs-py diff demo/merged": "C /file\nD /other\n",
    "cat mnt/etc/motd": "welcome\n",
    "overlayfs-py --version": "overlayfs-py: version ",
}
"""What some commands have to print, or begin with."""


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def engine_configuration(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables that give podman storage of its own, and limits that hold in a container too."""
    with tempfile.TemporaryDirectory(prefix="overlayfs-py-engine-") as state:
        (tmp_path / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{state}/run"\n'
            f'graphroot = "{tmp_path}/containers"\n'
        )
        (tmp_path / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:2048", "nproc=1000:1000"]\n'
            'netns = "none"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{state}/libpod"\n'
        )
        yield {
            "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
            "CONTAINERS_CONF": str(tmp_path / "containers.conf"),
        }
        # podman leaves this bind mount behind, by design.
        overlay = tmp_path / "containers/overlay"
        subprocess.run(["umount", "-l", overlay], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.mount
@pytest.mark.slow
def test_every_command_works(tmp_path: Path, engine_configuration: dict[str, str]) -> None:
    # The commands are written for the repository's top directory, and leave it as it was.
    work = tmp_path / "work"
    work.mkdir()
    for name in ("tools", ".venv"):
        (work / name).symlink_to(TOP / name)
    (tmp_path / "runtime").mkdir(mode=0o700)
    script = "\n".join(_traced(command) for command in commands() if command not in NOT_AGAIN)
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail"],
        input=script,
        capture_output=True,
        text=True,
        cwd=work,
        timeout=600,
        env={
            **os.environ,
            **engine_configuration,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LAYERSTORE_ROOT": str(tmp_path / "store"),
            "OVERLAYFS_PY_RUNTIME_DIR": str(tmp_path / "runtime"),
        },
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = dict(part.split("\n", 1) for part in done.stdout.split(_MARK) if part.strip())
    for command, text in EXPECTED.items():
        assert printed[command].startswith(text), printed[command]
    podman = next(text for command, text in printed.items() if " run --rm " in command)
    assert podman.startswith("overlayfs-py / fuse.overlayfs-py rw")
    assert {path.name for path in work.iterdir()} == {"tools", ".venv"}
    assert not scratch.mounts_below(work)


_MARK = "\x1e"


def _traced(command: str) -> str:
    quoted = "'" + command.replace("'", "'\\''") + "'"
    return f"printf '\\036%s\\n' {quoted}\n{command}"


def test_what_is_left_out_is_there_and_has_a_reason() -> None:
    assert set(commands()) >= set(NOT_AGAIN) | set(EXPECTED)
    assert all(NOT_AGAIN.values())


def test_it_starts_with_the_two_commands() -> None:
    assert commands()[:2] == ["tools/quickstart", "tools/test"]


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        assert target.startswith("https://") or (TOP / target).exists(), target


def option_names() -> list[str]:
    """The names in the first column of the table of options."""
    rows = re.findall(r"^\| (`.*)$", README.read_text(), re.MULTILINE)
    cells = [re.split(r"(?<!\\)\|", row)[0] for row in rows]
    words = [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
    return sorted({re.split(r"[=:,]", word)[0] for word in words if word[0].isalpha()})


@pytest.mark.parametrize("name", option_names())
def test_its_options_are_known(name: str) -> None:
    """Some are refused here for the lack of a value, or of an upper; none as unknown."""
    said = ""
    try:
        parse_mount_options([f"lowerdir=/,{name}"])
    except UserError as error:
        said = str(error)
    assert "unknown" not in said


def test_the_table_was_read() -> None:
    assert {"lowerdir", "redirect_dir", "gidmapping", "noatime", "remount"} <= set(option_names())
