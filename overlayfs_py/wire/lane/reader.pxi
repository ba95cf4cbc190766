# Reading requests and answering them. Part of lane.pyx.


# A thread that sleeps in read(2) makes one system call less for a request than one that sleeps in poll(2) and reads then.
# It is woken for the end by a signal that does nothing, sent until it has noticed.

cdef extern from *:
    """
    #include <fcntl.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static int lane_signal(void) { return SIGRTMAX - 3; }

    static void lane_woken(int number) { (void)number; }

    /* Whether the signal ends system calls: nobody else has a use for it. */
    static int lane_interruptible(void)
    {
        struct sigaction action, before;
        if (sigaction(lane_signal(), NULL, &before) != 0)
            return 0;
        if (before.sa_handler != SIG_DFL && before.sa_handler != lane_woken)
            return 0;
        memset(&action, 0, sizeof(action));
        action.sa_handler = lane_woken;
        return sigaction(lane_signal(), &action, NULL) == 0;
    }

    /* By the kernel's number of it: a thread that has ended is not found. */
    static void lane_interrupt(int thread)
    {
        syscall(SYS_tgkill, getpid(), thread, lane_signal());
    }

    static int lane_blocking(int fd, int on)
    {
        int flags = fcntl(fd, F_GETFL);
        return flags >= 0 && fcntl(fd, F_SETFL, on ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) == 0;
    }
    """
    void lane_interrupt(int thread) nogil
    int lane_interruptible() nogil
    int lane_blocking(int fd, int on) nogil


cdef int64_t _next_for_python(State *lane, int fd, int wake_fd, char *buffer, size_t room, int poll_us, int *number) noexcept nogil:
    cdef int64_t window = <int64_t>poll_us * 1000
    cdef int64_t until = 0, slept, now, before = 0
    cdef bint looked = False
    cdef ssize_t count
    cdef size_t size
    cdef pollfd watched[2]
    watched[0].fd = fd
    watched[0].events = POLLIN
    watched[1].fd = wake_fd
    watched[1].events = POLLIN
    if lane.trust > 0 and window:
        before = _now_ns()
        until = before + window
    while True:
        slept = 0
        if not until:
            slept = _now_ns()
            if lane.interruptible:
                if not lane.blocking:
                    lane.blocking = lane_blocking(fd, True)
            else:
                watched[0].revents = 0
                watched[1].revents = 0
                if c_poll(watched, 2, -1) < 0 and errno != EINTR:
                    number[0] = errno
                    return 0
                if watched[1].revents:
                    return 0
        elif lane.blocking:
            lane.blocking = not lane_blocking(fd, False)
        count = c_read(fd, buffer, room)
        if count < 0:
            if errno == EAGAIN:
                if until:
                    now = _now_ns()
                    if now - before > AWAY_NS:
                        # Somebody else was on the processor meanwhile, and it is our turn later for having looked.
                        lane.trust = CROWDED
                    elif now < until:
                        before = now
                        looked = True
                        continue
                    else:
                        lane.trust >>= 1
                until = 0
                looked = False
                continue
            if errno == EINTR and lane.interruptible:
                return 0
            if errno == EINTR or errno == ENOENT:
                continue
            if errno == ENODEV or errno == ECONNABORTED:
                return -1
            number[0] = errno
            return 0
        if (looked or (slept and _now_ns() - slept < window)) and lane.trust < TRUST_MAX:
            lane.trust += 1
        looked = False
        size = <size_t>count
        if _answer(lane, fd, buffer, &size) == PYTHON:
            return <int64_t>size
        before = _now_ns() if lane.trust > 0 and window else 0
        until = before + window if before else 0


cdef int _answer(State *lane, int fd, char *buffer, size_t *count) noexcept nogil:
    cdef InHeader *header = <InHeader *>buffer
    cdef int result
    if count[0] < HEADER or header.len != count[0] or header.extlen:
        return PYTHON
    pthread_mutex_lock(&lane.mutex)
    result = _dispatch(lane, fd, header, buffer + HEADER, count)
    pthread_mutex_unlock(&lane.mutex)
    if result == ANSWERED:
        lane.answered += 1
    return result


cdef int _dispatch(State *lane, int fd, InHeader *header, char *body, size_t *count) noexcept nogil:
    cdef size_t size = count[0] - HEADER
    if header.opcode == LOOKUP:
        return _lookup(lane, fd, header, body, size)
    if header.opcode == GETATTR:
        return _getattr(lane, fd, header)
    if header.opcode == READ:
        return _read(lane, fd, header, body, size)
    if header.opcode == FORGET:
        return _forget(lane, header, body, size)
    if header.opcode == BATCH_FORGET:
        return _batch_forget(lane, header, body, count)
    if header.opcode == OPEN:
        return _open(lane, fd, header, body, size)
    if header.opcode == RELEASE:
        return _release(lane, fd, header, body, size)
    if header.opcode == READDIRPLUS or header.opcode == READDIR:
        return _readdir(lane, fd, header, body, size, header.opcode == READDIRPLUS)
    if header.opcode == READLINK:
        return _readlink(lane, fd, header)
    if header.opcode == GETXATTR:
        return _getxattr(lane, fd, header, body, size)
    if header.opcode == LISTXATTR:
        return _listxattr(lane, fd, header, body, size)
    if header.opcode == IOCTL:
        return _ioctl(lane, fd, header, body, size)
    if header.opcode == STATFS:
        return _statfs(lane, fd, header)
    if header.opcode == CREATE:
        return answer_create(lane, fd, header, body, size)
    if header.opcode == UNLINK:
        return answer_unlink(lane, fd, header, body, size)
    if header.opcode == MKDIR:
        return answer_mkdir(lane, fd, header, body, size)
    if header.opcode == RMDIR:
        return answer_rmdir(lane, fd, header, body, size)
    if header.opcode == SETATTR:
        return answer_setattr(lane, fd, header, body, size)
    if header.opcode == RENAME:
        return answer_rename(lane, fd, header, body, size, sizeof(RenameIn), 0)
    if header.opcode == RENAME2 and size >= sizeof(Rename2In):
        return answer_rename(lane, fd, header, body, size, sizeof(Rename2In), (<Rename2In *>body).flags)
    if header.opcode == SYMLINK:
        return answer_symlink(lane, fd, header, body, size)
    return PYTHON


cdef bint _reply(State *lane, int fd, InHeader *header, size_t size, int error) noexcept nogil:
    """Send `size` bytes of the reply; False if nobody waits for it any more."""
    cdef OutHeader *out = <OutHeader *>lane.out
    out.len = <uint32_t>(OUT + size)
    out.error = -error
    out.unique = header.unique
    return c_write(fd, lane.out, OUT + size) >= 0
