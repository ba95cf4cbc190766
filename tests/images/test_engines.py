"""podman and buildah with overlayfs-py as their mount program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scratch
from tests.images.conftest import CONTAINER, OVERLAYFS, Engine, Engines, archive
from tests.images.trees import differences, read

pytestmark = pytest.mark.slow

CONTAINERFILE = """\
FROM base
RUN rm -r /usr/share/doc && mkdir /usr/share/doc && echo new > /usr/share/doc/new \
 && mv /opt /optional && ln /usr/bin/env /usr/bin/env-again && ln -s env /usr/bin/env-soft \
 && chmod 4711 /usr/bin/env && chown 12:34 /optional && touch -d 2001-01-01 /etc/motd
RUN mkdir -p /a/b && mv /a /c && rmdir /c/b && echo text > /c/file && mv /c/file /c/moved \
 && rm /etc/issue /usr/bin/env-again && mkdir /etc/issue && mknod /null c 1 3 && mkfifo /fifo \
 && echo somebody:x:1000:1000::/home/somebody:/bin/sh >> /etc/passwd \
 && cp -a /etc/skel /home/somebody && chown -R 1000:1000 /home/somebody
USER somebody
RUN cd && echo mine > mine && ! touch /etc/not-mine 2>/dev/null && cp -a /etc/skel copied
COPY Containerfile /copied/
"""
"""Its RUN lines do what package managers do: whiteouts, opaque directories, renames, copy-ups."""


@pytest.fixture(scope="module")
def podman_on_ours(engines: Engines) -> Engine:
    engine = engines.make("podman", OVERLAYFS)
    _load_base(engine)
    return engine


@pytest.fixture
def podman(podman_on_ours: Engine) -> Iterator[Engine]:
    """podman on our mount program, with an image `base`."""
    yield podman_on_ours
    assert not ours_below(podman_on_ours.place), "podman left a mount of ours behind"


def _load_base(engine: Engine) -> None:
    identity = engine("pull", "-q", f"oci-archive:{archive('debian')}").split()[-1]
    engine("tag", identity, "base")


def ours_below(directory: Path) -> list[str]:
    return [point for point in scratch.mounts_below(directory) if point.endswith("/merged")]


def build(engine: Engine, tag: str) -> None:
    context = engine.place / "context"
    context.mkdir(exist_ok=True)
    (context / "Containerfile").write_text(CONTAINERFILE)
    verb = ["bud"] if engine.program == "buildah" else ["build"]
    if engine.program == "buildah":
        verb += ["--runtime=runc", "--isolation=oci"]
    engine(*verb, "-q", "--layers", "--cap-add=MKNOD", *CONTAINER, "-t", tag, context)


def test_podman_says_what_it_runs_on(podman: Engine) -> None:
    options = json.loads(podman("info", "--format=json"))["store"]["graphOptions"]
    assert options["overlay.mount_program"]["Executable"] == str(OVERLAYFS)
    assert "overlayfs-py" in options["overlay.mount_program"]["Version"]


def test_podman_runs_a_container_on_it(podman: Engine) -> None:
    shown = podman(
        *("run", "--rm", *CONTAINER, "base", "sh", "-ec"),
        "grep ' / ' /proc/mounts; echo changed > /etc/motd; cat /etc/motd; rm -r /var/log;"
        " mv /home /house; ls -d /house; cat /etc/debian_version",
    ).splitlines()
    assert shown[0].startswith("overlayfs-py / fuse.overlayfs-py rw")
    assert shown[1:3] == ["changed", "/house"]
    assert shown[3].startswith("12.")


def test_a_container_keeps_its_changes_over_a_restart(podman: Engine) -> None:
    podman("create", "--name=one", *CONTAINER, "base", "sh", "-ec", "echo again >> /etc/motd")
    for _ in range(3):
        # Unmounted lazily and mounted again at once, on the same upper.
        podman("start", "--attach", "one")
    # podman puts mountpoints for its own files there.
    engines_own = {"/etc", "/run", "/etc/mtab", "/run/.containerenv", "/dev", "/proc", "/sys"}
    changed = {line[2:] for line in podman("diff", "one").splitlines()} - engines_own
    assert "/etc/motd" in changed
    podman("commit", "-q", "one", "committed")
    text = podman("run", "--rm", *CONTAINER, "committed", "cat", "/etc/motd")
    assert text.endswith("again\n" * 3)
    podman("rm", "one")


def test_what_podman_builds_on_it_is_what_it_builds_on_the_kernel(
    podman: Engine, engines: Engines
) -> None:
    kernels = engines.make("podman")
    _load_base(kernels)
    trees = []
    for engine in (podman, kernels):
        build(engine, "built")
        trees.append(read(engine("image", "mount", "built").strip()))
        engine("image", "umount", "built")
    ours, theirs = trees
    # Two builds at two times; the kernel gives merged directories one link, and a file those that
    # a higher layer removed as well. podman makes the root directory itself.
    ignored = frozenset({"mtime_ns", "nlink"})
    ours.pop(b"")
    theirs.pop(b"")
    assert differences(ours, theirs, ignored) == []
    assert ours[b"etc/motd"].mtime_ns == theirs[b"etc/motd"].mtime_ns


def test_what_buildah_builds_on_it_podman_runs(podman: Engine, engines: Engines) -> None:
    buildah = engines.make("buildah", OVERLAYFS)
    _load_base(buildah)
    build(buildah, "built")
    made = buildah.place / "built.tar"
    buildah("push", "-q", "built", f"oci-archive:{made}")
    assert not ours_below(buildah.place)
    identity = podman("pull", "-q", f"oci-archive:{made}").split()[-1]
    shown = podman("run", "--rm", *CONTAINER, identity, "sh", "-ec", "id -un; cat ~/mine /c/moved")
    assert shown.split() == ["somebody", "mine", "text"]


def test_many_containers_at_once_share_their_layers(podman: Engine) -> None:
    names = [f"many{number}" for number in range(6)]
    for name in names:
        podman("run", "-d", f"--name={name}", *CONTAINER, "base", "sleep", "600")
    assert len(ours_below(podman.place)) == len(names)
    for name in names:
        podman("exec", name, "sh", "-ec", f"echo {name} > /etc/motd")
    assert [podman("exec", name, "cat", "/etc/motd").strip() for name in names] == names
    podman("rm", "-f", "-t", "0", *names)


def test_read_only_containers_and_overlay_volumes(podman: Engine, tmp_path: Path) -> None:
    shown = podman(
        *("run", "--rm", "--read-only", *CONTAINER, "base", "sh", "-c"),
        "touch /x 2>/dev/null || echo refused",
    )
    assert shown == "refused\n"
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "kept").write_text("kept")
    listed = podman(
        *("run", "--rm", "-v", f"{volume}:/v:O", *CONTAINER, "base", "sh", "-ec"),
        "rm /v/kept; touch /v/new; ls /v; grep ' /v ' /proc/mounts",
    ).splitlines()
    assert listed[0] == "new"
    assert "fuse.overlayfs-py" in listed[1]
    assert [path.name for path in volume.iterdir()] == ["kept"]
