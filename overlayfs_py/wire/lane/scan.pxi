# Reading real directories and files for the lane. Part of lane.pyx.

from posix.stat cimport S_ISDIR, S_ISLNK, S_ISREG, fstatat, struct_stat
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
    int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *target, size_t size, const char *format, ...)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from *:
    """
    #define LANE_ATIME_NS(s) ((s).st_atim.tv_nsec)
    #define LANE_MTIME_NS(s) ((s).st_mtim.tv_nsec)
    #define LANE_CTIME_NS(s) ((s).st_ctim.tv_nsec)
    """
    uint32_t LANE_ATIME_NS(struct_stat status) nogil
    uint32_t LANE_MTIME_NS(struct_stat status) nogil
    uint32_t LANE_CTIME_NS(struct_stat status) nogil

cdef enum:
    SYS_SETXATTRAT = 463    # Linux 6.13, on every architecture
    SYS_GETXATTRAT = 464
    SYS_LISTXATTRAT = 465
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
        entry = dir_find(dir, row.d_name, length)
        if entry != NULL:
            if not _add_below(dir, entry, part_number, row.d_type):
                result = 1
                break
            continue
        entry = dir_add(dir, row.d_name, length)
        if entry == NULL:
            result = 1
            break
        entry.type = row.d_type
        entry.upper = upper
        entry.part = <uint16_t>part_number
        entry.ino = row.d_ino
        if row.d_type == DT_REG or row.d_type == DT_LNK or row.d_type == DT_DIR:
            entry.state = LANE
        elif row.d_type == DT_UNKNOWN or row.d_type == DT_CHR:
            _unsure(dir, entry)
        else:
            entry.state = OTHER
        if entry.state != UNSURE:
            if not 1 < entry.ino < (<uint64_t>1 << 48):
                _unsure(dir, entry)
            entry.ino |= part_of(dir, entry).position << 48
    closedir(directory)
    return result


cdef bint _add_below(Dir *dir, Entry *entry, uint32_t part_number, uint8_t type) noexcept nogil:
    """A name that is known already is in a part below; False: no memory."""
    if entry.upper:
        entry.ended = 1
        if entry.type == DT_DIR and entry.state == LANE:
            # Merged, or opaque over what is there.
            entry.state = OTHER
        return True
    if entry.state == UNSURE or entry.type != DT_DIR or entry.ended:
        return True
    if type == DT_DIR:
        return dir_add_place(dir, entry, part_number)
    if type == DT_UNKNOWN:
        _unsure(dir, entry)
    # A whiteout, or something that is no directory: nothing below it is merged in.
    entry.ended = 1
    return True


cdef bint _xattrat_missing = False


cdef struct XattrArgs:      # struct xattr_args
    uint64_t value
    uint32_t size
    uint32_t flags


cdef extern from *:
    """
    #define LANE_LABEL "security.selinux"
    """
    const char[17] LABEL "LANE_LABEL"


cdef bint marked(Part *part, const char *path) noexcept nogil:
    """Whether a file has any xattr that could be a mark, or that cannot be told: its marks are Python's to judge."""
    return not has_only(part, path, NULL)


cdef bint has_only(Part *part, const char *path, const char *allowed) noexcept nogil:
    """Whether a file has no xattr but this one, which may be NULL, and the label that SELinux gives all of them."""
    cdef char names[128]
    cdef ssize_t length = list_xattrs(part, path, names, sizeof(names))
    cdef char *name = names
    if length < 0:
        return False
    while name < names + length:
        if not _same(name, LABEL) and (allowed == NULL or not _same(name, allowed)):
            return False
        name += strlen(name) + 1
    return True


cdef ssize_t list_xattrs(Part *part, const char *path, char *names, uint32_t size) noexcept nogil:
    """llistxattr(2) of what is at a path."""
    global _xattrat_missing
    cdef char proc[PATH_ROOM + 64]
    cdef ssize_t count
    if not _xattrat_missing:
        # A path through /proc costs 2 us more.
        count = syscall(SYS_LISTXATTRAT, part.root_fd, path, AT_SYMLINK_NOFOLLOW, names, <size_t>size)
        if count >= 0 or errno != ENOSYS:
            return count
        _xattrat_missing = True
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", part.root_fd, path)
    return llistxattr(proc, names, size)


cdef ssize_t get_xattr(Part *part, const char *path, const char *name, void *value, uint32_t size) noexcept nogil:
    """lgetxattr(2) of what is at a path."""
    global _xattrat_missing
    cdef char proc[PATH_ROOM + 64]
    cdef XattrArgs args
    cdef ssize_t count
    if not _xattrat_missing:
        args.value, args.size, args.flags = <uint64_t>value, size, 0
        count = syscall(SYS_GETXATTRAT, part.root_fd, path, AT_SYMLINK_NOFOLLOW, name, &args, sizeof(XattrArgs))
        if count >= 0 or errno != ENOSYS:
            return count
        _xattrat_missing = True
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", part.root_fd, path)
    return lgetxattr(proc, name, value, size)


cdef bint set_xattr(Part *part, const char *path, const char *name, const char *value, uint32_t size) noexcept nogil:
    """lsetxattr(2) of what is at a path; False: it failed."""
    global _xattrat_missing
    cdef char proc[PATH_ROOM + 64]
    cdef XattrArgs args
    if not _xattrat_missing:
        args.value, args.size, args.flags = <uint64_t>value, size, 0
        if syscall(SYS_SETXATTRAT, part.root_fd, path, AT_SYMLINK_NOFOLLOW, name, &args, sizeof(XattrArgs)) == 0:
            return True
        if errno != ENOSYS:
            return False
        _xattrat_missing = True
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", part.root_fd, path)
    return lsetxattr(proc, name, value, size, 0) == 0


cdef bint part_path(Part *part, const char *path, size_t length, const char *name, size_t name_length) noexcept nogil:
    """Set the part's path to `path`, with `name` below it unless that is NULL; False: no memory, or too long."""
    cdef size_t whole = length
    if name != NULL:
        whole += name_length + (1 if length else 0)
    if whole > STEP_MAX:
        return False
    part.path = <char *>malloc(whole + 1)
    if part.path == NULL:
        return False
    memcpy(part.path, path, length)
    if name != NULL:
        if length:
            part.path[length] = c"/"
        memcpy(part.path + whole - name_length, name, name_length)
    part.path[whole] = 0
    part.length = whole
    return True


cdef bint part_below(Dir *dir, Part *above, Dir *parent, Entry *entry) noexcept nogil:
    """Add the directory `entry`, as it is in the part `above` of its parent, to the parts of `dir`."""
    cdef Part *part = &dir.parts[dir.part_count]
    part.root_fd, part.open_flags, part.device = above.root_fd, above.open_flags, above.device
    part.position, part.image = above.position, above.image
    if above.image != NULL:
        part.nid = entry.ino & ((<uint64_t>1 << 48) - 1)
    elif not part_path(part, above.path, above.length, parent.names + entry.name, entry.length):
        return False
    dir.part_count += 1
    return True


cdef int dir_scan_all(Dir *dir, uint32_t names_max) noexcept nogil:
    """Read the names of all parts. Returns 0: done; 1: not for the lane."""
    cdef uint32_t each
    cdef int result
    for each in range(dir.part_count):
        if dir.parts[each].image != NULL:
            result = dir_scan_image(dir, each, names_max)
        else:
            result = dir_scan(dir, each, dir.parts[each].root_fd, dir.parts[each].path, False, names_max)
        if result:
            return result
    dir_trim(dir)
    dir.limit = dir.count * 2 + NAMES_ADDED
    return 0


cdef void _fill_attr(Attr *attr, struct_stat *status, uint64_t ino) noexcept nogil:
    memset(attr, 0, sizeof(Attr))
    attr.ino = ino
    attr.size = <uint64_t>status.st_size
    attr.blocks = <uint64_t>status.st_blocks
    attr.atime = <int64_t>status.st_atime
    attr.mtime = <int64_t>status.st_mtime
    attr.ctime = <int64_t>status.st_ctime
    attr.atime_ns = LANE_ATIME_NS(status[0])
    attr.mtime_ns = LANE_MTIME_NS(status[0])
    attr.ctime_ns = LANE_CTIME_NS(status[0])
    attr.mode = status.st_mode
    attr.nlink = <uint32_t>status.st_nlink
    attr.uid = status.st_uid
    attr.gid = status.st_gid
    attr.blksize = <uint32_t>status.st_blksize


cdef bint plain_attr(Dir *dir, Entry *entry, Attr *attr) noexcept nogil:
    """What an entry of real directories shows: a file, a symlink or a directory without marks; False: Python should
    look. Of a directory whose parts do not say by themselves how many directories it shows, st_nlink is 0."""
    cdef char path[PATH_ROOM]
    cdef struct_stat status
    cdef struct_stat below
    cdef Part *part = part_of(dir, entry)
    cdef uint32_t place = entry.first
    path_of(part, dir.names + entry.name, entry.length, path)
    if fstatat(part.root_fd, path, &status, AT_SYMLINK_NOFOLLOW) != 0 or status.st_dev != part.device:
        return False
    if (part.position << 48 | <uint64_t>status.st_ino) != real_number(entry) or status.st_mode >> 12 != entry.type:
        return False
    _fill_attr(attr, &status, entry.ino)
    if entry.upper:
        # Once it is the lane's, nobody else can mark it.
        return status.st_nlink == 1 and (entry.node != NULL or not marked(part, path))
    if S_ISREG(status.st_mode):
        return status.st_size != 0 or not marked(part, path)
    if not S_ISDIR(status.st_mode):
        return S_ISLNK(status.st_mode)
    if marked(part, path):
        return False
    while place:
        part = &dir.parts[dir.places[place - 1].part]
        path_of(part, dir.names + entry.name, entry.length, path)
        if fstatat(part.root_fd, path, &below, AT_SYMLINK_NOFOLLOW) != 0 or below.st_dev != part.device:
            return False
        if not S_ISDIR(below.st_mode) or marked(part, path):
            return False
        if below.st_nlink != 2:
            attr.nlink = 0
        place = dir.places[place - 1].next
    return True
