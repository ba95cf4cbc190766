# Reading real directories and files for the lane. Part of lane.pyx.

from posix.stat cimport S_ISLNK, S_ISREG, fstatat, struct_stat
from posix.unistd cimport close as c_close

cdef extern from "<fcntl.h>" nogil:
    int openat(int fd, const char *path, int flags)
    int AT_SYMLINK_NOFOLLOW
    int O_ACCMODE
    int O_CLOEXEC
    int O_DIRECTORY
    int O_NOATIME
    int O_NOFOLLOW
    int O_NONBLOCK
    int O_RDONLY
    int O_TRUNC

cdef extern from "<unistd.h>" nogil:
    ssize_t readlinkat(int fd, const char *path, char *buffer, size_t size)

cdef extern from "<dirent.h>" nogil:
    struct dirent:
        uint64_t d_ino
        unsigned char d_type
        char *d_name
    ctypedef struct DIR:
        pass
    DIR *fdopendir(int fd)
    dirent *readdir(DIR *directory)
    int closedir(DIR *directory)

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t llistxattr(const char *path, char *list, size_t size)
    ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size)
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *target, size_t size, const char *format, ...)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    SYS_LISTXATTRAT = 465   # on every architecture
    PATH_ROOM = 4500
    STEP_MAX = 3700     # of the path of a directory; a name comes after it, /proc/self/fd/N/ before it


cdef size_t path_of(Part *part, const char *name, size_t length, char *out) noexcept nogil:
    """The path of a name below the part's layer, ended by a zero byte; returns its length."""
    cdef size_t used = part.length
    if used:
        memcpy(out, part.path, used)
        out[used] = b"/"
        used += 1
    memcpy(out + used, name, length)
    out[used + length] = 0
    return used + length


cdef bint _is_meta(const char *name) noexcept nogil:
    """Names that hide others in layers as OCI has them."""
    return name[0] == b"." and name[1] == b"w" and name[2] == b"h" and name[3] == b"."


cdef int dir_scan(Dir *dir, uint32_t part_number, int root_fd, const char *path, bint upper, uint32_t names_max) noexcept nogil:
    """Add the names of one real directory to those of the directories above it.

    Returns 0: done; 1: not for the lane (a name that hides others, too many names, not readable).
    """
    cdef dirent *row
    cdef Entry *entry
    cdef size_t length
    cdef int result = 0
    cdef int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW
    cdef const char *here = "."
    if path[0]:
        here = path
    cdef int fd = openat(root_fd, here, flags | O_NOATIME)
    if fd < 0:
        if upper:
            # Reading it would move its access time.
            return 1
        fd = openat(root_fd, here, flags)
    if fd < 0:
        return 1
    cdef DIR *directory = fdopendir(fd)
    if directory == NULL:
        c_close(fd)
        return 1
    while True:
        row = readdir(directory)
        if row == NULL:
            break
        if row.d_name[0] == b"." and (row.d_name[1] == 0 or (row.d_name[1] == b"." and row.d_name[2] == 0)):
            continue
        length = strlen(row.d_name)
        if _is_meta(row.d_name) or length > 255 or dir.count >= names_max:
            result = 1
            break
        if dir_find(dir, row.d_name, length) != NULL:
            continue
        entry = dir_add(dir, row.d_name, length)
        if entry == NULL:
            result = 1
            break
        entry.type = row.d_type
        if upper:
            entry.state = UNSURE
            dir.unsure += 1
            continue
        entry.part = <uint16_t>part_number
        entry.ino = row.d_ino
        if row.d_type == DT_REG or row.d_type == DT_LNK:
            entry.state = LANE
        elif row.d_type == DT_UNKNOWN or row.d_type == DT_CHR:
            entry.state = UNSURE
            dir.unsure += 1
        else:
            entry.state = OTHER
        if entry.state != UNSURE:
            if not 1 < entry.ino < (<uint64_t>1 << 48):
                entry.state = UNSURE
                dir.unsure += 1
            entry.ino |= dir.parts[part_number].position << 48
    closedir(directory)
    return result


cdef bint _listxattrat_missing = False


cdef bint marked(Part *part, const char *path) noexcept nogil:
    """Whether a file has any xattr at all, or that cannot be told: its marks are Python's to judge."""
    global _listxattrat_missing
    cdef char proc[PATH_ROOM + 64]
    cdef ssize_t count
    if not _listxattrat_missing:
        # Linux 6.13; a path through /proc costs 2 us more.
        count = syscall(SYS_LISTXATTRAT, part.root_fd, path, AT_SYMLINK_NOFOLLOW, NULL, 0)
        if count >= 0 or errno != ENOSYS:
            return count != 0
        _listxattrat_missing = True
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", part.root_fd, path)
    return llistxattr(proc, NULL, 0) != 0
