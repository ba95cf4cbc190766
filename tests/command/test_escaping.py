"""Paths survive the option string, whatever is in their names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayfs_py import mount_flags
from overlayfs_py.errors import UserError
from overlayfs_py.escaping import escape, split_lowerdirs, split_options, unescape
from overlayfs_py.options import parse_mount_options

# Any bytes a path may have, as Python hands them over from argv.
paths = st.binary(min_size=1, max_size=40).map(
    lambda raw: os.fsdecode(b"/" + raw.replace(b"\0", b"0"))
)
tricky = st.text(alphabet="\\,:=\"'0547a/ ", min_size=1, max_size=20).map(lambda text: "/" + text)


@given(paths | tricky)
def test_an_escaped_path_comes_back(path: str) -> None:
    assert unescape(escape(path)) == path


@given(st.lists(paths | tricky, min_size=1, max_size=6), st.lists(paths | tricky, max_size=3))
def test_lower_directories_come_back(lowers: list[str], data: list[str]) -> None:
    value = ":".join(map(escape, lowers)) + "".join("::" + escape(path) for path in data)
    assert split_lowerdirs(value) == (lowers, data)


@given(paths | tricky, paths | tricky, st.lists(paths | tricky, min_size=1, max_size=6))
def test_a_whole_option_string_comes_back(upper: str, work: str, lowers: list[str]) -> None:
    lowerdir = ":".join(map(escape, lowers))
    options = parse_mount_options(
        [f"ro,lowerdir={lowerdir},upperdir={escape(upper)},noexec,workdir={escape(work)}"]
    )
    assert options.lowerdirs == [os.fsencode(path) for path in lowers]
    assert options.upperdir == os.fsencode(upper)
    assert options.workdir == os.fsencode(work)


@given(st.text(alphabet='\\,:"=ax', max_size=30))
def test_no_string_gets_lost_or_crashes(string: str) -> None:
    try:
        pieces = split_options(string)
    except UserError:
        return
    assert "".join(pieces) == string.replace(",", "") or "\\" in string or '"' in string


@pytest.mark.parametrize("value", ["", ":/a", "/a:", "/a:::/b", "::/a", "/a::", "/a::/b:/c"])
def test_colons_that_the_kernel_refuses(value: str) -> None:
    with pytest.raises(UserError, match="lowerdir"):
        split_lowerdirs(value)


def test_libfuse_octal() -> None:
    assert unescape(r"/a\054b\072c\134d") == "/a,b:c\\d"
    assert os.fsencode(unescape(r"/\303\251")) == "/é".encode()


def test_quotes_hold_commas_only_after_selinux_names() -> None:
    string = 'context="u:r:t:s0:c1,c2",lowerdir=/a"b,fscontext="x",ro'
    assert split_options(string) == [
        'context="u:r:t:s0:c1,c2"',
        'lowerdir=/a"b',
        'fscontext="x"',
        "ro",
    ]
    with pytest.raises(UserError, match="quote that does not end"):
        split_options('rw,context="u:r:t')


@pytest.mark.mount
@pytest.mark.parametrize("name", ["plain", "a:b", "a,b", "a\\b", "a\\:b", 'a"b', "\\\\,::"])
def test_the_kernel_reads_the_same_escapes(tmp_path: Path, name: str) -> None:
    for directory in (name, "u", "w", "m"):
        (tmp_path / directory).mkdir()
    (tmp_path / name / "here").touch()
    value = escape(str(tmp_path / name))
    options = f"lowerdir={value},upperdir={tmp_path}/u,workdir={tmp_path}/w"
    # mount(8) would parse the string itself before the kernel sees it.
    code = (
        "import ctypes,sys;"
        "l=ctypes.CDLL(None,use_errno=True);"
        "sys.exit(-l.mount(b'overlay',sys.argv[1].encode(),b'overlay',0,sys.argv[2].encode()))"
    )
    subprocess.run(["python3", "-c", code, str(tmp_path / "m"), options], check=True)
    try:
        assert os.listdir(tmp_path / "m") == ["here"]
    finally:
        mount_flags.umount(os.fsencode(tmp_path / "m"))
    assert parse_mount_options([options]).lowerdirs == [os.fsencode(tmp_path / name)]
