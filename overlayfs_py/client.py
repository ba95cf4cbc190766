"""Starts the daemon of a mount and waits until the mount is live; imports next to nothing before
that.

The daemon is this process's fork: a second interpreter would cost its start again. Words come back
through a pipe: "live", or "error" and one line.
"""

from __future__ import annotations

import contextlib
import os

from overlayfs_py.errors import UserError
from overlayfs_py.options import MountOptions

_LIVE = b"live\n"
_ERROR = b"error "


def start(options: MountOptions, mountpoint: bytes) -> None:
    """Mount in the background; returns once the mount is live.

    Args:
        mountpoint: absolute.

    Raises:
        UserError: the mount failed; nothing is left of it.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _become_daemon(options, mountpoint, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        words = report.read()
    if words.startswith(_LIVE):
        return
    _, status = os.waitpid(pid, 0)
    if words.startswith(_ERROR):
        raise UserError(os.fsdecode(words.removeprefix(_ERROR)).strip())
    raise UserError(_death(status))


def _death(status: int) -> str:
    from overlayfs_py import journal

    if os.WIFSIGNALED(status):
        how = f"was killed by signal {os.WTERMSIG(status)}"
    else:
        how = f"ended with status {os.waitstatus_to_exitcode(status)}"
    return f"the daemon {how} before the mount was live: see {journal.place()}"


def _become_daemon(options: MountOptions, mountpoint: bytes, report: int) -> None:
    """Never returns: the forked process ends here."""
    code = 1
    try:
        code = _run(options, mountpoint, report)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(report, _ERROR + os.fsencode(f"{type(error).__name__}: {error}"))
    finally:
        # Not sys.exit: the caller's buffers and exit handlers are not ours to run.
        os._exit(code)


def _run(options: MountOptions, mountpoint: bytes, report: int) -> int:
    # libfuse and fusermount3 say why a mount failed on stderr and nowhere else.
    complaints = os.memfd_create("stderr")
    os.dup2(complaints, 2)

    import logging

    from overlayfs_py import daemon, journal, protection

    protection.leave_session({report, complaints, 2})
    journal.start(foreground=False, debug=options.debug)
    live = False

    def on_live() -> None:
        nonlocal live
        live = True
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        os.close(complaints)
        try:
            os.write(report, _LIVE)
        except BrokenPipeError:
            # Nobody would unmount what he never got.
            logging.getLogger(__name__).warning("whoever asked for the mount is gone: unmounting")
            raise UserError("whoever asked for the mount is gone: unmounting") from None
        os.close(report)

    try:
        daemon.serve(options, mountpoint, on_live)
        return 0
    except UserError as error:
        line = str(error)
    except BaseException as error:
        why = "" if live else _read(complaints)
        line = f"{why or f'{type(error).__name__}: {error}'} (see {journal.place()})"
    if not live:
        os.write(report, _ERROR + os.fsencode(line.replace("\n", " ")))
    return 1


def _read(complaints: int) -> str:
    text = os.pread(complaints, 4096, 0)
    return "; ".join(line.strip() for line in os.fsdecode(text).splitlines() if line.strip())
