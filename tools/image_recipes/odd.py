"""Images that try everything, by buildah and podman; as root."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

from image_recipes.cache import cached, register
from image_recipes.debian import bootstrap, debian
from image_recipes.engines import LIMITS, storage
from image_recipes.programs import Failed, run

LONG_TARGET = ("0123456789/" * 400)[:4095]
ODD_NAMES = [
    b" leading and trailing ",
    b"-dash",
    b"new\nline",
    b"tab\tand\\backslash",
    b"colon:comma,equals=",
    b"not utf-8 \xff\xfe",
    "composed \u00e9".encode(),
    "decomposed e\u0301".encode(),
    b"n" * 255,
    b"...",
    b"wh.looks like one",
]


def odd(place: Path, made: Path) -> None:
    """Four small layers by buildah with every kind of node, name, link, xattr and removal."""
    with storage(place) as options:
        image = "scratch"
        for number, change in enumerate((odd_base, odd_removals, odd_returns, odd_moves)):
            container = run(["buildah", *options, "from", "--pull-never", image]).strip()
            top = Path(run(["buildah", *options, "mount", container]).strip())
            change(top)
            run(["buildah", *options, "umount", container])
            image = f"localhost/odd:{number}"
            run(["buildah", *options, "commit", "-q", container, image], f"committing {image}")
            run(["buildah", *options, "rm", container])
        run(["buildah", *options, "push", "-q", image, f"oci-archive:{made}:odd"])


def podman(place: Path, made: Path) -> None:
    """debian, changed by three RUN lines of a podman build."""
    recipe_file = place / "Containerfile"
    recipe_file.write_text(
        "FROM oci-archive:" + str(cached("debian")) + "\n"
        "RUN rm -rf /usr/share/doc /var/log/* && mkdir -p /usr/share/doc/new\n"
        "RUN ln /bin/true /bin/true-again && mv /opt /optional && useradd -m somebody"
        " && chown -R somebody /home/somebody && chmod u+s,g+s /bin/true\n"
        "RUN rm -rf /etc/apt && mkdir /etc/apt && touch /etc/apt/only && rm /bin/true-again"
        " && mknod /null-again c 1 3 && mkfifo /fifo\n"
    )
    with storage(place) as options:
        engine = ["podman", *options, "--runtime=runc", "--cgroup-manager=cgroupfs"]
        build: list[str | Path] = [
            *engine,
            "build",
            "-q",
            "--cap-add=MKNOD",
            *LIMITS,
            "-t",
            "odd",
            "-f",
            recipe_file,
        ]
        run([*build, place / "empty"], "podman build")
        run([*engine, "save", "-q", "--format", "oci-archive", "-o", made, "odd"], "podman save")


def odd_base(top: Path) -> None:
    """Every kind of node, with every kind of attribute."""
    rooms = "kinds names links links/far owners modes times xattrs emptied emptied/full"
    for name in rooms.split():
        (top / name).mkdir()
    (top / "emptied/full/file").write_text("hidden by an opaque directory")
    for size in (0, 1, 64, 65, 4095, 4096, 4097, 300_000):
        (top / f"kinds/file{size}").write_bytes(pattern(size))
    with (top / "kinds/sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"in the middle")
    os.mkfifo(top / "kinds/fifo")
    os.mknod(top / "kinds/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "kinds/far", stat.S_IFCHR | 0o600, os.makedev(259, 70_000))
    os.mknod(top / "kinds/loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    for name, target in (
        ("relative", "file64"),
        ("absolute", "/kinds/file65"),
        ("dangling", "nowhere"),
        ("long", LONG_TARGET),
        ("itself", "itself"),
    ):
        os.symlink(target, top / "kinds" / name)
    for raw in ODD_NAMES:
        with open(os.fsencode(top / "names") + b"/" + raw, "wb") as file:
            file.write(raw)
    deep = top / "names"
    for _ in range(12):
        deep /= "d" * 200
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("deep")
    (top / "links/one").write_text("three names")
    os.link(top / "links/one", top / "links/two")
    os.link(top / "links/one", top / "links/far/three")
    os.symlink("one", top / "links/soft")
    os.link(top / "links/soft", top / "links/soft again", follow_symlinks=False)
    for uid, gid in ((0, 7), (1234, 5678), (65534, 65534), (100_000, 1), (2**31 + 5, 2**32 - 3)):
        (top / f"owners/{uid}-{gid}").write_text("owned")
        os.chown(top / f"owners/{uid}-{gid}", uid, gid)
    os.symlink("1234-5678", top / "owners/link")
    os.chown(top / "owners/link", 4321, 8765, follow_symlinks=False)
    for mode in (0o0, 0o111, 0o644, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777):
        (top / f"modes/file{mode:o}").write_text("mode")
        (top / f"modes/file{mode:o}").chmod(mode)
        (top / f"modes/dir{mode:o}").mkdir()
        (top / f"modes/dir{mode:o}").chmod(mode)
    for seconds in (0, 1, 1_000_000_000, 2**31 - 1, 2**32 + 5):
        (top / f"times/{seconds}").write_text("time")
        os.utime(top / f"times/{seconds}", (seconds, seconds))
    os.utime(top / "times", ns=(1_234_567_890_123_456_789, 1_234_567_890_123_456_789))
    (top / "xattrs/file").write_text("xattrs")
    (top / "xattrs/dir").mkdir()
    for name in ("file", "dir"):
        os.setxattr(top / "xattrs" / name, "user.text", b"value")
        os.setxattr(top / "xattrs" / name, "user.binary", bytes(range(256)))
        os.setxattr(top / "xattrs" / name, "user.empty", b"")
    (top / "xattrs/capable").write_text("capability")
    (top / "xattrs/capable").chmod(0o755)
    capability(top / "xattrs/capable")
    for number in range(300):
        (top / "many").mkdir(exist_ok=True)
        (top / f"many/{number}").write_text(str(number))


def odd_removals(top: Path) -> None:
    """Removals, replacements of one kind by another, changes of attributes alone."""
    (top / "kinds/file64").unlink()
    shutil.rmtree(top / "links/far")
    shutil.rmtree(top / "many")
    (top / "many").mkdir()
    (top / "many/only").write_text("the others are gone")
    (top / "kinds/file1").unlink()
    (top / "kinds/file1").mkdir()
    (top / "kinds/file1/inside").write_text("was a file")
    shutil.rmtree(top / "modes/dir644")
    (top / "modes/dir644").write_text("was a directory")
    (top / "kinds/fifo").unlink()
    os.symlink("null", top / "kinds/fifo")
    (top / "modes/file644").chmod(0o600)
    os.chown(top / "owners", 5, 6)
    os.removexattr(top / "xattrs/file", "user.text")
    os.setxattr(top / "xattrs/dir", "user.text", b"changed")
    (top / "kinds/file4096").write_bytes(pattern(100))
    os.unlink(os.fsencode(top / "names") + b"/not utf-8 \xff\xfe")
    # Linked, so that both names are in this layer.
    os.link(top / "kinds/file65", top / "kinds/linked in layer 1")


def odd_returns(top: Path) -> None:
    """What was removed comes back as something else; what is opaque is emptied further."""
    (top / "kinds/file64").mkdir()
    (top / "links/far").write_text("a file where a directory was")
    (top / "many/only").unlink()
    (top / "many/7").write_text("seven again")
    shutil.rmtree(top / "kinds/file1")
    shutil.rmtree(top / "emptied")
    (top / "emptied").mkdir()
    (top / "emptied/new").write_text("in an opaque directory")


def odd_moves(top: Path) -> None:
    """Directories and files under other names; a layer's worth of nothing but attributes."""
    os.rename(top / "xattrs/capable", top / "xattrs/still capable")
    with contextlib.suppress(OSError):
        os.rename(top / "owners", top / "moved owners")
    if (top / "owners").exists():
        # The kernel's overlayfs without redirect_dir: as mv does it.
        subprocess.run(["cp", "-a", top / "owners", top / "moved owners"], check=True)
        shutil.rmtree(top / "owners")
    for number in range(40):
        (top / f"many/{number}").write_text("back")
    top.chmod(0o711)


def pattern(size: int) -> bytes:
    """Bytes that differ along the file and do not compress to nothing."""
    blocks = [hashlib.sha256(struct.pack("<Q", n)).digest() for n in range(size // 32 + 1)]
    return b"".join(blocks)[:size]


def capability(path: Path) -> None:
    """cap_net_raw+ep, version 2 (linux/capability.h: struct vfs_cap_data)."""
    value = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    try:
        os.setxattr(path, "security.capability", value)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        raise Failed("file capabilities cannot be set here (CAP_SETFCAP)") from None


register("odd", odd, odd_base, odd_removals, odd_returns, odd_moves, pattern, capability)
register("podman", podman, debian, bootstrap)
