"""The process that serves a mount, but for the event loop: checks first, cleans up last.

`client` and `foreground` start it. pyfuse3 has one session in a process, so a process serves one
mount; whatever concerns one mount is in `Service`, whatever concerns the process is in `serve`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable

from overlayfs_py import guardian, mount_flags, mountinfo, preflight, protection, registry
from overlayfs_py.errors import UserError
from overlayfs_py.holds import Hold
from overlayfs_py.options import MountOptions
from overlayfs_py.unmount import detach

log = logging.getLogger(__name__)


def serve(options: MountOptions, mountpoint: bytes, on_live: Callable[[], None]) -> None:
    """Mount, and serve until somebody unmounts or a signal asks for the end.

    Args:
        mountpoint: absolute.
        on_live: called once, when the mount answers.

    Raises:
        UserError: it cannot be mounted; nothing is left behind.
        Exception: a bug; its traceback is in the log.
    """
    protection.settle()
    # A caller that was killed while it waited must not take the daemon's thread down in the middle
    # of a mount.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if options.auto_unmount:
        guardian.start(mountinfo.real_path(mountpoint))
    try:
        service = Service(options, mountpoint)
        try:
            service.run(on_live)
        finally:
            service.close()
    except UserError:
        raise
    except BaseException:
        log.exception("the mount on %s ended by a bug", os.fsdecode(mountpoint))
        raise


class Service:
    """One mount from the first check to the last lock."""

    def __init__(self, options: MountOptions, mountpoint: bytes) -> None:
        """Check everything, lock upper and work, write the record.

        Raises:
            UserError: it cannot be mounted.
        """
        self.options = options
        preflight.check_mountpoint(mountpoint)
        # A named upper is made when it is first asked for, so the rest must be in order by then.
        preflight.check_host(options)
        self.mountpoint = mountinfo.real_path(mountpoint)
        _find_named_upper(options)
        self._hold: Hold = preflight.check(options, self.mountpoint)
        self._before = mountinfo.top(self.mountpoint)
        self._registration: registry.Registration | None = None
        try:
            with registry.exclusive():
                # Once more: another daemon may have come since the first look.
                preflight.check_mountpoint(self.mountpoint)
                record = registry.record_of(options, self.mountpoint)
                self._registration = registry.Registration(record)
        except OSError as error:
            log.warning("ps and umount will not know this mount: %s", error)
        for note in options.notes:
            log.warning("%s", note)

    def run(self, on_live: Callable[[], None]) -> None:
        """Serve until the mount is gone.

        Raises:
            UserError: the mount was refused.
        """

        def live() -> None:
            self._went_live()
            on_live()

        if self.options.transport == "device":
            self._by_device(live)
        else:
            # A quarter of a second of imports, which nobody else waits for.
            from overlayfs_py import loop

            loop.run(self.options, self.mountpoint, live)
        log.info("unmounted %s", os.fsdecode(self.mountpoint))

    def _by_device(self, on_live: Callable[[], None]) -> None:
        # Threads of the transport answer; trio would have nothing to do here, and takes 160 ms to import.
        from overlayfs_py.ending import Ending
        from overlayfs_py.mount import Mount

        def unmount(asked: signal.Signals) -> None:
            log.info("%s: unmounting %s", asked.name, os.fsdecode(self.mountpoint))
            detach(self.mountpoint)

        ending = Ending()
        try:
            with ending.on_signal(unmount):
                Mount(self.options, self.mountpoint).serve_by_device(ending, on_live)
        finally:
            ending.close()

    def _went_live(self) -> None:
        entry = mountinfo.top(self.mountpoint)
        if entry is None:
            # Another mount namespace or a path that was moved: it works, but `ps` cannot say its
            # device.
            log.warning("%s is not in the mount table", os.fsdecode(self.mountpoint))
        else:
            self._apply_flags(entry)
            if self._registration is not None:
                self._registration.update(device=os.fsdecode(entry.device))
        log.info("mounted %s", os.fsdecode(self.mountpoint))

    def _apply_flags(self, entry: mountinfo.MountEntry) -> None:
        """What the transport could not pass on: flags that its library does not know, propagation."""
        words = os.fsdecode(entry.options).split(",")
        # The others belong to the filesystem rather than to this mount of it, or are the rule.
        own = {"nosuid", "nodev", "noexec", "noatime", "nodiratime", "strictatime", "nosymfollow"}
        missing = own.intersection(self.options.kernel_flags).difference(words)
        if missing:
            kept = [word for word in words if mount_flags.GROUPS.get(word) not in _groups(missing)]
            flags = mount_flags.bits([*kept, *missing])
            self._try(mount_flags.MS_REMOUNT | mount_flags.MS_BIND | flags, ",".join(missing))
        for word in self.options.propagation:
            self._try(mount_flags.PROPAGATION[word], word)

    def _try(self, flags: int, words: str) -> None:
        try:
            mount_flags.mount(None, self.mountpoint, None, flags)
        except OSError as error:
            log.warning("mount option %s has no effect: %s", words, error.strerror)

    def close(self) -> None:
        """Leave nothing behind: no mount, no record, no lock."""
        with contextlib.suppress(OSError):
            entry = mountinfo.top(self.mountpoint)
            before = self._before.mount_id if self._before else None
            if entry is not None and entry.mount_id != before and self._is_ours(entry):
                detach(self.mountpoint)
        if self._registration is not None:
            self._registration.close()
        self._hold.close()

    def _is_ours(self, entry: mountinfo.MountEntry) -> bool:
        # Somebody may have unmounted ours and mounted something else here already.
        if self._registration is not None and self._registration.record.device:
            return os.fsdecode(entry.device) == self._registration.record.device
        return entry.fstype == f"fuse.{self.options.subtype}".encode()


def _groups(words: set[str]) -> set[str]:
    return {mount_flags.GROUPS[word] for word in words}


def _find_named_upper(options: MountOptions) -> None:
    """Turn `upper_name` into directories of the layer store."""
    if options.upper_name is None:
        return
    assert options.image is not None
    from layerstore.errors import StoreError
    from layerstore.store import Store

    try:
        store = Store.open(options.store_root, create=False)
        image = store.ground_of(options.image)
        options.upperdir, options.workdir = store.named_upper(options.upper_name, image)
        # The kernel has mounted it, and may have left files without data in it.
        options.metacopy = options.metacopy or store.has_metacopies(options.upper_name)
    except StoreError as error:
        raise UserError(str(error)) from None
