"""Names to nodes: which layers have a name, how they combine, and which inode that is.

The rules are those of ovl_lookup() in fs/overlayfs/namei.c and of overlayfs.rst: the topmost object counts; directories
merge downward until one is opaque, a whiteout or something that is not a directory; a redirect says where a directory
goes on in the layers below; a metacopy says where its data is.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import NamedTuple

from layerstore.marks import OCI_WHITEOUT_PREFIX, MarkInvalid, Redirect, parse_redirect
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.layer import Found, Layer
from overlayfs_py.overlay import index, merge_dir, protection
from overlayfs_py.overlay.node import Lower, Node, make_node
from overlayfs_py.overlay.state import State

NAME_MAX = 255
OCI_SCAN_AFTER_LOOKUPS = 8


class Resolved(NamedTuple):
    """What is behind a name: the upper's object, the lower ones, and the status of the topmost."""

    upper: Found | None
    lowers: tuple[Lower, ...]
    top: Found

    @property
    def status(self) -> os.stat_result:
        return self.top.stat


def check_name(name: bytes) -> None:
    """Raises ENAMETOOLONG as a local filesystem does."""
    if len(name) > NAME_MAX:
        raise OverlayError(errno.ENAMETOOLONG)


def resolve(state: State, parent: Node, name: bytes) -> Resolved | None:
    """What is behind `name` in `parent`; None if nothing is.

    Raises:
        OSError: a layer could not be read, or is marked in a way that makes no sense.
    """
    if not parent.is_dir:
        raise OverlayError(errno.ENOTDIR)
    check_name(name)
    if name.startswith(OCI_WHITEOUT_PREFIX):
        return None
    found = None
    if parent.upper:
        assert state.upper is not None
        if not parent.linked:
            return None
        merged = parent.merged
        oci = merged and _may_have_oci_names(state, parent)
        found = state.upper.find(state.path(parent), name, merged, oci)
        if found is not None and found.whiteout:
            return None
    if found is None:
        lowers, top = find_lowers(state, parent, name)
        return None if top is None else Resolved(None, lowers, top)
    if stat.S_ISDIR(found.stat.st_mode):
        lowers = () if found.opaque else _merge_below(state, parent, name, found)
        return Resolved(found, lowers, found)
    if found.metacopy:
        return Resolved(found, _data_below(state, parent, name, found), found)
    return Resolved(found, (), found)


def _merge_below(state: State, parent: Node, name: bytes, found: Found) -> tuple[Lower, ...]:
    """The lower directories that an upper one shows."""
    if found.redirect is None:
        lowers, top = find_lowers(state, parent, name)
    else:
        lowers, top = _follow(state, parent.lowers, state.lowers, found, parent)
    if top is None or not stat.S_ISDIR(top.stat.st_mode):
        return ()
    return lowers


def _data_below(state: State, parent: Node, name: bytes, found: Found) -> tuple[Lower, ...]:
    """Where an upper metacopy's data is; its own lower object first, the one with the data last."""
    if not state.config.metacopy and not state.data_lowers:
        raise OverlayError(
            errno.EPERM,
            f"{name!r} has only metadata in the upper: mount with metacopy=on",
            logging.WARNING,
        )
    if found.redirect is None:
        lowers, top = find_lowers(state, parent, name)
    else:
        lowers, top = _follow(state, parent.lowers, state.lowers, found, parent)
    if top is None or not stat.S_ISREG(top.stat.st_mode):
        raise OverlayError(errno.EIO, f"the data of metacopy {name!r} is missing", logging.WARNING)
    return lowers


def find_lowers(state: State, parent: Node, name: bytes) -> tuple[tuple[Lower, ...], Found | None]:
    """What the lower layers of `parent` have at `name`: the objects that count, and the topmost found."""
    if not parent.lowers:
        return (), None
    mask = merge_dir.positions(state, parent, name)
    return _relative(state, parent.lowers, name, mask)


def lower_positive(state: State, parent: Node, name: bytes) -> bool:
    """Whether something would show at `name` if the upper had nothing there."""
    return find_lowers(state, parent, name)[1] is not None


def _relative(
    state: State, places: tuple[Lower, ...], name: bytes, mask: int = -1
) -> tuple[tuple[Lower, ...], Found | None]:
    """`name` looked up in one directory after another, top first.

    Args:
        mask: bit i is clear where directory i is known not to have the name.
    """
    result: list[Lower] = []
    top: Found | None = None
    last = len(places) - 1
    for position, (layer, ref) in enumerate(places):
        if not mask >> position & 1:
            continue
        found = layer.find(ref, name, position < last)
        if found is None:
            continue
        if found.whiteout:
            break
        directory = stat.S_ISDIR(found.stat.st_mode)
        if top is not None and stat.S_ISDIR(top.stat.st_mode) and not directory:
            break
        if top is not None and not stat.S_ISDIR(top.stat.st_mode) and directory:
            break
        result.append(Lower(layer, found.ref))
        top = top or found
        if directory and found.opaque:
            break
        if not directory and not found.metacopy:
            break
        if found.redirect is not None and (directory or found.metacopy):
            rest = places[position + 1 :]
            below, _ = _follow(state, rest, state.layers_below(layer), found, None)
            result.extend(below)
            break
    _require_data(state, result, top)
    return tuple(result), top


def _follow(
    state: State,
    relative_to: tuple[Lower, ...],
    roots: list[Layer],
    found: Found,
    parent: Node | None,
) -> tuple[tuple[Lower, ...], Found | None]:
    """Go on where the redirect of `found` leads: a name beside it, or a path from the root of each layer."""
    if not state.config.follows_redirects:
        raise OverlayError(
            errno.EPERM, f"refusing to follow the redirect of {found.ref!r}", logging.WARNING
        )
    redirect = _parsed(found)
    if not redirect.absolute:
        name = redirect.components[0]
        mask = merge_dir.positions(state, parent, name) if parent is not None else -1
        return _relative(state, relative_to, name, mask)
    return _absolute(state, roots, list(redirect.components), found)


def _parsed(found: Found) -> Redirect:
    assert found.redirect is not None
    try:
        return parse_redirect(found.redirect)
    except MarkInvalid as error:
        cause = f"redirect of {found.ref!r}: {error}"
        raise OverlayError(errno.EINVAL, cause, logging.WARNING) from None


def _absolute(
    state: State, roots: list[Layer], components: list[bytes], source: Found
) -> tuple[tuple[Lower, ...], Found | None]:
    """A path looked up from the root of one layer after another."""
    result: list[Lower] = []
    top: Found | None = None
    if not stat.S_ISDIR(source.stat.st_mode):
        roots = roots + state.data_lowers
    for layer in roots:
        found, stop, components = _walk(layer, components)
        if found is not None:
            directory = stat.S_ISDIR(found.stat.st_mode)
            if directory != stat.S_ISDIR(source.stat.st_mode):
                break
            result.append(Lower(layer, found.ref))
            top = top or found
            stop = stop or (not directory and not found.metacopy)
        if stop:
            break
    return tuple(result), top


def _walk(layer: Layer, components: list[bytes]) -> tuple[Found | None, bool, list[bytes]]:
    """Walk a path in one layer. Returns what is there, whether the layers below are hidden, and the path to go on
    with in them, which redirects on the way may have changed."""
    ref = layer.root()
    stop = False
    onward = list(components)
    found = None
    for depth, name in enumerate(components):
        found = layer.find(ref, name, True)
        if found is None:
            return None, stop, onward
        if found.whiteout:
            return None, True, components
        directory = stat.S_ISDIR(found.stat.st_mode)
        if not directory and depth < len(components) - 1:
            return None, True, components
        if directory and found.opaque:
            stop = True
        elif found.redirect is not None:
            redirect = _parsed(found)
            # An absolute one leads out from below an opaque directory on the way (ovl_check_redirect()).
            stop = stop and not redirect.absolute
            tail = components[depth + 1 :]
            head = [] if redirect.absolute else onward[: len(onward) - len(tail) - 1]
            onward = head + list(redirect.components) + tail
        ref = found.ref
    return found, stop, onward


def _require_data(state: State, result: list[Lower], top: Found | None) -> None:
    """A lower metacopy is only good with its data."""
    if top is None or not top.metacopy or stat.S_ISDIR(top.stat.st_mode):
        return
    if not state.config.metacopy and not state.data_lowers:
        raise OverlayError(
            errno.EPERM, f"{top.ref!r} has only metadata: mount with metacopy=on", logging.WARNING
        )
    _layer, ref = result[-1]
    if len(result) < 2:
        raise OverlayError(errno.EIO, f"the data of metacopy {ref!r} is missing", logging.WARNING)


def _may_have_oci_names(state: State, parent: Node) -> bool:
    """Whether the upper directory may have `.wh.` names: it is read once, when lookups in it become many."""
    if parent.oci_names is None:
        parent.lookups += 1
        if parent.lookups < OCI_SCAN_AFTER_LOOKUPS:
            return True
        assert state.upper is not None
        parent.oci_names = state.upper.has_oci_names(state.path(parent))
    return parent.oci_names


# --- identity ---------------------------------------------------------------------------------------------------------


def adopt(state: State, parent: Node, name: bytes, resolved: Resolved) -> Node:
    """The node of what was found, the same for every name of one inode."""
    kind = stat.S_IFCHR if resolved.top.device else stat.S_IFMT(resolved.status.st_mode)
    linked = index.of_lookup(state, resolved.upper, resolved.lowers, resolved.status)
    upper_ino = 0
    if linked is not None:
        upper_ino = linked.status.st_ino
    elif resolved.upper is not None:
        upper_ino = resolved.upper.stat.st_ino
    ino = _number(state, parent, name, resolved)
    node = state.nodes.get(ino)
    if node is not None and not _same(node, kind, upper_ino):
        node = None
        ino = state.numbers.spare()
    if node is None:
        node = make_node(ino, kind, parent, name)
        _fill(state, node, resolved, upper_ino)
        state.nodes.add(node)
    else:
        node.add_name(parent, name)
        if node.pin >= 0:
            node.release_pin()
    if linked is not None and node.index is None:
        node.index = linked.name
        node.link_offset = linked.link_offset
        node.upper = True
        node.upper_ino = upper_ino
        node.metacopy = linked.metacopy
        if not linked.metacopy:
            node.lowers = ()
    if node.index is not None and resolved.upper is None:
        if node.lower_names is None:
            node.lower_names = set()
        node.lower_names.add((parent, name))
    return node


def new_node(state: State, parent: Node | None, name: bytes, status: os.stat_result) -> Node:
    """The node of an object that was just made in the upper, and so is nothing but the upper's."""
    assert state.upper is not None
    kind = stat.S_IFMT(status.st_mode)
    ino = state.numbers.number(state.upper.device(status), status.st_ino)
    if state.nodes.get(ino) is not None:
        ino = state.numbers.spare()
    node = make_node(ino, kind, parent, name)
    node.upper = True
    node.upper_ino = status.st_ino
    if state.protected:
        protection.learn(state, node, None)
    state.nodes.add(node)
    return node


def _same(node: Node, kind: int, upper_ino: int) -> bool:
    return node.kind == kind and node.upper_ino == upper_ino


def _fill(state: State, node: Node, resolved: Resolved, upper_ino: int) -> None:
    node.lowers = resolved.lowers
    node.device = resolved.top.device
    found = resolved.upper
    if found is None:
        return
    node.upper = True
    node.upper_ino = upper_ino
    node.redirect = found.redirect
    node.metacopy = found.metacopy
    if node.is_dir:
        node.opaque = found.opaque
        node.impure = "impure" in found.marks
    protattr = found.marks.get("protattr")
    if protattr or state.protected:
        protection.learn(state, node, protattr)


def _number(state: State, parent: Node, name: bytes, resolved: Resolved) -> int:
    """st_ino: the origin's number for what came from a lower layer, the upper's own for what did not."""
    found = resolved.upper
    if found is not None:
        directory = stat.S_ISDIR(found.stat.st_mode)
        if not (directory and resolved.lowers):
            assert state.upper is not None
            origin = found.marks.get("origin")
            if origin and not directory:
                ino = state.origin_ino(origin)
                if ino is not None:
                    return ino
            return state.numbers.number(state.upper.device(found.stat), found.stat.st_ino)
    layer, ref = resolved.lowers[0]
    status = layer.stat(ref) if found is not None else resolved.status
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) and breaks_links(state):
        return state.numbers.broken_link(parent.ino, name, status.st_ino)
    return state.numbers.number(layer.device(status), status.st_ino)


def breaks_links(state: State) -> bool:
    """Whether copy-up separates the names of a lower hard link."""
    return state.upper is not None and not state.index_on
