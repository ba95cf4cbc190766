# What is asked about nodes. Part of lane.pyx.


cdef int _getattr(State *lane, int fd, InHeader *header) noexcept nogil:
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef AttrOut *out = <AttrOut *>(lane.out + OUT)
    if node == NULL or not _attr(lane, node.dir, &node.dir.entries[node.entry], &out.attr):
        return PYTHON
    if out.attr.nlink == 0 and not _count_links(lane, node, &out.attr):
        return PYTHON
    out.attr_valid = FOREVER_S
    out.attr_valid_ns = 0
    out.dummy = 0
    _reply(lane, fd, header, sizeof(AttrOut), 0)
    return ANSWERED


cdef int _readlink(State *lane, int fd, InHeader *header) noexcept nogil:
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef char path[PATH_ROOM]
    cdef Entry *entry
    cdef Part *part
    cdef ssize_t length
    if node == NULL:
        return PYTHON
    entry = &node.dir.entries[node.entry]
    part = &node.dir.parts[entry.part]
    if part.image != NULL:
        length = image_readlink(part.image, _nid(node), lane.out + OUT)
    else:
        path_of(part, node.dir.names + entry.name, entry.length, path)
        length = readlinkat(part.root_fd, path, lane.out + OUT, 4096)
    if length <= 0 or length >= 4096:
        return PYTHON
    _reply(lane, fd, header, <size_t>length, 0)
    return ANSWERED


cdef int _getxattr(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    """Of a real file only what it does not have: ACLs and capabilities are asked for all the time."""
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef char path[PATH_ROOM]
    cdef char proc[PATH_ROOM + 64]
    cdef char *name
    cdef Entry *entry
    cdef Part *part
    if node == NULL or size <= sizeof(GetxattrIn) or body[size - 1] != 0:
        return PYTHON
    name = body + sizeof(GetxattrIn)
    if strlen(name) != size - sizeof(GetxattrIn) - 1:
        return PYTHON
    if _starts(name, "system.posix_acl_") and not lane.acl:
        return PYTHON
    entry = &node.dir.entries[node.entry]
    part = &node.dir.parts[entry.part]
    if part.image != NULL:
        return _getxattr_of_image(lane, fd, header, node, name, (<GetxattrIn *>body).size)
    if _is_policy(name):
        return PYTHON
    path_of(part, node.dir.names + entry.name, entry.length, path)
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", part.root_fd, path)
    if lgetxattr(proc, name, NULL, 0) >= 0 or errno != ENODATA:
        # That there is a capability is noted by Python: see wire/device/killpriv.
        return PYTHON
    _reply(lane, fd, header, 0, ENODATA)
    return ANSWERED


cdef int _getxattr_of_image(State *lane, int fd, InHeader *header, Node *node, char *name, uint32_t room) noexcept nogil:
    cdef Image *image = node.dir.parts[node.dir.entries[node.entry].part].image
    cdef Inode inode
    cdef XattrWalk walk
    cdef Xattr found
    cdef int more
    if _is_policy(name) or not image_inode(image, _nid(node), &inode) or not xattrs_begin(image, &inode, &walk):
        return PYTHON
    while True:
        more = xattrs_next(image, &walk, &found)
        if more < 0:
            return PYTHON
        if more == 0:
            _reply(lane, fd, header, 0, ENODATA)
            return ANSWERED
        if xattr_is(&found, name):
            break
    if not lane.read_only and _same(name, "security.capability"):
        # Noted by Python: see wire/device/killpriv.
        return PYTHON
    if room and room < found.value_length:
        _reply(lane, fd, header, 0, ERANGE)
        return ANSWERED
    memcpy(lane.out + OUT, found.value, found.value_length)
    return _sized(lane, fd, header, found.value_length, room)


cdef int _sized(State *lane, int fd, InHeader *header, uint32_t size, uint32_t room) noexcept nogil:
    """Reply with the `size` bytes that are there, or with their number if that was the question."""
    cdef GetxattrOut *out = <GetxattrOut *>(lane.out + OUT)
    if room == 0:
        out.size, out.padding = size, 0
        size = sizeof(GetxattrOut)
    _reply(lane, fd, header, size, 0)
    return ANSWERED


cdef int _listxattr(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    """Of a real file only that there are none."""
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef char path[PATH_ROOM]
    cdef Entry *entry
    cdef Part *part
    if node == NULL or size < sizeof(GetxattrIn):
        return PYTHON
    entry = &node.dir.entries[node.entry]
    part = &node.dir.parts[entry.part]
    if part.image != NULL:
        return _listxattr_of_image(lane, fd, header, node, (<GetxattrIn *>body).size)
    path_of(part, node.dir.names + entry.name, entry.length, path)
    if marked(part, path):
        return PYTHON
    return _sized(lane, fd, header, 0, (<GetxattrIn *>body).size)


cdef int _listxattr_of_image(State *lane, int fd, InHeader *header, Node *node, uint32_t room) noexcept nogil:
    cdef Image *image = node.dir.parts[node.dir.entries[node.entry].part].image
    cdef Inode inode
    cdef XattrWalk walk
    cdef Xattr found
    cdef char name[256]
    cdef size_t used = 0, length
    cdef int more
    if not image_inode(image, _nid(node), &inode) or not xattrs_begin(image, &inode, &walk):
        return PYTHON
    while True:
        more = xattrs_next(image, &walk, &found)
        if more < 0:
            return PYTHON
        if more == 0:
            break
        if xattr_is_mark(&found):
            if xattr_begins(&found, "overlay.overlay."):
                return PYTHON
            continue
        length = xattr_name(&found, name)
        # Who may see a trusted one, and what shows of foreign marks, is Python's to say.
        if found.prefix == 4 or _is_policy(name) or (_starts(name, "system.") and not lane.acl):
            return PYTHON
        if used + length + 1 > READ_MAX:
            return PYTHON
        memcpy(lane.out + OUT + used, name, length + 1)
        used += length + 1
    if room and room < used:
        _reply(lane, fd, header, 0, ERANGE)
        return ANSWERED
    return _sized(lane, fd, header, <uint32_t>used, room)


# The mount


cdef int _statfs(State *lane, int fd, InHeader *header) noexcept nogil:
    cdef StatfsOut *out = <StatfsOut *>(lane.out + OUT)
    cdef struct_statvfs status
    if lane.statfs_fd < 0 or fstatvfs(lane.statfs_fd, &status) != 0:
        return PYTHON
    memset(out, 0, sizeof(StatfsOut))
    out.blocks, out.bfree, out.bavail = status.f_blocks, status.f_bfree, status.f_bavail
    out.files, out.ffree = status.f_files, status.f_ffree
    out.bsize, out.frsize = <uint32_t>status.f_bsize, <uint32_t>status.f_frsize
    out.namelen = <uint32_t>status.f_namemax
    _reply(lane, fd, header, sizeof(StatfsOut), 0)
    return ANSWERED
