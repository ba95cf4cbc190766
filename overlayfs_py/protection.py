"""How the daemon leaves its caller behind: session, descriptors, cgroup, limits.

Every function is best effort where privilege is missing and says so in the log. Call before
threads exist.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal

log = logging.getLogger(__name__)

# dockerd's own value: after the containers, but not exempt if it is this process that grows.
_OOM_SCORE = -500
_OPEN_FILES = 1 << 20


def leave_session(keep: set[int]) -> None:
    """A session of its own, no terminal, no descriptors but `keep`, root as working directory.

    stdin, stdout and stderr become /dev/null unless they are in `keep`.
    """
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for standard in {0, 1, 2} - keep:
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        # The caller's locks and pipes would live as long as the mount does.
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def settle() -> None:
    """Take the process out of its caller's limits."""
    # Modes are decided by the callers of the mount, never by whoever mounted it.
    os.umask(0)
    _raise_file_limit()
    _protect_from_oom()
    _leave_cgroup()


def _raise_file_limit() -> None:
    """Layers and open files are descriptors here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0:
        wanted = max(hard, _OPEN_FILES)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _protect_from_oom() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            if int(file.read()) > _OOM_SCORE:
                file.seek(0)
                file.write(str(_OOM_SCORE))
    except (OSError, ValueError):
        log.debug(
            "oom_score_adj stays as it is: the kernel may end this process when memory is short"
        )


def _leave_cgroup() -> None:
    """Into the cgroup `overlayfs-py` at the top of each hierarchy where the administrator made one.

    None is made here: whoever put the caller under a limit did not ask for a way out of it.
    """
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        controllers = line.split(":", 2)[1].removeprefix("name=")
        places = [controllers] if controllers else ["", "unified"]
        joined = any(_join(f"/sys/fs/cgroup/{place}/overlayfs-py/cgroup.procs") for place in places)
        if not joined:
            log.debug("stays in cgroup %s", line)


def _join(processes: str) -> bool:
    try:
        fd = os.open(processes, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, b"0")
        return True
    except OSError as error:
        log.info("%s cannot be joined: %s", processes, error.strerror)
        return False
    finally:
        os.close(fd)
