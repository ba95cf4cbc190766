"""One mount: options -> layers -> overlay -> wire.

`build` opens the layers and needs no mount; `Mount` puts the union in its place and serves it.
Whether upper, work and mountpoint may be used at all is `preflight`'s subject.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from layerstore.marks import TRUSTED, USER, Marks
from overlayfs_py import mountinfo
from overlayfs_py.ending import Ending
from overlayfs_py.errors import UserError
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.layer import Layer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.options import MountOptions
from overlayfs_py.overlay.config import Config, IdRange
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.unmount import detach
from overlayfs_py.wire import attach

log = logging.getLogger(__name__)

_CAP_SYS_ADMIN = 21


def build(options: MountOptions) -> Overlay:
    """Open the layers and join them.

    Raises:
        UserError: a layer is missing, cannot be opened, or the options do not fit it.
    """
    marks = _marks(options)
    with ExitStack() as opened:
        upper = None
        if options.upperdir is not None:
            assert options.workdir is not None
            with _naming("upperdir", options.upperdir):
                upper = Upper(options.upperdir, options.workdir, marks, volatile=options.volatile)
            opened.callback(upper.close)
        lowers = []
        if options.image is not None:
            for layer in _image_layers(options, marks):
                opened.callback(layer.close)
                lowers.append(layer)
        for path in options.lowerdirs:
            lowers.append(_directory("lowerdir", path, marks, opened))
        data = [_directory("data-only lowerdir", p, marks, opened) for p in options.data_lowerdirs]
        with _naming("the layers", b""):
            overlay = Overlay(upper, lowers, data, config(options))
        opened.pop_all()
    return overlay


def config(options: MountOptions) -> Config:
    """The part of the options that changes what the union means."""
    return Config(
        redirect_dir=options.redirect_dir,
        metacopy=options.metacopy,
        index=options.index,
        xino=options.xino,
        volatile=options.volatile,
        fsync=options.fsync,
        uid_map=tuple(IdRange(*numbers) for numbers in options.uidmapping),
        gid_map=tuple(IdRange(*numbers) for numbers in options.gidmapping),
        squash_uid=options.squash_to_uid,
        squash_gid=options.squash_to_gid,
        static_nlink=options.static_nlink,
        noacl=options.noacl,
        xattr_permissions=options.xattr_permissions,
        caching=options.timeout is None,
    )


def _directory(kind: str, path: bytes, marks: Marks, opened: ExitStack) -> Layer:
    with _naming(kind, path):
        layer = DirectoryLayer(path, marks)
    opened.callback(layer.close)
    return layer


def _image_layers(options: MountOptions, marks: Marks) -> Iterator[Layer]:
    # Imported here: a mount of directories needs nothing of the store.
    from layerstore.errors import StoreError
    from layerstore.index.reader import Index
    from layerstore.store import Store
    from overlayfs_py.layers.image import ImageLayer

    assert options.image is not None
    try:
        store = Store.open(options.store_root, create=False)
        index = Index(store.index_of(options.image))
        # One index has all layers of the image merged, so a lookup costs the same with any number.
        yield ImageLayer(index, store.objects_dir, marks)
    except StoreError as error:
        raise UserError(str(error)) from None


@contextmanager
def _naming(kind: str, path: bytes) -> Iterator[None]:
    """An OSError within is the user's to repair: say which directory it is about."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, (bytes, str)) and os.fsencode(error.filename) != path:
            kind, path = "", os.fsencode(error.filename)
        where = f"{kind} {os.fsdecode(path)}".strip()
        raise UserError(f"{where} cannot be used: {error.strerror}") from error


def _marks(options: MountOptions) -> Marks:
    userxattr = options.userxattr
    if userxattr is None:
        userxattr = not _is_admin()
    return USER if userxattr else TRUSTED


def _is_admin() -> bool:
    """Whether this process may use trusted.* xattrs: CAP_SYS_ADMIN in the initial user namespace
    (xattr(7)).
    """
    with open("/proc/self/status") as status:
        effective = next(line for line in status if line.startswith("CapEff:"))
    if not int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1:
        return False
    with open("/proc/self/uid_map") as uid_map:
        return uid_map.read().split() == ["0", "0", "4294967295"]


def _make_durable(overlay: Overlay) -> None:
    """The end of a mount is where the kernel's overlayfs syncs the upper's filesystem; not if volatile or fsync=0."""
    try:
        if overlay.state.syncs:
            overlay.sync()
    except OSError as error:
        log.error("what was written may not be on the disk: %s", error.strerror)


class Mount:
    """One mount in this process.

    Args:
        options: with directories that exist and that nobody else uses.
        mountpoint: absolute, without symlinks.
    """

    def __init__(self, options: MountOptions, mountpoint: bytes) -> None:
        self.options = options
        self.mountpoint = mountpoint

    @contextmanager
    def _attached(self) -> Iterator[tuple[Overlay, attach.Attached]]:
        """Mounted within. Layers are open before anything is mounted, so a mountpoint may cover one of them.

        Raises UserError where it cannot be mounted; nothing is left behind.
        """
        overlay = build(self.options)
        try:
            attached = attach.attach(self.mountpoint, self._wishes())
            try:
                yield overlay, attached
            finally:
                self._leave(attached)
            _make_durable(overlay)
        finally:
            overlay.close()

    def serve_by_device(self, ending: Ending, on_live: Callable[[], None]) -> None:
        """Mount, and have threads answer until `ending` says that it is time.

        Args:
            ending: marked when the mount is gone.
            on_live: called once in this thread, when the kernel has begun to talk to us.

        Raises:
            UserError: it cannot be mounted; nothing is left behind.
        """
        from overlayfs_py.wire.device import transport
        from overlayfs_py.wire.device.verbs import DeviceDispatch
        from overlayfs_py.wire.nodes import Counter

        with self._attached() as (overlay, attached):
            transport.serve(
                DeviceDispatch(overlay, self.options.timeout, Counter.of_this_mount()),
                attached.fd,
                acl=not self.options.noacl,
                idmap=self.options.default_permissions,
                read_only=self.options.upperdir is None,
                passthrough=self.options.passthrough != "off" and _is_admin(),
                lowers=self.options.passthrough == "lower",
                handles=self.options.file_handles,
                device=attached.device,
                poll_us=self.options.poll_us,
                on_live=on_live,
                on_end=ending.mark,
                wait=ending.wait,
            )

    async def serve_by_pyfuse3(self, on_live: Callable[[], None]) -> None:
        """The same in an event loop, until the mount is gone or this is cancelled."""
        # Imported here: libfuse and its loop are this transport's alone.
        from overlayfs_py.wire import libfuse
        from overlayfs_py.wire.dispatch import Dispatch
        from overlayfs_py.wire.nodes import InodeNumbers

        with self._attached() as (overlay, attached):
            await libfuse.serve(
                Dispatch(overlay, InodeNumbers(), self.options.timeout),
                attached.fd,
                acl=not self.options.noacl,
                masks_here=attached.masks_here,
                on_live=on_live,
            )

    def _wishes(self) -> attach.Wishes:
        options = self.options
        return attach.Wishes(
            fsname=options.fsname,
            subtype=options.subtype,
            flags=tuple(options.kernel_flags),
            read_only=options.read_only,
            allow_other=options.allow_other,
            default_permissions=options.default_permissions,
            selinux=options.selinux,
        )

    def _leave(self, attached: attach.Attached) -> None:
        """Unmount what is still there and still ours."""
        entry = mountinfo.top(attached.mountpoint)
        if entry is not None and entry.device == attached.device:
            detach(attached.mountpoint)
