"""Overlay marks: their names, what their values mean, and how foreign ones are escaped. Pure
functions, any thread.

The one place that knows them, for the store (images, commits) and for the union (uppers, lowers).
Sources: Documentation/filesystems/overlayfs.rst and fs/overlayfs/overlayfs.h for the kernel's
marks, the OCI image spec's layer.md for `.wh.` names, fuse-overlayfs(1) and
containers-storage.conf(5) for `override_stat`.
"""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from typing import NamedTuple

TRUSTED_PREFIX = b"trusted.overlay."
USER_PREFIX = b"user.overlay."
FUSE_OVERLAYFS_PREFIX = b"user.fuseoverlayfs."
CONTAINERS_PREFIX = b"user.containers."

CONTAINERS_OVERRIDE_STAT = CONTAINERS_PREFIX + b"override_stat"
FUSE_OVERLAYFS_OVERRIDE_STAT = FUSE_OVERLAYFS_PREFIX + b"override_stat"

OPAQUE_YES = b"y"
"""The directory hides everything below it."""
OPAQUE_XWHITEOUTS = b"x"
"""The directory is not opaque, but empty files in it may be whiteouts by xattr (Linux >= 6.7)."""

OCI_WHITEOUT_PREFIX = b".wh."
OCI_META_PREFIX = b".wh..wh."
OCI_OPAQUE = b".wh..wh..opq"

IMPLIED = TRUSTED_PREFIX + b"implied"
"""Ours, in the index of a layer: the directory is in no entry of the layer but on the way to one.

A layer below that has the directory knows its owner, mode and times. The kernel passes it over.
"""

PROTATTR_APPEND = b"a"
PROTATTR_IMMUTABLE = b"i"
"""Letters of the mark `protattr`: the flags of chattr(1) that the union honours, and the upper's object has not."""

XATTR_NAME_MAX = 255
NAME_MAX = 255
PATH_MAX = 4096

METACOPY_HEADER_SIZE = 4
METACOPY_DIGEST_MAX = 64


class MarkInvalid(ValueError):
    """A mark whose value the kernel would not accept; str() says what is wrong with it."""


class Marks:
    """The marks under one prefix, each name in full as bytes.

    Args:
        prefix: `TRUSTED_PREFIX`, `USER_PREFIX` or `FUSE_OVERLAYFS_PREFIX`.
    """

    __slots__ = (
        "escape_prefix",
        "impure",
        "metacopy",
        "nlink",
        "opaque",
        "origin",
        "override_stat",
        "prefix",
        "protattr",
        "redirect",
        "upper",
        "uuid",
        "whiteout",
    )

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.escape_prefix = prefix + b"overlay."
        self.opaque = prefix + b"opaque"
        self.redirect = prefix + b"redirect"
        self.metacopy = prefix + b"metacopy"
        self.origin = prefix + b"origin"
        self.impure = prefix + b"impure"
        self.nlink = prefix + b"nlink"
        self.upper = prefix + b"upper"
        self.uuid = prefix + b"uuid"
        self.protattr = prefix + b"protattr"
        self.whiteout = prefix + b"whiteout"
        self.override_stat = prefix + b"override_stat"

    def __repr__(self) -> str:
        return f"Marks({self.prefix!r})"

    def owns(self, name: bytes) -> bool:
        """Whether the xattr `name` lies under this prefix, as a mark or escaped."""
        return name.startswith(self.prefix)

    def is_private(self, name: bytes) -> bool:
        """Whether `name` is a mark of the overlay itself, never shown to users of the mount."""
        return name.startswith(self.prefix) and not name.startswith(self.escape_prefix)

    def is_escaped(self, name: bytes) -> bool:
        """Whether `name` is stored for an xattr of the content that itself looks like a mark."""
        return name.startswith(self.escape_prefix)

    def escape(self, name: bytes) -> bytes:
        """The name under which an xattr of the content is stored: unchanged unless it lies under
        the prefix.

        Raises:
            MarkInvalid: the escaped name is longer than an xattr name may be (the kernel:
            EOPNOTSUPP).
        """
        if not name.startswith(self.prefix):
            return name
        escaped = self.escape_prefix + name[len(self.prefix) :]
        if len(escaped) > XATTR_NAME_MAX:
            raise MarkInvalid(f"xattr name {name!r} is too long to be escaped")
        return escaped

    def unescape(self, name: bytes) -> bytes:
        """The name users of the mount see for a stored, not private, name: the inverse of
        `escape`.
        """
        if not name.startswith(self.escape_prefix):
            return name
        return self.prefix + name[len(self.escape_prefix) :]


TRUSTED = Marks(TRUSTED_PREFIX)
USER = Marks(USER_PREFIX)
FUSE_OVERLAYFS = Marks(FUSE_OVERLAYFS_PREFIX)


# --- Whiteouts


def is_device_whiteout(mode: int, rdev: int) -> bool:
    """Whether (st_mode, st_rdev) is the kernel's whiteout, a character device 0/0."""
    return rdev == 0 and stat.S_ISCHR(mode)


def oci_whiteout_target(name: bytes) -> bytes | None:
    """The name that the layer entry `name` whites out, or None if it is no OCI whiteout.

    `.wh..wh.*` (the opaque mark, and what aufs left behind) are no whiteouts; see `is_oci_meta`.
    """
    if not name.startswith(OCI_WHITEOUT_PREFIX) or name.startswith(OCI_META_PREFIX):
        return None
    target = name[len(OCI_WHITEOUT_PREFIX) :]
    return target if target not in (b"", b".", b"..") else None


def is_oci_meta(name: bytes) -> bool:
    """Whether `name` is reserved for marks of the layer format, `.wh..wh..opq` among them."""
    return name.startswith(OCI_META_PREFIX)


# --- Redirects


class Redirect(NamedTuple):
    """Where a directory or a metacopy file is found in the layers below.

    `absolute`: `components` lead from the root of the layer; otherwise the single component is a
    sibling's name.
    """

    absolute: bool
    components: tuple[bytes, ...]


def parse_redirect(value: bytes) -> Redirect:
    """Parse the value of `overlay.redirect`.

    As in the kernel the value ends at its first NUL. An absolute redirect has no empty component, a
    relative one has no slash.

    Raises:
        MarkInvalid: empty, an empty, `.` or `..` component, or one over 255 bytes.
    """
    path = value.split(b"\0", 1)[0]
    if len(path) >= PATH_MAX:
        raise MarkInvalid(f"redirect of {len(path)} bytes is longer than a path may be")
    absolute = path.startswith(b"/")
    components = tuple(path[1:].split(b"/")) if absolute else (path,)
    for component in components:
        if not component:
            raise MarkInvalid(f"redirect {path!r} has an empty component")
        if component in (b".", b".."):
            raise MarkInvalid(f"redirect {path!r} has the component {component!r}")
        if b"/" in component:
            raise MarkInvalid(f"redirect {path!r} is neither absolute nor a single name")
        if len(component) > NAME_MAX:
            raise MarkInvalid(f"redirect {path!r} has a component over {NAME_MAX} bytes")
    return Redirect(absolute, components)


def format_redirect(redirect: Redirect) -> bytes:
    """The inverse of `parse_redirect`."""
    return (b"/" if redirect.absolute else b"") + b"/".join(redirect.components)


# --- Metacopy


class Metacopy(NamedTuple):
    """The value of `overlay.metacopy`: the fs-verity digest of the data file, empty if none is
    required.

    `algorithm`: FS_VERITY_HASH_ALG_* (1: SHA-256, 2: SHA-512), 0 without a digest.
    """

    algorithm: int
    digest: bytes


def parse_metacopy(value: bytes) -> Metacopy:
    """Parse the value of `overlay.metacopy` (struct ovl_metacopy; empty means no digest).

    Raises:
        MarkInvalid: too short, an unknown version or flags, or a length that does not match.
    """
    if not value:
        return Metacopy(0, b"")
    if len(value) < METACOPY_HEADER_SIZE:
        raise MarkInvalid(f"metacopy of {len(value)} bytes is shorter than its header")
    version, length, flags, algorithm = value[:METACOPY_HEADER_SIZE]
    if version != 0:
        raise MarkInvalid(f"metacopy version {version}, known is 0")
    if flags != 0:
        raise MarkInvalid(f"metacopy flags {flags:#x}, known is 0")
    if length != len(value) or length > METACOPY_HEADER_SIZE + METACOPY_DIGEST_MAX:
        raise MarkInvalid(f"metacopy of {len(value)} bytes claims {length}")
    return Metacopy(algorithm, value[METACOPY_HEADER_SIZE:])


def format_metacopy(metacopy: Metacopy) -> bytes:
    """The inverse of `parse_metacopy`."""
    if not metacopy.digest:
        return b""
    length = METACOPY_HEADER_SIZE + len(metacopy.digest)
    return bytes((0, length, 0, metacopy.algorithm)) + metacopy.digest


# --- Origin and upper: file handles

_HANDLE_HEADER_SIZE = 21  # version, magic, len, flags, type, uuid[16]
_HANDLE_MAGIC = 0xFB
_HANDLE_BIG_ENDIAN = 1
_HANDLE_ANY_ENDIAN = 2
_HANDLE_PATH_UPPER = 4


class Handle(NamedTuple):
    """A file handle as `overlay.origin` and `overlay.upper` store it (struct ovl_fb).

    `type` and `fid` are handle_type and f_handle of name_to_handle_at(2), `uuid` the filesystem's,
    16 bytes, zero if unknown; `path_upper`: the handle is of a file in the upper layer.
    """

    type: int
    uuid: bytes
    fid: bytes
    path_upper: bool = False


def parse_handle(value: bytes) -> Handle | None:
    """Parse the value of `overlay.origin` or `overlay.upper`.

    Returns:
        None where the kernel knows no origin: an empty value, a newer version, unknown flags, the
        other byte order.

    Raises:
        MarkInvalid: a wrong magic or length.
    """
    if not value:
        return None
    if len(value) < _HANDLE_HEADER_SIZE or len(value) < value[2]:
        raise MarkInvalid(f"file handle of {len(value)} bytes is cut short")
    version, magic, length, flags, kind = value[:5]
    if magic != _HANDLE_MAGIC or length < _HANDLE_HEADER_SIZE:
        raise MarkInvalid(f"file handle with magic {magic:#x} and length {length}")
    if version > 0 or flags & ~(_HANDLE_BIG_ENDIAN | _HANDLE_ANY_ENDIAN | _HANDLE_PATH_UPPER):
        return None
    if not flags & _HANDLE_ANY_ENDIAN and bool(flags & _HANDLE_BIG_ENDIAN) != _big_endian():
        return None
    return Handle(
        kind,
        bytes(value[5:_HANDLE_HEADER_SIZE]),
        bytes(value[_HANDLE_HEADER_SIZE:length]),
        bool(flags & _HANDLE_PATH_UPPER),
    )


def format_handle(handle: Handle) -> bytes:
    """The inverse of `parse_handle`, in this machine's byte order.

    Raises:
        MarkInvalid: the handle does not fit (f_handle over 234 bytes, a type over 255).
    """
    length = _HANDLE_HEADER_SIZE + len(handle.fid)
    if length > 255 or not 0 <= handle.type < 256 or len(handle.uuid) != 16:
        raise MarkInvalid(
            f"file handle of type {handle.type} and {len(handle.fid)} bytes does not fit"
        )
    flags = _HANDLE_BIG_ENDIAN if _big_endian() else 0
    if handle.path_upper:
        flags |= _HANDLE_PATH_UPPER
    return bytes((0, _HANDLE_MAGIC, length, flags, handle.type)) + handle.uuid + handle.fid


def _big_endian() -> bool:
    return sys.byteorder == "big"


# --- Link counts


def parse_nlink(value: bytes, upper_nlink: int, lower_nlink: int) -> int:
    """The link count of an indexed inode: `overlay.nlink` counts from the upper's or the lower's,
    as "U+1", "L-2".

    Raises:
        MarkInvalid: another form, or a count below zero.
    """
    base = {b"U": upper_nlink, b"L": lower_nlink}.get(value[:1])
    digits = value[2:]
    if base is None or value[1:2] not in (b"+", b"-") or not digits.isdigit() or len(digits) > 10:
        raise MarkInvalid(f"nlink {value!r} is not of the form U+n or L-n")
    count = base + int(value[1:])
    if count < 0:
        raise MarkInvalid(f"nlink {value!r} makes a link count of {count}")
    return count


def format_nlink(nlink: int, real_nlink: int, *, upper: bool) -> bytes:
    """The value of `overlay.nlink` that says `nlink` relative to the upper's (or the lower's) real
    link count.
    """
    return b"%c%+d" % (b"U" if upper else b"L", nlink - real_nlink)


# --- Override of stat

_OVERRIDE_TYPES = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_OVERRIDE_NAMES = {number: name for name, number in _OVERRIDE_TYPES.items()}


@dataclass(slots=True, frozen=True)
class OverrideStat:
    """Owner and mode to show instead of the file's own.

    `mode`: permission bits (07777). `type`: an S_IF* number, 0 to keep the file's own. `major`,
    `minor`: of a device.
    """

    uid: int
    gid: int
    mode: int
    type: int = 0
    major: int = 0
    minor: int = 0


def parse_override_stat(value: bytes) -> OverrideStat:
    """Parse `user.containers.override_stat` or `user.fuseoverlayfs.override_stat`.

    The form is "uid:gid:octal-mode", containers/storage adds ":type" where type is file, dir,
    symlink, pipe, socket, block-MAJOR-MINOR or char-MAJOR-MINOR. Other tools write the type as
    S_IF* bits of the mode, which is read too.

    Raises:
        MarkInvalid: another form.
    """
    fields = value.rstrip(b"\0").split(b":")
    if len(fields) not in (3, 4):
        raise MarkInvalid(f"override_stat {value!r} is not of the form uid:gid:mode[:type]")
    uid, gid = (_number(field, 10, value) for field in fields[:2])
    mode = _number(fields[2], 8, value)
    kind, major, minor = stat.S_IFMT(mode), 0, 0
    if len(fields) == 4:
        name, *numbers = fields[3].split(b"-")
        if name not in _OVERRIDE_TYPES or len(numbers) != (2 if name in (b"block", b"char") else 0):
            raise MarkInvalid(f"override_stat {value!r} has the unknown type {fields[3]!r}")
        kind = _OVERRIDE_TYPES[name]
        if numbers:
            major, minor = (_number(number, 10, value) for number in numbers)
    return OverrideStat(uid, gid, stat.S_IMODE(mode), kind, major, minor)


def format_override_stat(override: OverrideStat) -> bytes:
    """The inverse of `parse_override_stat`, in containers/storage's form."""
    value = b"%d:%d:%04o" % (override.uid, override.gid, override.mode)
    if override.type:
        value += b":" + _OVERRIDE_NAMES[override.type]
        if override.type in (stat.S_IFBLK, stat.S_IFCHR):
            value += b"-%d-%d" % (override.major, override.minor)
    return value


def _number(field: bytes, base: int, value: bytes) -> int:
    if not field.isdigit() or len(field) > 11:
        raise MarkInvalid(f"override_stat {value!r} has {field!r} where a number belongs")
    try:
        number = int(field, base)
    except ValueError:
        raise MarkInvalid(
            f"override_stat {value!r} has {field!r} where an octal number belongs"
        ) from None
    if number >= 1 << 32:
        raise MarkInvalid(f"override_stat {value!r} has a number over 32 bits")
    return number
