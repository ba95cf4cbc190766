"""Redirect marks: where a renamed directory, or a metacopy, goes on in the layers below.

Relative (the old name) as long as it stays in its directory, absolute from the root of the layers otherwise; see
"redirect_dir" in overlayfs.rst and ovl_set_redirect() in fs/overlayfs/dir.c.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import errno

from layerstore.marks import MarkInvalid, parse_redirect
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State


def set_for_rename(
    state: State,
    upper: Upper,
    node: Node,
    old_parent: Node,
    old_name: bytes,
    new_parent: Node,
    new_name: bytes,
) -> None:
    """Say where the node goes on in the lower layers: beside itself by name, elsewhere by a path from the root."""
    present = node.redirect
    if present is not None and present.startswith(b"/"):
        return
    if old_parent is new_parent:
        redirect = present or old_name
        if redirect == new_name and not present:
            return
    else:
        redirect = lower_path(node)
    _write(state, upper, node, redirect)


def set_for_link(state: State, upper: Upper, node: Node) -> None:
    """A metacopy that gets a further name needs a redirect that is good from every name."""
    if node.redirect is None or not node.redirect.startswith(b"/"):
        _write(state, upper, node, lower_path(node))


def _write(state: State, upper: Upper, node: Node, redirect: bytes) -> None:
    if node.redirect == redirect:
        return
    try:
        state.place(node).setxattr(upper.names.redirect, redirect)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EOPNOTSUPP):
            raise OverlayError(errno.EXDEV, f"no room for the redirect {redirect!r}") from None
        raise
    node.redirect = redirect


def lower_path(node: Node) -> bytes:
    """The absolute redirect of a node: its path in the layers below, redirects on the way followed."""
    parts: list[bytes] = []
    current: Node | None = node
    while current is not None and current.parent is not None:
        part = current.redirect or current.name
        parts.append(part.lstrip(b"/"))
        if part.startswith(b"/"):
            break
        current = current.parent
    redirect = b"/" + b"/".join(reversed(parts))
    try:
        parse_redirect(redirect)
    except MarkInvalid as error:
        raise OverlayError(errno.EXDEV, str(error)) from None
    return redirect
