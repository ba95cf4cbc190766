"""`diff` on uppers that the kernel's own overlayfs wrote: what it must list is known, since we did
it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py import mount_flags
from overlayfs_py.errors import UserError
from overlayfs_py.inspect.diff import Diff, diff

pytestmark = pytest.mark.mount


class Kernel:
    """A kernel overlay mount over two lowers."""

    def __init__(self, base: Path, options: str) -> None:
        self.base = base
        self.lowers = [base / "l1", base / "l2"]
        for name in ("l1", "l2", "u", "w", "m"):
            (base / name).mkdir()
        self.options = options
        self.merged = base / "m"

    def mount(self) -> Path:
        lowers = ":".join(str(path) for path in self.lowers)
        options = f"lowerdir={lowers},upperdir={self.base}/u,workdir={self.base}/w,{self.options}"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(self.merged)]
        subprocess.run(command, check=True)
        return self.merged

    def unmount(self) -> None:
        if os.path.ismount(self.merged):
            mount_flags.umount(os.fsencode(self.merged))

    def diff(self, *, lowers: bool = True) -> Diff:
        self.unmount()
        below = [os.fsencode(path) for path in self.lowers] if lowers else []
        return diff(os.fsencode(self.base / "u"), below)


def listed(found: Diff) -> list[str]:
    return [f"{change.kind} {os.fsdecode(change.path)}" for change in found.changes]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    union = Kernel(tmp_path, "redirect_dir=on,metacopy=on,index=off")
    lower, bottom = union.lowers
    (lower / "etc").mkdir()
    (lower / "etc/hosts").write_text("one")
    (lower / "etc/passwd").write_text("root")
    (bottom / "etc").mkdir()
    (bottom / "etc/fstab").write_text("none")
    (bottom / "usr/share/doc").mkdir(parents=True)
    (bottom / "usr/share/doc/a").write_text("a")
    (bottom / "usr/share/doc/b").write_text("b")
    (bottom / "link").symlink_to("etc")
    try:
        yield union
    finally:
        union.unmount()


def test_added_changed_and_deleted(kernel: Kernel) -> None:
    merged = kernel.mount()
    (merged / "etc/new").write_text("new")
    (merged / "etc/hosts").write_text("two")
    (merged / "etc/fstab").unlink()
    (merged / "tree/below").mkdir(parents=True)
    (merged / "tree/below/file").touch()
    found = kernel.diff()
    assert listed(found) == [
        "C /etc",
        "D /etc/fstab",
        "C /etc/hosts",
        "A /etc/new",
        "A /tree",
        "A /tree/below",
        "A /tree/below/file",
    ]
    assert found.exact
    assert found.needs.options == []


def test_nothing_differs_where_a_copy_up_changed_nothing(kernel: Kernel) -> None:
    merged = kernel.mount()
    status = os.stat(merged / "etc/hosts")
    os.close(os.open(merged / "etc/hosts", os.O_RDWR))
    os.utime(merged / "etc/hosts", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(kernel.diff()) == []


def test_same_size_and_time_but_other_content_differs(kernel: Kernel) -> None:
    merged = kernel.mount()
    status = os.stat(merged / "etc/hosts")
    (merged / "etc/hosts").write_text("eno")
    os.utime(merged / "etc/hosts", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(kernel.diff()) == ["C /etc", "C /etc/hosts"]


def test_mode_owner_and_xattr_alone_differ(kernel: Kernel) -> None:
    merged = kernel.mount()
    os.chmod(merged / "etc/hosts", 0o600)
    os.setxattr(merged / "etc/passwd", "user.note", b"x")
    os.chown(merged / "usr", 7, 7)
    found = kernel.diff()
    assert listed(found) == ["C /etc", "C /etc/hosts", "C /etc/passwd", "C /usr"]
    assert found.needs.options == ["metacopy=on"]


def test_a_renamed_directory_is_deleted_here_and_added_there_with_all_it_shows(
    kernel: Kernel,
) -> None:
    merged = kernel.mount()
    os.rename(merged / "usr/share", merged / "share")
    (merged / "share/doc/c").touch()
    found = kernel.diff()
    assert listed(found) == [
        "A /share",
        "A /share/doc",
        "A /share/doc/a",
        "A /share/doc/b",
        "A /share/doc/c",
        "C /usr",
        "D /usr/share",
    ]
    assert "redirect_dir=on" in found.needs.options


def test_a_replaced_directory_shows_what_it_lost(kernel: Kernel) -> None:
    merged = kernel.mount()
    subprocess.run(["rm", "-r", merged / "usr/share/doc"], check=True)
    (merged / "usr/share/doc").mkdir()
    (merged / "usr/share/doc/b").write_text("other")
    assert listed(kernel.diff()) == [
        "C /usr",
        "C /usr/share",
        "C /usr/share/doc",
        "D /usr/share/doc/a",
        "C /usr/share/doc/b",
    ]


def test_a_type_that_changed(kernel: Kernel) -> None:
    merged = kernel.mount()
    (merged / "link").unlink()
    (merged / "link").mkdir()
    (merged / "link/in").touch()
    found = kernel.diff()
    assert listed(found) == ["C /link", "A /link/in"]
    assert [change.type for change in found.changes] == ["directory", "file"]


def test_without_lowers_the_marks_tell(kernel: Kernel) -> None:
    merged = kernel.mount()
    (merged / "etc/hosts").write_text("two")
    (merged / "etc/fstab").unlink()
    (merged / "etc/new").touch()
    (merged / "tree").mkdir()
    (merged / "tree/in").touch()
    found = kernel.diff(lowers=False)
    assert listed(found) == [
        "C /etc",
        "D /etc/fstab",
        "C /etc/hosts",
        "A /etc/new",
        "A /tree",
        "A /tree/in",
    ]
    assert not found.exact
    assert any("--lower" in note for note in found.notes())


@pytest.mark.parametrize("form", ["device", "xattr", "oci"])
def test_a_whiteout_in_any_form_deletes(kernel: Kernel, form: str) -> None:
    upper = kernel.base / "u"
    (upper / "etc").mkdir()
    if form == "device":
        os.mknod(upper / "etc/hosts", 0o020000, 0)
    elif form == "xattr":
        os.setxattr(upper, "trusted.overlay.opaque", b"x")
        os.setxattr(upper / "etc", "trusted.overlay.opaque", b"x")
        (upper / "etc/hosts").touch()
        os.setxattr(upper / "etc/hosts", "trusted.overlay.whiteout", b"y")
    else:
        (upper / "etc/.wh.hosts").touch()
    found = kernel.diff()
    assert listed(found) == ["C /etc", "D /etc/hosts"]
    assert bool(found.needs.obstacles) == (form != "device")


def test_user_marks_ask_for_userxattr_and_redirects_then_for_us(kernel: Kernel) -> None:
    upper = kernel.base / "u"
    (upper / "etc").mkdir()
    os.setxattr(upper / "etc", "user.overlay.origin", b"")
    assert kernel.diff().needs.options == ["userxattr"]
    os.setxattr(upper / "etc", "user.overlay.redirect", b"/etc")
    found = kernel.diff()
    assert found.needs.options == ["userxattr", "redirect_dir=on"]
    assert any("refuses redirects" in line for line in found.needs.obstacles)


def test_names_that_are_not_utf8(kernel: Kernel) -> None:
    (kernel.base / "u").joinpath(os.fsdecode(b"caf\xe9\n")).touch()
    assert kernel.diff().changes[0].path == b"/caf\xe9\n"


def test_a_path_that_is_no_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a mount of overlayfs-py nor a directory"):
        diff(os.fsencode(tmp_path / "missing"), [])
