# What is asked about nodes. Part of lane.pyx.


cdef int _getattr(State *lane, int fd, InHeader *header) noexcept nogil:
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef AttrOut *out = <AttrOut *>(lane.out + OUT)
    if node == NULL:
        return _getattr_directory(lane, fd, header)
    if not _attr_of_node(lane, node, &out.attr):
        return PYTHON
    out.attr_valid = 0 if node.writers else FOREVER_S
    out.attr_valid_ns = 0
    out.dummy = 0
    _reply(lane, fd, header, sizeof(AttrOut), 0)
    return ANSWERED


cdef bint _attr_of_node(State *lane, Node *node, Attr *attr) noexcept nogil:
    """What a node shows, with a name or without; False: Python should look."""
    cdef struct_stat status
    if node.dir != NULL:
        if not _attr(lane, node.dir, &node.dir.entries[node.entry], attr):
            return False
        return attr.nlink != 0 or _count_links(lane, node, attr)
    if node.held == NULL:
        if fstat(node.pin, &status) != 0:
            return False
    elif node.held.image != NULL:
        return False
    elif fstatat(node.held.root_fd, node.held.path, &status, AT_SYMLINK_NOFOLLOW) != 0:
        return False
    _fill_attr(attr, &status, node.ino)
    attr.nlink = 0
    return True


cdef int _getattr_directory(State *lane, int fd, InHeader *header) noexcept nogil:
    """After each change of a name the kernel asks for its directory. One that is not known to be in the upper may be
    copied up at any time.
    """
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef AttrOut *out = <AttrOut *>(lane.out + OUT)
    cdef const char *path = "."
    cdef struct_stat status
    if dir == NULL or not dir.has_upper or not dir.links or dir.links_epoch != lane.links_epoch:
        return PYTHON
    if not _is_placed(lane, dir):
        return PYTHON
    if dir.upper.length:
        path = dir.upper.path
    if fstatat(dir.upper.root_fd, path, &status, AT_SYMLINK_NOFOLLOW) != 0:
        return PYTHON
    out.attr_valid = FOREVER_S
    out.attr_valid_ns = 0
    out.dummy = 0
    _fill_attr(&out.attr, &status, dir.ino)
    out.attr.nlink = dir.links
    _reply(lane, fd, header, sizeof(AttrOut), 0)
    return ANSWERED


cdef bint _has_place(State *lane, Node *node) noexcept nogil:
    """Whether the node's object is where its entry says."""
    if node.dir == NULL:
        return False
    return not node.dir.entries[node.entry].upper or _is_placed(lane, node.dir)


cdef int _readlink(State *lane, int fd, InHeader *header) noexcept nogil:
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef char path[PATH_ROOM]
    cdef Entry *entry
    cdef Part *part
    cdef ssize_t length
    if node == NULL or not _has_place(lane, node):
        return PYTHON
    entry = &node.dir.entries[node.entry]
    part = part_of(node.dir, entry)
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
    """Of a real file only what it does not have, since ACLs and capabilities are asked for all the time, and the label
    that SELinux gives it."""
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef char path[PATH_ROOM]
    cdef ssize_t length
    cdef char *name
    cdef Entry *entry
    cdef Part *part
    if node == NULL or not _has_place(lane, node) or size <= sizeof(GetxattrIn) or body[size - 1] != 0:
        return PYTHON
    name = body + sizeof(GetxattrIn)
    if strlen(name) != size - sizeof(GetxattrIn) - 1:
        return PYTHON
    if _starts(name, "system.posix_acl_") and not lane.acl:
        return PYTHON
    entry = &node.dir.entries[node.entry]
    part = part_of(node.dir, entry)
    if part.image != NULL:
        return _getxattr_of_image(lane, fd, header, node, name, (<GetxattrIn *>body).size)
    if _is_policy(name):
        return PYTHON
    if entry.upper and _same(name, "security.capability"):
        # It had none when it was made or first met, and Python would know of one since.
        _reply(lane, fd, header, 0, ENODATA)
        return ANSWERED
    path_of(part, node.dir.names + entry.name, entry.length, path)
    length = get_xattr(part, path, name, lane.out + OUT, READ_MAX)
    if length >= 0 and _same(name, LABEL):
        return _fitting(lane, fd, header, <uint32_t>length, (<GetxattrIn *>body).size)
    if length >= 0 or errno != ENODATA:
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
    memcpy(lane.out + OUT, found.value, found.value_length)
    return _fitting(lane, fd, header, found.value_length, room)


cdef int _fitting(State *lane, int fd, InHeader *header, uint32_t size, uint32_t room) noexcept nogil:
    """Reply with the `size` bytes that are there, or with their number if that was the question."""
    cdef GetxattrOut *out = <GetxattrOut *>(lane.out + OUT)
    if room and room < size:
        _reply(lane, fd, header, 0, ERANGE)
        return ANSWERED
    if room == 0:
        out.size, out.padding = size, 0
        size = sizeof(GetxattrOut)
    _reply(lane, fd, header, size, 0)
    return ANSWERED


cdef int _listxattr(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    """Of a real file only that there are none that callers see but its label."""
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef char path[PATH_ROOM]
    cdef char names[128]
    cdef ssize_t length
    cdef Entry *entry
    cdef Part *part
    if node == NULL or not _has_place(lane, node) or size < sizeof(GetxattrIn):
        return PYTHON
    entry = &node.dir.entries[node.entry]
    part = part_of(node.dir, entry)
    if part.image != NULL:
        return _listxattr_of_image(lane, fd, header, node, (<GetxattrIn *>body).size)
    path_of(part, node.dir.names + entry.name, entry.length, path)
    length = list_xattrs(part, path, names, sizeof(names))
    if length == sizeof(LABEL) and _same(names, LABEL):
        memcpy(lane.out + OUT, LABEL, sizeof(LABEL))
        return _fitting(lane, fd, header, sizeof(LABEL), (<GetxattrIn *>body).size)
    if length and not (entry.upper and length == <ssize_t>strlen(lane.opaque) + 1 and has_plain_marks(lane, part, path)):
        return PYTHON
    return _fitting(lane, fd, header, 0, (<GetxattrIn *>body).size)


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
    return _fitting(lane, fd, header, <uint32_t>used, room)


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
