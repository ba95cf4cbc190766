"""How a mount option string is cut into options and paths, and how a path is written so that it
survives the cut.

The rules are the kernel's (fs/overlayfs/params.c): a backslash takes the next character as it is,
an unescaped comma ends an option, an unescaped colon ends a lower directory and a double colon
starts the data-only ones. libfuse's octal form (`\\054` for a comma) is understood as well. Owns
no option names but SELinux's, whose values may be quoted.
"""

from __future__ import annotations

from overlayfs_py.errors import UserError

SELINUX_NAMES = ("context", "fscontext", "defcontext", "rootcontext")


def split_options(string: str) -> list[str]:
    """Cut one `-o` string at its unescaped commas; escapes stay in the pieces, empty pieces go.

    A double quote opens a quoted value only after `context=` and its kin, whose categories hold
    commas.

    Raises:
        UserError: a quoted value without its closing quote.
    """
    if "\\" not in string and '"' not in string:
        return [piece for piece in string.split(",") if piece]
    pieces: list[str] = []
    start = position = 0
    while position < len(string):
        character = string[position]
        if character == "\\":
            position += 2
        elif character == ",":
            pieces.append(string[start:position])
            position += 1
            start = position
        elif character == '"' and string[start:position] in _QUOTABLE:
            closing = string.find('"', position + 1)
            if closing < 0:
                raise UserError(
                    f"mount option {string[start:position]} has a quote that does not end: "
                    'close it with "'
                )
            position = closing + 1
        else:
            position += 1
    pieces.append(string[start:])
    return [piece for piece in pieces if piece]


_QUOTABLE = frozenset(f"{name}=" for name in SELINUX_NAMES)


def unescape(value: str) -> str:
    """Take the escapes out of one value."""
    if "\\" not in value:
        return value
    plain: list[str] = []
    position = 0
    while position < len(value):
        character = value[position]
        if character != "\\" or position + 1 == len(value):
            plain.append(character)
            position += 1
            continue
        octal = value[position + 1 : position + 4]
        if len(octal) == 3 and octal[0] in "0123" and all(digit in "01234567" for digit in octal):
            plain.append(_octal_character(int(octal, 8)))
            position += 4
        else:
            plain.append(value[position + 1])
            position += 2
    return "".join(plain)


def _octal_character(code: int) -> str:
    # A byte above 127 stands for itself in a file name, as the arguments of a process carry it.
    return bytes([code]).decode("utf-8", "surrogateescape")


def escape(path: str) -> str:
    """Write a path so that it comes out of `split_options` and `split_lowerdirs` unchanged."""
    for special in "\\:,":
        path = path.replace(special, "\\" + special)
    return path


def split_lowerdirs(value: str) -> tuple[list[str], list[str]]:
    """Cut the value of `lowerdir=` into lower directories and, behind `::`, data-only ones,
    unescaped, top first.

    Raises:
        UserError: an empty directory, three colons in a row, or a lower directory below a
            data-only one.
    """
    pieces: list[str] = []
    start = position = 0
    while position < len(value):
        if value[position] == "\\":
            position += 2
            continue
        if value[position] == ":":
            pieces.append(value[start:position])
            start = position + 1
        position += 1
    pieces.append(value[start:])
    lowers: list[str] = []
    data: list[str] = []
    data_follows = False
    for number, piece in enumerate(pieces):
        if piece:
            if data and not data_follows:
                raise UserError(
                    f"lowerdir={value}: {unescape(piece)} is a lower directory below a data-only "
                    f"one; "
                    "every directory after '::' must be set off by '::'"
                )
            (data if data_follows else lowers).append(unescape(piece))
            data_follows = False
            continue
        if number == 0 or number == len(pieces) - 1 or data_follows:
            raise UserError(
                f"lowerdir={value}: empty directory name; ':' stands between directories, '::' "
                f"before a "
                "data-only one, and a colon in a name is written '\\:'"
            )
        data_follows = True
    return lowers, data
