# Copy-up of plain lower files, as overlay.copy_up makes it. Part of lane.pyx.
#
# Plain is a file with one name and without xattrs, whose data is small or not wanted, in a directory that is in the
# upper. The copy is a file without a name in work/work, which gets data, owner, mode, times and origin, and then its
# name by one link: so what fails or crashes before leaves nothing at all, and nothing is replaced by the link.
#
# The node keeps the number of the lower file, which the origin gives it after a remount too. That only holds where
# Python finds the number in the handles of a layer, which it tried with the layer's root: another form of handle, or
# another filesystem within the layer, is its own. So are holes, which take more than one call, files that are open,
# since their descriptors go over to the copy, and data that must be on the disk before the copy is seen.
#
# The directory must be marked impure, or Python's listings of it would have the number of the copy. Python does that:
# its own node of the directory says so, too.

cdef extern from "<fcntl.h>" nogil:
    struct file_handle:
        pass
    int name_to_handle_at(int fd, const char *path, file_handle *handle, int *mount_id, int flags)
    int O_TMPFILE
    int AT_EMPTY_PATH
    int AT_SYMLINK_FOLLOW

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t flistxattr(int fd, char *list, size_t size)
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)

cdef extern from "<sys/stat.h>" nogil:
    int fchmod(int fd, unsigned int mode)
    int futimens(int fd, const timespec *times)

cdef extern from "<unistd.h>" nogil:
    int fchown(int fd, unsigned int uid, unsigned int gid)
    int linkat(int old_fd, const char *old, int new_fd, const char *new, int flags)
    ssize_t pread(int fd, void *buffer, size_t size, int64_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t size, int64_t offset)

cdef enum:
    COPY_MAX = 1 << 18      # bytes: 0.25 ms, where the way through a worker thread takes 0.55
    WAIT_MAX = 1 << 16      # so many are waited for, as in overlay.copy_up; more if they are cached
    CLONE = 0x40049409      # FICLONE
    TYPE_AT = 4             # of the handle's type in an origin


cdef struct Handle:         # struct file_handle
    uint32_t length
    int32_t type
    uint8_t[HANDLE_MAX] bytes


cdef struct Source:
    int fd                  # -1: its data is in an index
    Image *image
    Inode inode             # in that
    struct_stat status
    timespec[2] times
    uint8_t[ORIGIN_MAX] origin


cdef bint copy_up(State *lane, Node *node, uint64_t wanted) noexcept nogil:
    """Give a lower file its place in the upper, with so many bytes of its data as are `wanted`; False: Python should,
    and nothing has changed."""
    cdef Dir *dir = node.dir
    cdef Entry *entry
    cdef Part *part
    cdef Layer *layer
    cdef Source source
    cdef bint done
    if lane.stage_fd < 0 or dir == NULL or node.files != NULL or node.backing or not may_change(lane, dir):
        return False
    entry = &dir.entries[node.entry]
    if entry.upper or entry.type != DT_REG or entry.state != LANE:
        return False
    part = &dir.parts[entry.part]
    layer = <Layer *>map_get(&lane.layers, part.root_fd if part.image == NULL else part.image.objects_fd)
    if layer == NULL or layer.position != part.position:
        return False
    source.fd = -1
    source.image = part.image
    memcpy(source.origin, layer.origin, layer.length)
    if part.image != NULL:
        done = _source_in_image(part.image, _nid(node), layer, &source)
    else:
        done = _source(dir, entry, part, layer, &source)
    if done and <uint64_t>source.status.st_size < wanted:
        wanted = <uint64_t>source.status.st_size
    # Setuid and setgid are cleared for some callers: the verb judges.
    if done and (source.status.st_nlink != 1 or source.status.st_mode & (S_ISUID | S_ISGID)):
        done = False
    if done and wanted and (wanted > COPY_MAX or lane.syncs):
        done = False
    if done and not dir.impure:
        lane.wanted = dir.id
        lane.wanted_listing = False
        lane.wanted_impure = True
        done = False
    if done:
        done = _place_copy(lane, node, entry, layer, &source, <size_t>wanted)
    if source.fd >= 0:
        c_close(source.fd)
    return done


# What is copied


cdef bint _source(Dir *dir, Entry *entry, Part *part, Layer *layer, Source *source) noexcept nogil:
    """False: it is not as it should be, or not plain. The descriptor is the caller's either way."""
    cdef char path[PATH_ROOM]
    cdef Handle handle
    cdef int mount_id
    path_of(part, dir.names + entry.name, entry.length, path)
    source.fd = openat(part.root_fd, path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | part.open_flags)
    if source.fd < 0 or fstat(source.fd, &source.status) != 0 or not S_ISREG(source.status.st_mode):
        return False
    if source.status.st_dev != part.device or (part.position << 48 | <uint64_t>source.status.st_ino) != entry.ino:
        return False
    if source.status.st_blocks * 512 < source.status.st_size or flistxattr(source.fd, NULL, 0) != 0:
        return False
    handle.length = HANDLE_MAX
    if name_to_handle_at(source.fd, "", <file_handle *>&handle, &mount_id, AT_EMPTY_PATH) != 0:
        return False
    if HANDLE_AT + handle.length != layer.length or handle.type != source.origin[TYPE_AT]:
        return False
    memcpy(source.origin + HANDLE_AT, handle.bytes, handle.length)
    _times_of(source.times, &source.status)
    return True


cdef bint _source_in_image(Image *image, uint64_t nid, Layer *layer, Source *source) noexcept nogil:
    """The same of an inode of an image, whose handle is its number (layerstore.index.handles)."""
    cdef char path[OBJECT_PATH + 1]
    cdef struct_stat *status = &source.status
    cdef struct_stat of_object
    cdef XattrWalk walk
    cdef Xattr found
    cdef uint32_t each
    cdef int more = 1, where
    if layer.length != HANDLE_AT + 8 or not image_inode(image, nid, &source.inode):
        return False
    if not xattrs_begin(image, &source.inode, &walk):
        return False
    while True:
        more = xattrs_next(image, &walk, &found)
        if more <= 0:
            break
        if not xattr_is_mark(&found) or xattr_begins(&found, "overlay.overlay."):
            return False
    where = image_content(image, &source.inode, path)
    if more < 0 or not (where == CONTENT_INLINE or where == CONTENT_OBJECT):
        return False
    status.st_mode, status.st_nlink = source.inode.mode, source.inode.nlink
    status.st_uid, status.st_gid = source.inode.uid, source.inode.gid
    status.st_size = <int64_t>source.inode.size
    for each in range(2):
        source.times[each].tv_sec, source.times[each].tv_nsec = source.inode.mtime_s, source.inode.mtime_ns
    status.st_dev = 0
    if where == CONTENT_OBJECT:
        source.fd = openat(image.objects_fd, path, O_RDONLY | O_CLOEXEC)
        if source.fd < 0 or fstat(source.fd, &of_object) != 0:
            return False
        if of_object.st_size != status.st_size or of_object.st_blocks * 512 < of_object.st_size:
            return False
        status.st_dev = of_object.st_dev
    for each in range(8):
        source.origin[HANDLE_AT + each] = <uint8_t>(nid >> 8 * each)
    return True


# The copy


cdef bint _place_copy(State *lane, Node *node, Entry *entry, Layer *layer, Source *source, size_t size) noexcept nogil:
    cdef Dir *dir = node.dir
    cdef struct_stat made
    cdef struct_stat before
    cdef timespec times[2]
    cdef char path[PATH_ROOM]
    cdef const char *parent = "."
    cdef int opened = open_new(lane.stage_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0o600)
    cdef bint done
    if opened < 0:
        if errno == EOPNOTSUPP:
            # This filesystem makes no files without a name.
            lane.stage_fd = -1
        return False
    done = (
        fstat(opened, &made) == 0
        and made.st_dev == dir.upper.device
        and 1 < made.st_ino < (<uint64_t>1 << 48)
        and _copy_attributes(opened, &made, lane, source, size)
        and fsetxattr(opened, lane.origin, source.origin, layer.length, 0) == 0
    )
    if dir.upper.length:
        parent = dir.upper.path
    path_of(&dir.upper, dir.names + entry.name, entry.length, path)
    if done and fstatat(dir.upper.root_fd, parent, &before, AT_SYMLINK_NOFOLLOW) == 0 and _link(opened, dir.upper.root_fd, path):
        # A copy-up changes nothing that callers see.
        _times_of(times, &before)
        utimensat(dir.upper.root_fd, parent, times, AT_SYMLINK_NOFOLLOW)
        node.real = dir.upper.position << 48 | <uint64_t>made.st_ino
        entry.upper = entry.ended = True
    else:
        done = False
    c_close(opened)
    return done


cdef bint _copy_attributes(int opened, struct_stat *made, State *lane, Source *source, size_t size) noexcept nogil:
    """Data, owner, mode and times, in the order in which none undoes another."""
    cdef struct_stat *status = &source.status
    if size and not _copy_data(lane, source, opened, made, size):
        return False
    if (made.st_uid != status.st_uid or made.st_gid != status.st_gid) and fchown(opened, status.st_uid, status.st_gid) != 0:
        return False
    return fchmod(opened, status.st_mode & 0o7777) == 0 and futimens(opened, source.times) == 0


cdef void _times_of(timespec *times, struct_stat *status) noexcept nogil:
    times[0].tv_sec, times[0].tv_nsec = status.st_atime, LANE_ATIME_NS(status[0])
    times[1].tv_sec, times[1].tv_nsec = status.st_mtime, LANE_MTIME_NS(status[0])


cdef bint _copy_data(State *lane, Source *source, int opened, struct_stat *made, size_t size) noexcept nogil:
    """The first `size` bytes, shared with the lower file where the filesystem can."""
    if source.fd < 0:
        image_copy(source.image, &source.inode, 0, size, lane.out)
    else:
        if lane.clones and source.status.st_dev == made.st_dev and size == <uint64_t>source.status.st_size:
            if c_ioctl(opened, CLONE, <void *><size_t>source.fd) == 0:
                return True
            lane.clones = False
        if not _read_all(source.fd, lane.out, size):
            return False
    return pwrite(opened, lane.out, size, 0) == <ssize_t>size


cdef bint _read_all(int opened, char *into, size_t size) noexcept nogil:
    """False: the file is shorter, or is not cached."""
    cdef iovec part
    cdef ssize_t count
    if size > WAIT_MAX:
        part.iov_base, part.iov_len = into, size
        count = preadv2(opened, &part, 1, 0, RWF_NOWAIT)
        # A filesystem that has no way to say so has its data in memory, as tmpfs.
        if count >= 0 or errno != EOPNOTSUPP:
            return count == <ssize_t>size
    return pread(opened, into, size, 0) == <ssize_t>size


cdef bint _link(int opened, int root_fd, const char *path) noexcept nogil:
    """Give a file without a name this one, which is free."""
    cdef char proc[64]
    if linkat(opened, "", root_fd, path, AT_EMPTY_PATH) == 0:
        return True
    if errno != ENOENT:
        return False
    # Without CAP_DAC_READ_SEARCH, before Linux 6.10.
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", opened)
    return linkat(AT_FDCWD, proc, root_fd, path, AT_SYMLINK_FOLLOW) == 0
