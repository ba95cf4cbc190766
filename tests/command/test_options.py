"""Every option that is taken, every one that is refused, and the contradictions among them."""

from __future__ import annotations

import os

import pytest

from overlayfs_py import mount_flags
from overlayfs_py.errors import UserError
from overlayfs_py.options import MountOptions, parse_mount_options

UPPER = "lowerdir=/l,upperdir=/u,workdir=/w"


def parse(*strings: str) -> MountOptions:
    return parse_mount_options(list(strings))


def test_defaults_are_those_of_the_issue() -> None:
    options = parse(UPPER)
    assert options.redirect_dir == "on"
    assert options.index is None
    assert options.xino == "auto"
    assert not options.metacopy
    assert options.userxattr is None
    assert options.timeout is None
    assert options.default_permissions
    assert options.fsync
    assert not options.read_only
    assert (options.fsname, options.subtype) == ("overlayfs-py", "overlayfs-py")


def test_relative_paths_are_from_the_working_directory(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    options = parse("lowerdir=a:../b:l/X,upperdir=./u,workdir=w")
    here = os.fsencode(str(tmp_path))
    assert options.lowerdirs == [here + b"/a", here + b"/../b", here + b"/l/X"]
    assert (options.upperdir, options.workdir) == (here + b"/./u", here + b"/w")


def test_five_hundred_lower_directories() -> None:
    names = [f"/{'x' * 200}/{number}" for number in range(500)]
    options = parse("lowerdir=" + ":".join(names))
    assert options.lowerdirs == [os.fsencode(name) for name in names]


def test_data_only_lowers_in_both_forms() -> None:
    listed = parse("lowerdir=/a:/b::/c::/d")
    added = parse("lowerdir+=/a,lowerdir+=/b,datadir+=/c,datadir+=/d")
    assert listed.lowerdirs == added.lowerdirs == [b"/a", b"/b"]
    assert listed.data_lowerdirs == added.data_lowerdirs == [b"/c", b"/d"]


def test_an_added_lowerdir_may_have_colons() -> None:
    assert parse("lowerdir+=/a:b").lowerdirs == [b"/a:b"]


def test_the_last_word_counts() -> None:
    options = parse("ro,noexec," + UPPER, "rw,exec,noatime,relatime,lowerdir=/other")
    assert not options.read_only
    assert options.lowerdirs == [b"/other"]
    assert set(options.kernel_flags) <= {"suid", "dev"}


def test_the_words_of_mount_8_are_flags_or_dropped() -> None:
    words = (
        "rw,nodev,nosuid,noexec,sync,dirsync,noatime,nodiratime,defaults,auto,noauto,user,users,owner,"
        "group,_netdev,nofail,x-systemd.automount,X-mount.mkdir,comment=a,user=me,async"
    )
    options = parse(UPPER, words)
    assert options.kernel_flags == ["nodev", "nosuid", "noexec", "dirsync", "noatime", "nodiratime"]
    assert mount_flags.bits(options.kernel_flags) == (
        mount_flags.MS_NODEV
        | mount_flags.MS_NOSUID
        | mount_flags.MS_NOEXEC
        | mount_flags.MS_DIRSYNC
        | mount_flags.MS_NOATIME
        | mount_flags.MS_NODIRATIME
    )


def test_root_mounts_suid_and_dev_unless_ids_are_shown_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert parse(UPPER).kernel_flags == ["suid", "dev"]
    assert parse(UPPER, "squash_to_root").kernel_flags == ["suid", "nodev"]
    assert parse(UPPER, "xattr_permissions=2,dev").kernel_flags == ["dev", "suid"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert parse(UPPER).kernel_flags == []


def test_fuse_overlayfs_options() -> None:
    options = parse(
        UPPER,
        "uidmapping=0:1000:1:1:110000:65536,gidmapping=0:1000:1,squash_to_uid=5,static_nlink,noacl",
        "volatile,fsync=0,timeout=1.5,xattr_permissions=2,threaded=1,writeback=0,noxattrs=0,fast_ino=1",
        "clone_fd,max_threads=4,squash_to_gid=6,allow_other",
    )
    assert options.uidmapping == [(0, 1000, 1), (1, 110000, 65536)]
    assert options.gidmapping == [(0, 1000, 1)]
    assert (options.squash_to_uid, options.squash_to_gid) == (5, 6)
    assert options.static_nlink
    assert options.noacl
    assert options.volatile
    assert not options.fsync
    assert options.timeout == 1.5
    assert options.xattr_permissions == 2
    assert options.allow_other


def test_a_mapping_may_be_written_with_commas() -> None:
    # The form in fuse-overlayfs(1).
    options = parse(UPPER, "uidmapping=0:1000:1,1:110000:65536,ro")
    assert options.uidmapping == [(0, 1000, 1), (1, 110000, 65536)]
    assert options.read_only


def test_squash_to_uid_comes_before_squash_to_root() -> None:
    options = parse(UPPER, "squash_to_uid=7,squash_to_root")
    assert (options.squash_to_uid, options.squash_to_gid) == (7, 0)


def test_selinux_contexts_keep_their_commas() -> None:
    context = "system_u:object_r:container_file_t:s0:c1,c2"
    options = parse(UPPER, f'context="{context}",fscontext=a:b,rootcontext="x:y"')
    assert options.selinux == {"context": context, "fscontext": "a:b", "rootcontext": "x:y"}


def test_propagation_words_that_buildah_adds() -> None:
    assert parse(UPPER, "private").propagation == ["private"]


def test_what_has_no_use_without_an_upper_is_ignored_aloud() -> None:
    options = parse("lowerdir=/l,workdir=/w,volatile,index=on")
    assert options.workdir is None
    assert not options.volatile
    assert options.index is None
    assert len(options.notes) == 3


def test_userxattr_takes_redirects_away_as_the_kernel_does() -> None:
    assert parse(UPPER, "userxattr").redirect_dir == "nofollow"
    assert parse(UPPER, "userxattr,redirect_dir=off").redirect_dir == "off"


def test_metacopy_may_follow_without_an_upper() -> None:
    assert parse("lowerdir=/a:/b,metacopy=on,redirect_dir=follow").metacopy


def test_remount_needs_no_layers_and_takes_what_proc_mounts_shows() -> None:
    options = parse("remount,ro,nosuid,relatime,user_id=0,group_id=0,max_read=131072,allow_other")
    assert options.remount
    assert options.kernel_flags == ["ro", "nosuid", "relatime"]


REFUSED = [
    ("lowrdir=/l", "unknown mount option 'lowrdir': did you mean 'lowerdir'?"),
    (UPPER + ",redirectdir=on", "did you mean 'redirect_dir'?"),
    (UPPER + ",volatil", "did you mean 'volatile'?"),
    (UPPER + ",nosuidd", "did you mean 'nosuid'?"),
    ("", "no lower directory"),
    ("lowerdir=", "no lower directory"),
    ("lowerdir=/l,upperdir=/u", "upperdir= without workdir="),
    ("lowerdir=/l,upperdir=,workdir=/w", "upperdir needs a value"),
    ("lowerdir=/l,lowerdir+=/m", "do not mix"),
    ("lowerdir+=/l,lowerdir=/m", "do not mix"),
    ("datadir+=/d,lowerdir+=/l", "below a data-only one"),
    (UPPER + ",redirect_dir=yes", "must be one of on, follow, nofollow, off"),
    (UPPER + ",index", "must be one of on, off"),
    (UPPER + ",xino=1", "must be one of off, auto, on"),
    (UPPER + ",volatile=1", "takes no value"),
    (UPPER + ",nosuid=1", "takes no value"),
    (UPPER + ",fsync=maybe", "must be one of 0, 1"),
    (UPPER + ",timeout=-1", "number of seconds"),
    (UPPER + ",timeout=nan", "number of seconds"),
    (UPPER + ",timeout=soon", "number of seconds"),
    (UPPER + ",squash_to_uid=root", "not an id"),
    (UPPER + ",squash_to_uid=4294967295", "not an id"),
    (UPPER + ",uidmapping=0:1000", "come in threes"),
    (UPPER + ",uidmapping=0:1000:0", "do not fit"),
    (UPPER + ",gidmapping=0:4294967290:65536", "do not fit"),
    (UPPER + ",uidmapping=0:x:1", "not an id"),
    (UPPER + ",xattr_permissions=3", "must be one of 0, 1, 2"),
    (UPPER + ",passthrough=on", "must be one of upper, lower, off"),
    (UPPER + ",nfs_export=on", "nfs_export=on cannot be honoured"),
    (UPPER + ",verity=require", "verity=require cannot be honoured"),
    (UPPER + ",uuid=on", "uuid=on cannot be honoured"),
    (UPPER + ",noxattrs=1", "noxattrs=1 cannot be honoured"),
    (UPPER + ",plugins=/x.so", "plugins cannot be honoured"),
    (UPPER + ",mand", "mand cannot be honoured"),
    (UPPER + ",max_read=4096", "max_read cannot be honoured"),
    (UPPER + ",entry_timeout=1", "say timeout=SECONDS"),
    (UPPER + ",metacopy=on,redirect_dir=off", "metacopy=on contradicts redirect_dir=off"),
    (UPPER + ",metacopy=on,redirect_dir=follow", "metacopy=on contradicts"),
    ("lowerdir=/l,metacopy=on,redirect_dir=nofollow", "metacopy=on contradicts"),
    (UPPER + ",userxattr,redirect_dir=on", "userxattr contradicts redirect_dir=on"),
    (UPPER + ",userxattr,metacopy=on", "userxattr contradicts metacopy=on"),
    (UPPER + ",context", "context needs a value"),
    (UPPER + ",fsname=", "fsname needs a value"),
    (UPPER + ",transport=carrier-pigeon", "must be one of"),
    (UPPER + ",poll_us=soon", "microseconds"),
    (UPPER + ",poll_us=10001", "microseconds"),
]


@pytest.mark.parametrize(("string", "why"), REFUSED, ids=[string for string, _ in REFUSED])
def test_refused_in_one_line(string: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(string)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_brings_its_own_lowers() -> None:
    options = parse_mount_options(["volatile"], image="app", upper_name="mine", store_root="/store")
    assert options.volatile
    assert (options.image, options.upper_name, options.store_root) == ("app", "mine", b"/store")
    with pytest.raises(UserError, match="its own lower layers"):
        parse_mount_options(["lowerdir=/l"], image="app")
    with pytest.raises(UserError, match="kept in the store"):
        parse_mount_options(["upperdir=/u,workdir=/w"], image="app", upper_name="mine")


def test_allow_root_is_honoured_only_where_it_means_the_mounter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert parse(UPPER, "allow_root").allow_other is False
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="allow_root cannot be honoured"):
        parse(UPPER, "allow_root")
