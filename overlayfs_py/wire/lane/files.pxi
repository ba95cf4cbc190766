# Open files. Part of lane.pyx.
#
# Where files are handed to the kernel, what the first open of an inode decides holds until its last is released, as
# in wire.device.passthrough. A file whose data is in an index is read from there.


cdef int _open(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Node *node
    cdef Entry *entry
    cdef Part *part
    cdef uint32_t flags
    cdef int opened = -1
    if size < sizeof(OpenIn):
        return PYTHON
    flags = (<OpenIn *>body).flags
    node = <Node *>map_get(&lane.nodes, header.nodeid)
    if node == NULL or node.dir == NULL:
        return PYTHON
    entry = &node.dir.entries[node.entry]
    if entry.upper:
        return open_upper(lane, fd, header, node, flags)
    if entry.type != DT_REG:
        return PYTHON
    if flags & O_ACCMODE or flags & O_TRUNC:
        if not lane.hands_over or not flags & O_ACCMODE or not copy_up(lane, node, 0 if flags & O_TRUNC else <uint64_t>-1):
            return PYTHON
        return open_upper(lane, fd, header, node, flags)
    if node.backing == 0:
        part = &node.dir.parts[entry.part]
        if part.image != NULL:
            if not _open_object(lane, part.image, node, &opened):
                return PYTHON
        else:
            opened = _open_plain(lane, node, entry, part)
            if opened < 0:
                return PYTHON
        if lane.backed and opened >= 0 and node.files == NULL:
            node.backing = _back(lane, fd, opened)
            c_close(opened)
            opened = -1
            if node.backing == 0:
                return PYTHON
    return _opened(lane, fd, header, node, opened, flags)


cdef int _open_plain(State *lane, Node *node, Entry *entry, Part *part) noexcept nogil:
    cdef char path[PATH_ROOM]
    cdef int opened
    path_of(part, node.dir.names + entry.name, entry.length, path)
    opened = openat(part.root_fd, path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | part.open_flags)
    if opened >= 0 and fgetxattr(opened, lane.metacopy, NULL, 0) >= 0:
        c_close(opened)
        return -1
    return opened


cdef bint _open_object(State *lane, Image *image, Node *node, int *opened) noexcept nogil:
    """Sets `opened` to -1 where the data is in the index; False: Python should open it."""
    cdef Inode inode
    cdef char path[OBJECT_PATH + 1]
    cdef int where
    if not image_inode(image, _nid(node), &inode):
        return False
    where = image_content(image, &inode, path)
    opened[0] = -1
    if where == CONTENT_OBJECT:
        opened[0] = openat(image.objects_fd, path, O_RDONLY | O_CLOEXEC)
        return opened[0] >= 0
    return where != CONTENT_DAMAGED


cdef int32_t _back(State *lane, int fd, int opened) noexcept nogil:
    """Hand a file to the kernel; returns its backing id, 0: it takes none from this filesystem."""
    cdef BackingMap map
    cdef int backing
    map.fd, map.flags, map.padding = opened, 0, 0
    backing = c_ioctl(fd, BACKING_OPEN, &map)
    return backing if backing > 0 else 0


cdef int _opened(State *lane, int fd, InHeader *header, Node *node, int opened, uint32_t flags) noexcept nogil:
    cdef OpenOut *out = <OpenOut *>(lane.out + OUT)
    cdef File *file = <File *>calloc(1, sizeof(File))
    if file != NULL:
        file.fh = lane.next
        if not map_put(&lane.files, file.fh, file):
            free(file)
            file = NULL
    if file == NULL:
        if opened >= 0:
            c_close(opened)
        _unback(lane, fd, node)
        return PYTHON
    lane.next += 1
    file.fd = opened
    file.flags = flags
    file.uid, file.gid, file.pid = header.uid, header.gid, header.pid
    file.node = node
    file.next = node.files
    node.files = file
    if flags & O_ACCMODE:
        node.writers += 1
        if node.writers == 1:
            attributes_move(fd, node)
    out.fh = file.fh
    out.open_flags = FOPEN_PASSTHROUGH if node.backing else lane.file_flags
    out.backing_id = node.backing
    if not _reply(lane, fd, header, sizeof(OpenOut), 0):
        _close_file(lane, fd, file)
    return ANSWERED


cdef void _unback(State *lane, int fd, Node *node) noexcept nogil:
    """Take a file back from the kernel once it is not open any more."""
    cdef uint32_t id
    if node.backing and node.files == NULL:
        id = <uint32_t>node.backing
        c_ioctl(fd, BACKING_CLOSE, &id)
        node.backing = 0


cdef void _close_file(State *lane, int fd, File *file) noexcept nogil:
    cdef Node *node = file.node
    cdef File **link = &node.files
    while link[0] != NULL and link[0] != file:
        link = &link[0].next
    if link[0] == file:
        link[0] = file.next
    map_pop(&lane.files, file.fh)
    if file.fd >= 0:
        c_close(file.fd)
    if file.flags & O_ACCMODE:
        node.writers -= 1
    free(file)
    _unback(lane, fd, node)
    _free_unknown(lane, node)


cdef int _ioctl(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    """Only that a file is no terminal, which Python and libc ask of each one that they open."""
    if size < sizeof(IoctlIn) or (<IoctlIn *>body).order >> 8 != c"T":
        return PYTHON
    _reply(lane, fd, header, 0, ENOTTY)
    return ANSWERED


cdef int _release(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef File *file
    if size < sizeof(ReleaseIn):
        return PYTHON
    file = <File *>map_get(&lane.files, (<ReleaseIn *>body).fh)
    if file == NULL:
        return PYTHON
    _reply(lane, fd, header, 0, 0)
    _close_file(lane, fd, file)
    return ANSWERED


cdef int _read(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef ReadIn *request = <ReadIn *>body
    cdef File *file
    cdef iovec part
    cdef ssize_t count
    cdef struct_stat status
    if size < sizeof(ReadIn) or request.size > READ_MAX or request.offset >> 62:
        return PYTHON
    file = <File *>map_get(&lane.files, request.fh)
    if file == NULL:
        return PYTHON
    if file.fd < 0:
        return _read_index(lane, fd, header, file, request)
    part.iov_base = lane.out + OUT
    part.iov_len = request.size
    count = preadv2(file.fd, &part, 1, <int64_t>request.offset, RWF_NOWAIT)
    if count < 0 and errno == EOPNOTSUPP:
        # A filesystem that has no way to say so has its data in memory, as tmpfs.
        count = preadv2(file.fd, &part, 1, <int64_t>request.offset, 0)
    if count < 0:
        return PYTHON
    if <size_t>count < request.size:
        if fstat(file.fd, &status) != 0 or <int64_t>request.offset + count < status.st_size:
            return PYTHON
    _reply(lane, fd, header, <size_t>count, 0)
    return ANSWERED


cdef int _read_index(State *lane, int fd, InHeader *header, File *file, ReadIn *request) noexcept nogil:
    """Read what is in an index: the data of a small file, or that there is none but zeros."""
    cdef Node *node = file.node
    cdef Image *image = NULL
    cdef Inode inode
    cdef size_t count = request.size
    if node.dir != NULL:
        image = part_of(node.dir, &node.dir.entries[node.entry]).image
    if image == NULL or node.backing or not image_inode(image, _nid(node), &inode):
        return PYTHON
    if request.offset >= inode.size:
        count = 0
    elif inode.size - request.offset < count:
        count = <size_t>(inode.size - request.offset)
    if inode.layout == LAYOUT_CHUNKED:
        memset(lane.out + OUT, 0, count)
    elif not image_data(image, &inode):
        return PYTHON
    else:
        image_copy(image, &inode, request.offset, count, lane.out + OUT)
    _reply(lane, fd, header, count, 0)
    return ANSWERED
