"""Mount options: every spelling we take, what it means, and which of them contradict each other.

Takes fuse-overlayfs's options (fuse-overlayfs(1)), the kernel's
(Documentation/filesystems/overlayfs.rst, fs/overlayfs/params.c) and mount(8)'s own words;
`MountOptions` is the one form that the rest of the program sees. Looks at nothing on disk: whether
directories exist and who holds them is `preflight`'s subject.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from overlayfs_py import mount_flags
from overlayfs_py.errors import UserError
from overlayfs_py.escaping import SELINUX_NAMES, split_lowerdirs, split_options, unescape
from overlayfs_py.option_words import DROPPED, DROPPED_AT_REMOUNT, REFUSED

PROGRAM = "overlayfs-py"
TRANSPORTS = ("auto", "device", "pyfuse3")
TRANSPORT_DEFAULT = "device"
"""What `auto` stands for: the one that every test has been through most often."""


@dataclass(slots=True)
class MountOptions:
    """What a mount is asked to be.

    Paths are bytes and absolute. `lowerdirs` and `data_lowerdirs` are top first. `index` None: on
    where the upper's filesystem has file handles. `userxattr` None: trusted.* with CAP_SYS_ADMIN
    in the initial user namespace, else user.*. `uidmapping` and `gidmapping` are fuse-overlayfs's
    triples in its order. `timeout` is in seconds, None: no limit. `allow_other` None: when root
    mounts. `kernel_flags` and `propagation` are words of `mount_flags`; at a remount they are all
    that was said, ro and rw included. `notes` are lines for the log about options that were given
    and have no effect.
    """

    lowerdirs: list[bytes] = field(default_factory=list)
    data_lowerdirs: list[bytes] = field(default_factory=list)
    upperdir: bytes | None = None
    workdir: bytes | None = None
    image: str | None = None
    store_root: bytes | None = None
    upper_name: str | None = None
    redirect_dir: str = "on"
    metacopy: bool = False
    index: bool | None = None
    xino: str = "auto"
    userxattr: bool | None = None
    volatile: bool = False
    fsync: bool = True
    uidmapping: list[tuple[int, int, int]] = field(default_factory=list)
    gidmapping: list[tuple[int, int, int]] = field(default_factory=list)
    squash_to_root: bool = False
    squash_to_uid: int | None = None
    squash_to_gid: int | None = None
    static_nlink: bool = False
    noacl: bool = False
    xattr_permissions: int = 0
    timeout: float | None = None
    read_only: bool = False
    allow_other: bool | None = None
    default_permissions: bool = True
    fsname: str = PROGRAM
    subtype: str = PROGRAM
    kernel_flags: list[str] = field(default_factory=list)
    propagation: list[str] = field(default_factory=list)
    selinux: dict[str, str] = field(default_factory=dict)
    transport: str = TRANSPORT_DEFAULT
    passthrough: str = "upper"
    file_handles: bool = False
    poll_us: int | None = None
    auto_unmount: bool = False
    remount: bool = False
    debug: bool = False
    foreground: bool = False
    notes: list[str] = field(default_factory=list)


def parse_mount_options(
    strings: list[str],
    *,
    image: str | None = None,
    upper_name: str | None = None,
    store_root: str | None = None,
) -> MountOptions:
    """Parse the values of all `-o` arguments, in their order.

    Args:
        strings: each as given on the command line, with its escapes.
        image: mounted from the layer store instead of lower directories.
        upper_name: of an upper directory kept in the store.
        store_root: of the layer store; None: the usual place.

    Raises:
        UserError: an unknown option, one that cannot be honoured, a bad value, or a contradiction.
    """
    parser = _Parser()
    parser.options.image = image
    parser.options.upper_name = upper_name
    if store_root is not None:
        parser.options.store_root = _absolute("--root", store_root)
    for string in strings:
        for piece in split_options(string):
            parser.take(piece)
    return parser.finish()


_Handler = Callable[["_Parser", str, str | None], None]


class _Parser:
    """Collects pieces into `options`; remembers what was said aloud, since only that can
    contradict.
    """

    def __init__(self) -> None:
        self.options = MountOptions()
        self.said: set[str] = set()
        self.flag_words: list[str] = []
        self.mapping: str | None = None

    def take(self, piece: str) -> None:
        """One option, escapes still in it."""
        name, equals, raw = piece.partition("=")
        if not equals and self.mapping and piece[0].isdigit() and ":" in piece:
            # fuse-overlayfs(1) writes uidmapping=0:1000:1,1:110000:65536: the comma belongs to the
            # value.
            self._extend_mapping(self.mapping, piece)
            return
        self.mapping = None
        value = raw if equals else None
        if name in _HANDLERS:
            _HANDLERS[name](self, name, value)
            self.said.add(name)
        elif name in mount_flags.GROUPS:
            _no_value(name, value)
            self.flag_words.append(name)
        elif name in mount_flags.PROPAGATION:
            _no_value(name, value)
            self.options.propagation.append(name)
        elif name in SELINUX_NAMES:
            self._selinux(name, value)
        elif name not in DROPPED | DROPPED_AT_REMOUNT and not name.startswith(("x-", "X-")):
            self._refuse(name)
        elif name in DROPPED_AT_REMOUNT:
            self.said.add(name)

    def finish(self) -> MountOptions:
        """Settle what depends on several options; see ovl_fs_params_verify in
        fs/overlayfs/params.c.
        """
        options = self.options
        if options.remount:
            options.kernel_flags = mount_flags.last_of_each(self.flag_words)
            return options
        words = [word for word in self.flag_words if word not in ("ro", "rw")]
        options.kernel_flags = mount_flags.settle(words)
        for name in sorted(DROPPED_AT_REMOUNT & self.said):
            raise UserError(f"mount option {name} cannot be honoured: {REFUSED[name]}")
        self._settle_layers()
        self._settle_marks()
        self._settle_squash()
        self._settle_flags()
        return options

    def _settle_layers(self) -> None:
        options = self.options
        if options.image is not None:
            if options.lowerdirs or options.data_lowerdirs:
                raise UserError(
                    "an image brings its own lower layers: leave lowerdir= out, or mount without "
                    "an image"
                )
        elif not options.lowerdirs:
            raise UserError("no lower directory: say -o lowerdir=DIR[:DIR...], top first")
        if options.upperdir is None and options.upper_name is None:
            options.read_only = True
            if options.workdir is not None:
                options.notes.append("workdir= has no use without upperdir=: ignored")
                options.workdir = None
            if options.volatile:
                options.notes.append("volatile has no meaning without upperdir=: ignored")
                options.volatile = False
            if options.index:
                options.notes.append("index=on has no use without upperdir=: ignored")
                options.index = None
        elif options.upper_name is not None:
            if options.upperdir is not None or options.workdir is not None:
                raise UserError(
                    "a named upper directory is kept in the store: leave upperdir= and workdir= out"
                )
        elif options.workdir is None:
            raise UserError(
                "upperdir= without workdir=: say workdir=DIR, an empty directory on upperdir's "
                "filesystem"
            )

    def _settle_marks(self) -> None:
        options = self.options
        redirect_said = "redirect_dir" in self.said
        if options.metacopy and options.redirect_dir != "on":
            has_upper = options.upperdir is not None or options.upper_name is not None
            if has_upper or options.redirect_dir != "follow":
                raise UserError(
                    f"metacopy=on contradicts redirect_dir={options.redirect_dir}: "
                    "a file without data needs a redirect; leave one of them out"
                )
        if not options.userxattr:
            return
        if redirect_said and options.redirect_dir in ("on", "follow"):
            raise UserError(
                f"userxattr contradicts redirect_dir={options.redirect_dir}: whoever may write "
                f"user.* could "
                "redirect anywhere in the layers; leave one of them out"
            )
        if options.metacopy:
            raise UserError(
                "userxattr contradicts metacopy=on: whoever may write user.* could show any file "
                "of the "
                "layers; leave one of them out"
            )
        if not redirect_said:
            options.redirect_dir = "nofollow"

    def _settle_squash(self) -> None:
        options = self.options
        if options.squash_to_root:
            # squash_to_uid and squash_to_gid come first, as in fuse-overlayfs(1).
            options.squash_to_uid = 0 if options.squash_to_uid is None else options.squash_to_uid
            options.squash_to_gid = 0 if options.squash_to_gid is None else options.squash_to_gid

    def _settle_flags(self) -> None:
        options = self.options
        privileged = os.geteuid() == 0
        if privileged:
            groups = {mount_flags.GROUPS[word] for word in options.kernel_flags}
            if "suid" not in groups:
                options.kernel_flags.append("suid")
            if "dev" not in groups:
                # A stored mode or owner that anybody may write must not become a device node of
                # the host.
                safe = not (options.xattr_permissions or options.squash_to_root)
                safe = safe and options.squash_to_uid is None and not options.uidmapping
                options.kernel_flags.append("dev" if safe else "nodev")
        if "allow_root" in self.said:
            if not privileged:
                raise UserError(
                    "mount option allow_root cannot be honoured: the kernel knows only the "
                    "mounting user or "
                    "everybody; say allow_other or leave it out"
                )
            options.allow_other = False

    def _selinux(self, name: str, value: str | None) -> None:
        value = unescape(_needs_value(name, value))
        if len(value) >= 2 and value[0] == value[-1] == '"':
            value = value[1:-1]
        self.options.selinux[name] = value

    def _extend_mapping(self, name: str, text: str) -> None:
        mapping: list[tuple[int, int, int]] = getattr(self.options, name)
        numbers = text.split(":")
        if len(numbers) % 3:
            raise UserError(
                f"{name}={text}: ids come in threes, STORED:SHOWN:COUNT[:STORED:SHOWN:COUNT...]"
            )
        values = [_id_number(name, number) for number in numbers]
        for first in range(0, len(values), 3):
            stored, shown, count = values[first : first + 3]
            if count == 0 or max(stored, shown) + count > 1 << 32:
                raise UserError(f"{name}={text}: {count} ids from {stored} and {shown} do not fit")
            mapping.append((stored, shown, count))
        self.mapping = name

    def _refuse(self, name: str) -> None:
        if name in REFUSED:
            raise UserError(f"mount option {name} cannot be honoured: {REFUSED[name]}")
        # Imported here: it costs 5 ms and only a typing mistake needs it.
        import difflib

        known = [
            *_HANDLERS,
            *mount_flags.GROUPS,
            *SELINUX_NAMES,
            *DROPPED,
            *mount_flags.PROPAGATION,
        ]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(f"unknown mount option '{name}': did you mean '{nearest[0]}'?")


def _needs_value(name: str, value: str | None) -> str:
    if not value:
        raise UserError(f"mount option {name} needs a value: {name}=...")
    return value


def _no_value(name: str, value: str | None) -> None:
    if value is not None:
        raise UserError(f"mount option {name} takes no value: write it without '={value}'")


def _choice(name: str, value: str | None, choices: tuple[str, ...]) -> str:
    if value not in choices:
        said = "" if value is None else f"={value}"
        raise UserError(f"mount option {name}{said}: must be one of {', '.join(choices)}")
    assert value is not None
    return value


def _absolute(name: str, path: str) -> bytes:
    if not path:
        raise UserError(f"mount option {name} needs a directory: {name}=DIR")
    if "\0" in path:
        raise UserError(f"mount option {name}: a path cannot hold a zero byte")
    # No normalisation: `..` after a symbolic link is the kernel's to resolve.
    return os.path.join(os.getcwdb(), os.fsencode(path))


def _id_number(name: str, text: str) -> int:
    # (uid_t) -1 is no id: chown(2) takes it for "leave".
    if not (text.isascii() and text.isdigit()) or int(text) > (1 << 32) - 2:
        raise UserError(f"mount option {name}: '{text}' is not an id (0 to 4294967294)")
    return int(text)


def _read_only(parser: _Parser, name: str, value: str | None) -> None:
    _no_value(name, value)
    parser.options.read_only = name == "ro"
    parser.flag_words.append(name)


def _lowerdir(parser: _Parser, name: str, value: str | None) -> None:
    _not_mixed(parser, {"lowerdir+", "datadir+"})
    lowers, data = split_lowerdirs(value) if value else ([], [])
    parser.options.lowerdirs = [_absolute(name, path) for path in lowers]
    parser.options.data_lowerdirs = [_absolute(name, path) for path in data]


def _add_lower(parser: _Parser, name: str, value: str | None) -> None:
    _not_mixed(parser, {"lowerdir"})
    path = _absolute(name, unescape(_needs_value(name, value)))
    if name == "datadir+":
        parser.options.data_lowerdirs.append(path)
        return
    if parser.options.data_lowerdirs:
        raise UserError(f"lowerdir+={value}: a lower directory cannot be below a data-only one")
    parser.options.lowerdirs.append(path)


def _not_mixed(parser: _Parser, others: set[str]) -> None:
    if others & parser.said:
        raise UserError(
            "lowerdir= and lowerdir+=/datadir+= do not mix: use one form for all layers"
        )


def _directory(parser: _Parser, name: str, value: str | None) -> None:
    setattr(parser.options, name, _absolute(name, unescape(_needs_value(name, value))))


def _mapping(parser: _Parser, name: str, value: str | None) -> None:
    setattr(parser.options, name, [])
    parser._extend_mapping(name, _needs_value(name, value))


def _flag(parser: _Parser, name: str, value: str | None) -> None:
    _no_value(name, value)
    setattr(parser.options, name, True)


def _on_off(parser: _Parser, name: str, value: str | None) -> None:
    setattr(parser.options, name, _choice(name, value, ("on", "off")) == "on")


def _redirect_dir(parser: _Parser, name: str, value: str | None) -> None:
    parser.options.redirect_dir = _choice(name, value, ("on", "follow", "nofollow", "off"))


def _xino(parser: _Parser, name: str, value: str | None) -> None:
    parser.options.xino = _choice(name, value, ("off", "auto", "on"))


def _fsync(parser: _Parser, name: str, value: str | None) -> None:
    parser.options.fsync = _choice(name, value, ("0", "1")) == "1"


def _squash_id(parser: _Parser, name: str, value: str | None) -> None:
    setattr(parser.options, name, _id_number(name, _needs_value(name, value)))


def _xattr_permissions(parser: _Parser, name: str, value: str | None) -> None:
    parser.options.xattr_permissions = int(_choice(name, value, ("0", "1", "2")))


def _timeout(parser: _Parser, name: str, value: str | None) -> None:
    try:
        seconds = float(_needs_value(name, value))
    except ValueError:
        seconds = -1.0
    # `not >=` refuses a NaN as well.
    if not seconds >= 0:
        raise UserError(f"mount option timeout={value}: must be a number of seconds, 0 or more")
    parser.options.timeout = None if seconds == float("inf") else seconds


def _allow(parser: _Parser, name: str, value: str | None) -> None:
    _no_value(name, value)
    if name == "allow_other":
        parser.options.allow_other = True


def _name(parser: _Parser, name: str, value: str | None) -> None:
    setattr(parser.options, name, unescape(_needs_value(name, value)))


def _performance(parser: _Parser, name: str, value: str | None) -> None:
    # fuse-overlayfs tunes its loop with these; the union looks the same with and without.
    _choice(name, value, ("0", "1"))


def _transport(parser: _Parser, name: str, value: str | None) -> None:
    chosen = _choice(name, value, TRANSPORTS)
    parser.options.transport = TRANSPORT_DEFAULT if chosen == "auto" else chosen


def _poll_us(parser: _Parser, name: str, value: str | None) -> None:
    if value is None or not (value.isascii() and value.isdigit()) or int(value) > 10_000:
        raise UserError(f"mount option {name}: microseconds, 0 (off) to 10000")
    parser.options.poll_us = int(value)


def _passthrough(parser: _Parser, name: str, value: str | None) -> None:
    parser.options.passthrough = _choice(name, value, ("upper", "lower", "off"))


def _off_only(reason: str, off: tuple[str, ...]) -> _Handler:
    def handle(parser: _Parser, name: str, value: str | None) -> None:
        if value not in off:
            said = "" if value is None else f"={value}"
            raise UserError(f"mount option {name}{said} cannot be honoured: {reason}")

    return handle


_HANDLERS: dict[str, _Handler] = {
    "ro": _read_only,
    "rw": _read_only,
    "lowerdir": _lowerdir,
    "lowerdir+": _add_lower,
    "datadir+": _add_lower,
    "upperdir": _directory,
    "workdir": _directory,
    "redirect_dir": _redirect_dir,
    "metacopy": _on_off,
    "index": _on_off,
    "xino": _xino,
    "userxattr": _flag,
    "volatile": _flag,
    "fsync": _fsync,
    "nfs_export": _off_only("no file handle outlives its mount; say file_handles=on", ("off",)),
    "uuid": _off_only("FUSE has no way to say a filesystem id", ("off", "null", "auto")),
    "verity": _off_only("fs-verity digests are not checked yet", ("off",)),
    "uidmapping": _mapping,
    "gidmapping": _mapping,
    "squash_to_root": _flag,
    "squash_to_uid": _squash_id,
    "squash_to_gid": _squash_id,
    "static_nlink": _flag,
    "noacl": _flag,
    "xattr_permissions": _xattr_permissions,
    "timeout": _timeout,
    "threaded": _performance,
    "writeback": _performance,
    "fast_ino": _performance,
    "noxattrs": _off_only(
        "a union without xattrs loses ACLs and capabilities; leave it out", ("0",)
    ),
    "allow_other": _allow,
    "allow_root": _allow,
    "default_permissions": _flag,
    "fsname": _name,
    "subtype": _name,
    "transport": _transport,
    "passthrough": _passthrough,
    "file_handles": _on_off,
    "poll_us": _poll_us,
    "auto_unmount": _flag,
    "remount": _flag,
    "debug": _flag,
}
