"""tools/quickstart: from nothing to a mounted image, again and again, and what it says otherwise."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.conftest import TOP, Tool, one_line

pytestmark = [pytest.mark.mount, pytest.mark.slow]


def commands(printed: str) -> list[list[str]]:
    """The commands that quickstart shows before it runs them."""
    return [shlex.split(line[2:]) for line in printed.splitlines() if line.startswith("$ ")]


def test_an_image_of_its_own_twice(tool: Tool, tmp_path: Path) -> None:
    mountpoint = tmp_path / "cache/overlayfs-py/quickstart"
    for turn in (1, 2):
        done = tool("quickstart")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"overlayfs-py {mountpoint} fuse.overlayfs-py rw" in Path("/proc/mounts").read_text()
        assert (mountpoint / "usr/bin/hello").exists()
        assert not (mountpoint / "usr/share/doc/apt").exists()
        # Each turn adds a line, and the name finds those of the turns before.
        assert len((mountpoint / "etc/motd").read_text().splitlines()) == 1 + turn
        diff = done.stdout.partition("overlayfs-py diff")[2].splitlines()
        assert diff[1:3] == ["C /etc", "C /etc/motd"]
        assert len(re.findall(r"^ +[12] sha256:", done.stdout, re.MULTILINE)) == 2
    hello = subprocess.run(["chroot", mountpoint, "hello"], capture_output=True, check=True)
    assert hello.stdout == b"Hello, world!\n"


def test_what_it_says_at_the_end_works(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_text("text")
    done = tool("quickstart", "root")
    assert done.returncode == 0, done.stdout + done.stderr
    last = [line.partition(": ")[2].strip() for line in done.stdout.splitlines()[-3:]]
    mountpoint = tmp_path / "cache/overlayfs-py/quickstart"
    (mountpoint / "added").write_text("added")
    script = f"{last[0]}\n{last[1]}\ntest ! -e {mountpoint}/file\n{last[2]}\n"
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LAYERSTORE_ROOT": str(tmp_path / "store"),
        "OVERLAYFS_PY_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    subprocess.run(["sh", "-e"], input=script, text=True, check=True, env=environment)
    assert (mountpoint / "file").read_text() == "text"
    assert (mountpoint / "added").read_text() == "added"


def tree(place: Path) -> Path:
    (place / "tree/etc").mkdir(parents=True)
    (place / "tree/etc/motd").write_text("hello\n")
    return place / "tree"


def tar(place: Path) -> Path:
    with tarfile.open(place / "root.tar", "w") as whole:
        whole.add(tree(place), ".")
    return place / "root.tar"


def layout(place: Path) -> Path:
    made = place / "an image"
    steps: list[list[str | Path]] = [
        ["umoci", "init", "--layout", made],
        ["umoci", "new", "--image", f"{made}:latest"],
        ["umoci", "raw", "add-layer", "--image", f"{made}:latest", tar(place)],
    ]
    for words in steps:
        subprocess.run(words, check=True)
    return made


def archive(place: Path) -> Path:
    source = f"oci:{layout(place)}:latest"
    made = place / "image.tar"
    subprocess.run(["skopeo", "copy", "-q", source, f"oci-archive:{made}:x"], check=True)
    return made


def docker(place: Path) -> Path:
    source = f"oci:{layout(place)}:latest"
    made = place / "docker.tar"
    subprocess.run(["skopeo", "copy", "-q", source, f"docker-archive:{made}:x:y"], check=True)
    return made


@pytest.mark.parametrize("make", [tree, tar, layout, archive, docker])
def test_any_kind_of_image_from_anywhere(
    make: Callable[[Path], Path], tool: Tool, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    image = make(tmp_path / "here")
    done = tool("quickstart", image.name, cwd=image.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    motd = tmp_path / "cache/overlayfs-py/quickstart/etc/motd"
    assert motd.read_text().startswith("hello\n")
    shown = commands(done.stdout)
    assert ["overlayfs-py", "diff", str(motd.parents[1])] in shown
    # Another image at the same place: the one before makes room, its changes stay its own.
    (tmp_path / "other").mkdir()
    (tmp_path / "other/only").write_text("")
    done = tool("quickstart", tmp_path / "other")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (motd.parents[1] / "only").exists()
    assert not motd.exists()


def test_what_is_no_image_is_refused_in_a_line(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    with tarfile.open(tmp_path / "cut.tar", "w") as whole:
        member = tarfile.TarInfo("oci-layout")
        member.size = 4096
        whole.addfile(member, io.BytesIO(bytes(4096)))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:2000])
    assert "no such file" in one_line(tool("quickstart", "missing"), "quickstart")
    assert "--help" in one_line(tool("quickstart", "--frob"), "quickstart")
    assert "--help" in one_line(tool("quickstart", "one", "two"), "quickstart")
    for image in ("junk", "cut.tar", "oci:/nowhere"):
        assert image.rpartition(":")[2] in one_line(tool("quickstart", image), "layerstore")
    assert not (tmp_path / "cache/overlayfs-py/quickstart").exists()


def test_help(tool: Tool) -> None:
    done = tool("quickstart", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: tools/quickstart [IMAGE]\n")


def test_tools_run_through_a_link(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(TOP / "tools/quickstart")
    done = subprocess.run(
        [tmp_path / "link", "missing"], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.stderr == "link: missing: no such file or directory\n"
