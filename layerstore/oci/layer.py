"""Applies the entries of a layer's tar to a tree, as container engines unpack one into an empty
directory: later entries replace earlier ones, missing parents are made, nothing leads outside.

Whiteouts become the kernel's marks, so that the tree is a lower directory of an overlay:

- `.wh.NAME` makes NAME a 0/0 character device, or NAME opaque where the layer brings it back as a
  directory (OCI image spec, layer.md: a whiteout hides only what is below its own layer);
- `.wh..wh..opq` makes its directory opaque; other `.wh..wh.*` names are what aufs kept for itself
  and are left out, as containers/storage does;
- a 0/0 character device in a layer is what the overlay drivers of container engines write for it: a
  whiteout. It stays one.

Xattrs of the content that look like overlay marks are escaped, as composefs does.

The tree is in memory, as far as that has room for it (`MEMORY_MAX`), and else in a temporary file
(`layerstore.index.spill`).
"""

from __future__ import annotations

import os
import stat

from layerstore import marks
from layerstore.errors import SourceInvalid, show
from layerstore.index.packing import can_store_xattr
from layerstore.index.reader import Inline, Object, Sparse
from layerstore.index.spill import Spill, SpilledTree
from layerstore.index.tree import Node, NodeTree, Tree, directory
from layerstore.objects import Staging
from layerstore.oci.limits import NO_LIMITS, Limits
from layerstore.oci.tar import TarEntry, TarReader
from layerstore.split import SplitWriter

INLINE_MAX = 512
"""Files up to so many bytes live in the index, as an object each takes a block, an inode and a sync.

On the family of `tools/images --family` (7 images, 8 layers, 870 MB of distinct content), what each step takes off
in blocks and adds to the layers' indexes and to those of the images, MB, where the marks of an object go away:

    64 to 256      23.7 off, 0.1 and 0.1 added
    256 to 512     16.7 off, 1.5 and 2.0 added
    512 to 768     14.7 off, 2.8 and 5.0 added
    768 to 1024    12.0 off, 3.0 and 4.6 added
    1024 to 2048   32.0 off, 13.7 and 22.0 added

A block is saved once, while each further image adds its share: 512 still pays with fifty images of the same layers, 768
no longer with twenty.
"""

MEMORY_MAX = 48 << 20
"""Bytes of a tree that are in memory: some 60,000 entries, more than nearly all layers have. A tree that is not in
memory costs some 15 us more an entry."""

_NODE_BYTES = 600
"""What an entry takes in memory, its name, content, target and xattrs apart."""

_SYMLINK_HOPS_MAX = 40
"""As many as Linux follows in one path."""


class LayerBuilder:
    """The tree of one layer.

    Args:
        staging: where the content of files goes.
        label: what the layer is called in messages.
        absolute_names: take a name like `/etc/passwd` as one below the root of the image; otherwise
            it is refused.
        split: where the tar is kept taken apart; its reader records there what is not content.
        limits: for what the layer may hold.
        scratch: where what does not fit into memory goes; None: it has to fit.
        memory_max: bytes of the tree that are in memory at a time, about; None: `MEMORY_MAX`.
    """

    def __init__(
        self,
        staging: Staging,
        label: str,
        *,
        absolute_names: bool = False,
        split: SplitWriter | None = None,
        limits: Limits = NO_LIMITS,
        scratch: bytes | None = None,
        memory_max: int | None = None,
    ) -> None:
        self.root = directory()
        self.root.xattrs[marks.IMPLIED] = b""
        self.entries = 0
        self.content_bytes = 0
        self._staging = staging
        self._kept = split
        self._limits = limits
        self._sparse_bytes = 0
        self._label = label
        self._absolute_names = absolute_names
        self._whiteouts: list[tuple[Node, bytes]] = []
        self._last: tuple[bytes, Node] | None = None
        self._scratch = scratch
        self._memory_max = MEMORY_MAX if memory_max is None else memory_max
        self._memory = 0
        self._spill: Spill | None = None

    def apply_all(self, reader: TarReader) -> Tree:
        """Apply every entry of a stream; returns the tree, which ends with `close`.

        Raises:
            SourceInvalid: an entry that cannot be what it says or would lead outside.
        """
        for entry in reader:
            self._apply(entry, reader)
            self.entries += 1
            self._limits.check_entries(self.entries, self._label)
            if self._memory > self._memory_max and self._scratch is not None:
                self._store(self._scratch)
        if self._spill is None:
            for parent, name in self._whiteouts:
                self._apply_whiteout(parent, name)
            return NodeTree(self.root)
        self._spill.store(self.root, self._whiteouts)
        self._spill.apply_whiteouts()
        return SpilledTree(self.root, self._spill)

    def close(self) -> None:
        """Forget what is in temporary files."""
        if self._spill is not None:
            self._spill.close()

    def _store(self, scratch: bytes) -> None:
        if self._spill is None:
            self._spill = Spill(scratch)
        self._last = None
        self._spill.store(self.root, self._whiteouts)
        self._memory = 0

    def _child(self, parent: Node, name: bytes) -> Node | None:
        """What a directory has under a name."""
        assert parent.children is not None
        node = parent.children.get(name)
        if node is None and parent.stored and self._spill is not None:
            node = self._spill.child(parent, name)
            if node is not None:
                parent.children[name] = node
                self._weigh(name, node)
        return node

    def _weigh(self, name: bytes, node: Node) -> None:
        """Count what a node that comes into memory takes there."""
        size = _NODE_BYTES + len(name) + len(node.target)
        if isinstance(node.content, Inline):
            size += len(node.content.data)
        if node.xattrs:
            size += sum(200 + len(key) + len(value) for key, value in node.xattrs.items())
        self._memory += size

    def _apply(self, entry: TarEntry, reader: TarReader) -> None:
        components = self._split(entry, entry.name, "name")
        if not components:
            if entry.kind != stat.S_IFDIR:
                raise self._bad(entry, "the root of a layer must be a directory")
            self._decorate(self.root, entry)
            return
        name = components[-1]
        parent = self._parent(entry, components[:-1])
        if name.startswith(marks.OCI_WHITEOUT_PREFIX):
            self._mark(entry, parent, name)
            return
        if entry.hard_link:
            target = self._hard_link_target(entry)
            self._replace(parent, name, self._child(parent, name), target)
            return
        known = self._child(parent, name)
        if entry.kind == stat.S_IFDIR and known is not None and known.is_directory:
            self._decorate(known, entry)
            return
        node = Node(entry.kind)
        self._decorate(node, entry)
        self._fill(node, entry, reader)
        self._replace(parent, name, known, node)

    def _replace(self, parent: Node, name: bytes, known: Node | None, node: Node) -> None:
        assert parent.children is not None
        if known is not None:
            self._last = None  # the way to the remembered parent may have led through this name
        parent.children[name] = node
        self._weigh(name, node)

    def _fill(self, node: Node, entry: TarEntry, reader: TarReader) -> None:
        if stat.S_ISLNK(node.mode):
            if not 0 < len(entry.link) <= 4095 or b"\0" in entry.link:
                raise self._bad(entry, f"a symlink to {len(entry.link)} bytes cannot be")
            node.target = entry.link
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            if not (0 <= entry.rdev_major < 1 << 12 and 0 <= entry.rdev_minor < 1 << 20):
                raise self._bad(
                    entry, f"the device number {entry.rdev_major}:{entry.rdev_minor} cannot be"
                )
            node.rdev = os.makedev(entry.rdev_major, entry.rdev_minor)
        elif stat.S_ISREG(node.mode):
            self._take_content(node, entry, reader)

    def _take_content(self, node: Node, entry: TarEntry, reader: TarReader) -> None:
        self.content_bytes += entry.size
        if entry.segments is not None:
            if not any(length for _, length in entry.segments):
                node.set_content(Sparse(entry.size), entry.size)
                return
            self._sparse_bytes += entry.size
            if 0 < self._limits.layer_bytes < self._sparse_bytes:  # each hole is hashed
                raise self._bad(
                    entry,
                    f"with it the layer has sparse files of {self._sparse_bytes} bytes;"
                    " --max-layer-size allows more",
                )
            digest = self._staging.add_sparse(reader.segments(entry), entry.size)
            self._keep(digest, entry.segments)
        elif entry.size <= INLINE_MAX:
            data = b"".join(reader.data(entry))
            if self._kept is not None:
                self._kept.raw(data)
            node.set_content(Inline(data), entry.size)
            return
        elif entry.size <= 1 << 20:
            digest = self._staging.add_bytes(b"".join(reader.data(entry)))
            self._keep(digest, [(0, entry.size)])
        else:
            digest = self._staging.add(reader.data(entry))
            self._keep(digest, [(0, entry.size)])
        path = digest[7:9] + "/" + digest[9:]
        node.set_content(Object(path.encode()), entry.size)

    def _keep(self, digest: str, segments: list[tuple[int, int]]) -> None:
        if self._kept is not None:
            for start, length in segments:
                self._kept.content(digest, start, length)

    def _decorate(self, node: Node, entry: TarEntry) -> None:
        node.mode = entry.kind | entry.mode
        node.uid, node.gid = entry.uid, entry.gid
        node.mtime_ns = entry.mtime_ns
        opaque = node.xattrs.get(marks.TRUSTED.opaque)
        node.xattrs = {} if opaque is None else {marks.TRUSTED.opaque: opaque}
        for name, value in entry.xattrs.items():
            if not name or b"\0" in name:
                raise self._bad(entry, f"an xattr cannot be called {show(name)!r}")
            try:
                stored = marks.TRUSTED.escape(name)
            except marks.MarkInvalid as error:
                raise self._bad(entry, str(error)) from None
            # What no Linux filesystem would take (com.apple.*, system.nfs4_acl) the engines drop.
            if can_store_xattr(stored):
                if len(value) > 0xFFFF:
                    raise self._bad(entry, f"the xattr {show(name)} is longer than 64 KiB")
                node.xattrs[stored] = value

    # --- whiteouts

    def _mark(self, entry: TarEntry, parent: Node, name: bytes) -> None:
        if name == marks.OCI_OPAQUE:
            parent.xattrs[marks.TRUSTED.opaque] = marks.OPAQUE_YES
        elif not marks.is_oci_meta(name):
            target = marks.oci_whiteout_target(name)
            if target is None:
                raise self._bad(entry, "a whiteout of no name")
            self._whiteouts.append((parent, target))
            self._memory += 150 + len(target)

    def _apply_whiteout(self, parent: Node, name: bytes) -> None:
        """Whiteouts come last: they hide what is below the layer, wherever they stand in it."""
        assert parent.children is not None
        known = parent.children.get(name)
        if known is None:
            parent.children[name] = Node(stat.S_IFCHR)
        elif known.is_directory:
            known.xattrs[marks.TRUSTED.opaque] = marks.OPAQUE_YES

    # --- names

    def _split(self, entry: TarEntry, path: bytes, what: str) -> list[bytes]:
        if path.startswith(b"/") and not self._absolute_names:
            raise self._bad(
                entry,
                f"its {what} {show(path)} is absolute; --absolute-names takes it as below the root",
            )
        components = [part for part in path.split(b"/") if part not in (b"", b".")]
        for component in components:
            if component == b"..":
                raise self._bad(entry, f"its {what} {show(path)} leads upwards (..)")
            if len(component) > 255 or b"\0" in component:
                raise self._bad(
                    entry, f"its {what} has a component of {len(component)} bytes or a NUL"
                )
        if len(path) > 4095 or (not path and what != "name"):
            raise self._bad(entry, f"its {what} of {len(path)} bytes cannot be")
        return components

    def _parent(self, entry: TarEntry, components: list[bytes]) -> Node:
        """The directory to put an entry into, made where the layer has not named it."""
        key = b"/".join(components)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        node = self._walk(entry, components, make=True)
        assert node is not None
        self._last = (key, node)
        return node

    def _hard_link_target(self, entry: TarEntry) -> Node:
        # Engines take link names from the root of the layer, absolute or not.
        components = self._split(entry, entry.link.lstrip(b"/"), "target")
        parent = self._walk(entry, components[:-1], make=False) if components else None
        node = self._child(parent, components[-1]) if parent is not None else None
        if node is None:
            raise self._bad(
                entry, f"its target {show(entry.link)} is not in the layer before the hard link"
            )
        if node.is_directory:
            raise self._bad(entry, f"its target {show(entry.link)} is a directory")
        node.linked = True
        return node

    def _walk(self, entry: TarEntry, components: list[bytes], *, make: bool) -> Node | None:
        """Follow `components` from the root, symlinks within the layer included, as in a chroot."""
        stack = [self.root]
        waiting = components[::-1]
        hops = 0
        while waiting:
            name = waiting.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":  # from a symlink; the root is its own parent
                stack = stack[:-1] or stack
                continue
            node = self._child(stack[-1], name)
            if node is None:
                if not make:
                    return None
                if hops:
                    raise self._bad(entry, "its parent is a symlink to nothing in the layer")
                node = directory()
                node.xattrs[marks.IMPLIED] = b""
                self._replace(stack[-1], name, None, node)
            if stat.S_ISLNK(node.mode):
                hops += 1
                if hops > _SYMLINK_HOPS_MAX:
                    raise self._bad(entry, "its parents are symlinks that lead in a circle")
                if node.target.startswith(b"/"):
                    stack = [self.root]
                waiting += node.target.split(b"/")[::-1]
                continue
            if not node.is_directory:
                raise self._bad(entry, f"its parent {show(name)} is not a directory")
            stack.append(node)
        return stack[-1]

    def _bad(self, entry: TarEntry, what: str) -> SourceInvalid:
        return SourceInvalid(f"{self._label}: byte {entry.offset}: {show(entry.name)}: {what}")
