# System calls that change something, and what their arguments take. Part of lane.pyx.

from posix.stat cimport S_ISGID, S_ISUID

cdef extern from "<fcntl.h>" nogil:
    int open_new "openat" (int fd, const char *path, int flags, unsigned int mode)
    int fcntl(int fd, int command, ...)
    int AT_FDCWD
    int F_DUPFD_CLOEXEC
    int O_CREAT
    int O_EXCL
    int O_PATH
    int O_RDWR
    int O_WRONLY
    int AT_REMOVEDIR

cdef extern from "<sys/stat.h>" nogil:
    int fstat(int fd, struct_stat *status)
    unsigned int c_umask "umask" (unsigned int mask)
    int mkdirat(int fd, const char *path, unsigned int mode)
    int mknodat(int fd, const char *path, unsigned int mode, unsigned long device)
    int fchmodat(int fd, const char *path, unsigned int mode, int flags)
    int utimensat(int fd, const char *path, const timespec *times, int flags)
    long UTIME_NOW
    long UTIME_OMIT
    int S_IFCHR

cdef extern from "<unistd.h>" nogil:
    unsigned int geteuid()
    unsigned int getegid()
    int unlinkat(int fd, const char *path, int flags)
    int symlinkat(const char *target, int fd, const char *path)
    int fchownat(int fd, const char *path, unsigned int uid, unsigned int gid, int flags)
    int ftruncate(int fd, int64_t size)

cdef extern from "<stdio.h>" nogil:
    int renameat2(int old_fd, const char *old, int new_fd, const char *new, unsigned int flags)
    int RENAME_NOREPLACE

cdef extern from "<sys/syscall.h>" nogil:
    int SYS_getdents64

cdef extern from "<sched.h>" nogil:
    int unshare(int flags)
    int CLONE_FS

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t size)

cdef size_t name_length(const char *name, size_t size) noexcept nogil:
    """The length of a name that fills `size` bytes with the zero byte at its end; 0: it is none, or not for the lane
    (`.`, `..`, and what hides others in layers as OCI has them)."""
    cdef size_t length
    if size < 2 or size > 256 or name[size - 1] != 0:
        return 0
    length = size - 1
    if strnlen(name, size) != length or memchr(name, b"/", length) != NULL:
        return 0
    if name[0] == b"." and (length == 1 or (length == 2 and name[1] == b".") or (length > 3 and _is_meta(name))):
        return 0
    return length


cdef bint fill_time(timespec *time, uint32_t valid, uint32_t given, uint32_t now, int64_t seconds, uint32_t nanoseconds) noexcept nogil:
    """One of the times of utimensat(2); False: it cannot be."""
    time.tv_sec = 0
    if not valid & given:
        time.tv_nsec = UTIME_OMIT
    elif valid & now:
        time.tv_nsec = UTIME_NOW
    elif nanoseconds >= 1000000000:
        return False
    else:
        time.tv_sec = seconds
        time.tv_nsec = nanoseconds
    return True


cdef bint truncate_at(int root_fd, const char *path, int64_t size) noexcept nogil:
    cdef int fd = openat(root_fd, path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)
    cdef bint done
    if fd < 0:
        return False
    done = ftruncate(fd, size) == 0
    c_close(fd)
    return done
