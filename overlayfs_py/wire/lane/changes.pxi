# Changes that take one system call in the upper, and the open files of what is there. Part of lane.pyx.
#
# A published directory that is in the upper may be changed here: a new file or symlink under a name that no layer has,
# a name of a plain upper file that goes, moves or replaces one, a whiteout over a plain lower file, attributes of a
# plain upper file. Plain is what has no xattr but SELinux's label when it is first met, and one link: so there is no mark
# that a verb would have to read or write. Everything else, errors too, is for the verbs to do, from the start.
#
# Where the upper's files go to the kernel, all opens of one are in passthrough with one backing id; while it is open for
# writing its attributes change without a request, and the kernel is told not to keep them. Elsewhere opens are Python's.


cdef bint may_change(State *lane, Dir *dir) noexcept nogil:
    """Whether names in a directory may be changed here; if only its path in the upper is missing, that is asked for."""
    return lane.changes and not lane.held and dir != NULL and not dir.closed and _is_placed(lane, dir)


cdef Entry *new_name(Dir *dir, const char *name, size_t length) noexcept nogil:
    """An entry for a name that no layer has, FREE; NULL: Python should do it."""
    cdef Entry *entry = dir_find(dir, name, length)
    if entry != NULL:
        return entry if entry.state == FREE else NULL
    if dir.free_count >= COMPACT_MIN and dir.free_count > dir.count // 2:
        dir_compact(dir)
    entry = dir_add(dir, name, length)
    if entry != NULL:
        entry.state = FREE
        dir.free_count += 1
    return entry


cdef void fill_name(Dir *dir, Entry *entry, uint8_t type, uint64_t ino) noexcept nogil:
    """A FREE entry is a plain object of the upper now."""
    entry.state = LANE
    entry.type = type
    entry.upper = True
    entry.ended = 0
    entry.ino = ino
    dir.free_count -= 1


cdef uint64_t new_number(State *lane, Dir *dir, struct_stat *status) noexcept nogil:
    """st_ino of an object that was just made in the upper; 0: it has none of its own, Python should see to it."""
    cdef uint64_t ino = status.st_ino
    if status.st_dev != dir.upper.device or not 1 < ino < (<uint64_t>1 << 48):
        return 0
    ino |= dir.upper.position << 48
    if map_get(&lane.taken, ino) != NULL or map_get(&lane.numbers, ino) != NULL:
        return 0
    return ino


# New objects


cdef int answer_create(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef CreateIn *request = <CreateIn *>body
    cdef char *name = body + sizeof(CreateIn)
    cdef size_t length = name_length(name, size - sizeof(CreateIn)) if size > sizeof(CreateIn) else 0
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef EntryOut *told = <EntryOut *>(lane.out + OUT)
    cdef OpenOut *out = <OpenOut *>(lane.out + OUT + sizeof(EntryOut))
    cdef char path[PATH_ROOM]
    cdef struct_stat status
    cdef Entry *entry
    cdef Node *node = NULL
    cdef File *file
    cdef uint64_t ino
    cdef int opened
    if not length or not lane.hands_over or not is_ours(lane, header) or not may_change(lane, dir):
        return PYTHON
    entry = new_name(dir, name, length)
    if entry == NULL:
        return PYTHON
    path_of(&dir.upper, name, length, path)
    # The thread has one of its own; a default ACL takes its place, which the filesystem knows about.
    c_umask(request.umask & 0o777)
    opened = open_new(dir.upper.root_fd, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, request.mode & 0o7777)
    c_umask(0)
    if opened < 0:
        return PYTHON
    file = <File *>calloc(1, sizeof(File))
    if file != NULL and fstat(opened, &status) == 0 and status.st_nlink == 1:
        ino = new_number(lane, dir, &status)
        if ino:
            fill_name(dir, entry, DT_REG, ino)
            node = _new_node(lane, dir, entry)
    if node != NULL:
        node.backing = _back(lane, fd, opened)
        file.fh = lane.next
        if node.backing and map_put(&lane.files, file.fh, file):
            c_close(opened)
            lane.next += 1
            file.fd = -1
            file.flags = request.flags
            file.uid, file.gid, file.pid = header.uid, header.gid, header.pid
            file.node = node
            node.files = file
            node.lookups = 1
            if file.flags & O_ACCMODE:
                node.writers = 1
            _fill_entry(lane, told, node)
            _fill_attr(&told.attr, &status, ino)
            if node.writers:
                # Good for the tick of the clock in which they were made: else the kernel asks before it has opened.
                told.attr_valid_ns = 1000000
            out.fh = file.fh
            out.open_flags = FOPEN_PASSTHROUGH
            out.backing_id = node.backing
            if not _reply(lane, fd, header, sizeof(EntryOut) + sizeof(OpenOut), 0):
                _take_back(lane, node, 1)
                _close_file(lane, fd, file)
            return ANSWERED
        lane.hands_over = node.backing != 0
        _unback(lane, fd, node)
        _free_node(lane, node)
    # As if it had never been.
    unlinkat(dir.upper.root_fd, path, 0)
    if entry.state != FREE:
        entry.state = FREE
        dir.free_count += 1
    c_close(opened)
    free(file)
    return PYTHON


cdef int answer_symlink(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef EntryOut *told = <EntryOut *>(lane.out + OUT)
    cdef char path[PATH_ROOM]
    cdef struct_stat status
    cdef Entry *entry
    cdef Node *node = NULL
    cdef char *target
    cdef uint64_t ino
    cdef size_t length = strnlen(body, size)
    if not length or length + 1 >= size or name_length(body, length + 1) != length:
        return PYTHON
    target = body + length + 1
    if strnlen(target, size - length - 1) != size - length - 2 or not target[0]:
        return PYTHON
    if not is_ours(lane, header) or not may_change(lane, dir):
        return PYTHON
    entry = new_name(dir, body, length)
    if entry == NULL:
        return PYTHON
    path_of(&dir.upper, body, length, path)
    if symlinkat(target, dir.upper.root_fd, path) != 0:
        return PYTHON
    if fstatat(dir.upper.root_fd, path, &status, AT_SYMLINK_NOFOLLOW) == 0:
        ino = new_number(lane, dir, &status)
        if ino:
            fill_name(dir, entry, DT_LNK, ino)
            node = _new_node(lane, dir, entry)
    if node == NULL:
        unlinkat(dir.upper.root_fd, path, 0)
        if entry.state != FREE:
            entry.state = FREE
            dir.free_count += 1
        return PYTHON
    node.lookups = 1
    _fill_entry(lane, told, node)
    _fill_attr(&told.attr, &status, ino)
    if not _reply(lane, fd, header, sizeof(EntryOut), 0):
        _take_back(lane, node, 1)
    return ANSWERED


cdef bint is_ours(State *lane, InHeader *header) noexcept nogil:
    """Whether what this process makes belongs to the caller by itlane."""
    return header.uid == lane.uid and header.gid == lane.gid

# Names that go


cdef int answer_unlink(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef size_t length = name_length(body, size)
    cdef char path[PATH_ROOM]
    cdef Entry *entry
    cdef Held held
    if not length or not may_change(lane, dir):
        return PYTHON
    entry = dir_find(dir, body, length)
    if entry == NULL or not is_plain(lane, dir, entry) or (entry.upper and entry.ended):
        return PYTHON
    if not hold(dir, entry, &held):
        return PYTHON
    path_of(&dir.upper, body, length, path)
    if entry.upper:
        if unlinkat(dir.upper.root_fd, path, 0) != 0:
            release(&held)
            return PYTHON
        entry.state = FREE
        dir.free_count += 1
    else:
        if mknodat(dir.upper.root_fd, path, S_IFCHR, 0) != 0:
            release(&held)
            return PYTHON
        entry.state = GONE
    orphan(lane, entry.node, &held)
    _reply(lane, fd, header, 0, 0)
    return ANSWERED


cdef bint is_plain(State *lane, Dir *dir, Entry *entry) noexcept nogil:
    """Whether a name is one of the lane's that may go by a change of the directory alone: no directory, and no name of
    several, which are counted."""
    cdef Attr attr
    if entry.state != LANE or entry.node == NULL or entry.node.dir != dir or entry.type == DT_DIR:
        return False
    return entry.upper or (_attr(lane, dir, entry, &attr) and attr.nlink == 1)


cdef struct Held:
    int pin
    Part *part


cdef bint hold(Dir *dir, Entry *entry, Held *held) noexcept nogil:
    """Get hold of what is about to lose its name; False: Python should do it."""
    cdef char path[PATH_ROOM]
    cdef Part *part = part_of(dir, entry)
    held.pin = -1
    held.part = NULL
    if entry.upper:
        path_of(part, dir.names + entry.name, entry.length, path)
        held.pin = openat(part.root_fd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        return held.pin >= 0
    held.part = <Part *>calloc(1, sizeof(Part))
    if held.part == NULL:
        return False
    held.part.root_fd, held.part.image = part.root_fd, part.image
    if part.image != NULL:
        held.part.nid = entry.ino & ((<uint64_t>1 << 48) - 1)
    elif not part_path(held.part, part.path, part.length, dir.names + entry.name, entry.length):
        release(held)
        return False
    return True


cdef void release(Held *held) noexcept nogil:
    if held.pin >= 0:
        c_close(held.pin)
    part_free(held.part)


cdef void orphan(State *lane, Node *node, Held *held) noexcept nogil:
    """The node has lost its name."""
    cdef Dir *dir = node.dir
    dir.entries[node.entry].node = NULL
    node.dir = NULL
    node.pin, node.held = held.pin, held.part
    dir.users -= 1
    _drop_unused(lane, dir)


cdef int answer_rename(State *lane, int fd, InHeader *header, char *body, size_t size, size_t fixed, uint32_t flags) noexcept nogil:
    """A plain upper file or symlink moves to a name that is free, or takes the place of a plain one."""
    cdef Dir *source = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef Dir *target
    cdef char *old = body + fixed
    cdef char *new
    cdef char old_path[PATH_ROOM]
    cdef char new_path[PATH_ROOM]
    cdef size_t old_length, new_length
    cdef Entry *entry
    cdef Entry *place
    cdef Node *node
    cdef Held held
    cdef bint replaces, below
    if size <= fixed + 3 or flags & ~<uint32_t>RENAME_NOREPLACE:
        return PYTHON
    old_length = strnlen(old, size - fixed)
    if old_length + 1 >= size - fixed or name_length(old, old_length + 1) != old_length:
        return PYTHON
    new = old + old_length + 1
    new_length = name_length(new, size - fixed - old_length - 1)
    target = <Dir *>map_get(&lane.dirs, (<RenameIn *>body).newdir)
    if not new_length or not may_change(lane, source) or not may_change(lane, target):
        return PYTHON
    entry = dir_find(source, old, old_length)
    if entry != NULL and entry.type == DT_DIR:
        return rename_directory(lane, fd, header, source, entry, target, new, new_length, flags)
    if entry == NULL or not entry.upper or entry.ended or not is_plain(lane, source, entry):
        return PYTHON
    place = dir_find(target, new, new_length)
    replaces = place != NULL and place.state == LANE
    if replaces:
        if place == entry or flags or not is_plain(lane, target, place):
            return PYTHON
        if not hold(target, place, &held):
            return PYTHON
    else:
        node = entry.node
        place = new_name(target, new, new_length)
        if place == NULL:
            return PYTHON
        # Entries may lie elsewhere now.
        entry = &source.entries[node.entry]
    path_of(&source.upper, old, old_length, old_path)
    path_of(&target.upper, new, new_length, new_path)
    if renameat2(source.upper.root_fd, old_path, target.upper.root_fd, new_path, flags) != 0:
        if replaces:
            release(&held)
        return PYTHON
    below = False
    if replaces:
        below = place.ended or not place.upper
        orphan(lane, place.node, &held)
        target.free_count += 1  # which `move_entry` takes back
    move_entry(lane, source, entry, target, place)
    place.ended = below
    _drop_unused(lane, source)
    _reply(lane, fd, header, 0, 0)
    return ANSWERED

# Attributes


cdef int answer_setattr(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef SetattrIn *wanted = <SetattrIn *>body
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    cdef AttrOut *out = <AttrOut *>(lane.out + OUT)
    cdef char path[PATH_ROOM]
    cdef Entry *entry
    cdef Part *part
    cdef timespec times[2]
    cdef uint32_t valid, known = SET_MODE | SET_UID | SET_GID | SET_SIZE | SET_ATIME | SET_MTIME | SET_ATIME_NOW | SET_MTIME_NOW
    if node == NULL or node.dir == NULL or size < sizeof(SetattrIn) or not lane.changes or lane.held:
        return PYTHON
    valid = wanted.valid & ~<uint32_t>(SET_FH | SET_LOCKOWNER | SET_CTIME | SET_KILL_SUIDGID)
    entry = &node.dir.entries[node.entry]
    # An order of nothing is one to clear privileges, for which the caller counts.
    if not valid or valid & ~known or not (entry.type == DT_REG or entry.type == DT_DIR or entry.type == DT_LNK):
        return PYTHON
    if valid & SET_MODE and entry.type == DT_LNK:
        return PYTHON
    if valid & SET_SIZE and (entry.type != DT_REG or wanted.size >> 63):
        return PYTHON
    if not fill_time(&times[0], valid, SET_ATIME, SET_ATIME_NOW, wanted.atime, wanted.atime_ns):
        return PYTHON
    if not fill_time(&times[1], valid, SET_MTIME, SET_MTIME_NOW, wanted.mtime, wanted.mtime_ns):
        return PYTHON
    if not entry.upper and not copy_up(lane, node, wanted.size if valid & SET_SIZE else <uint64_t>-1):
        return PYTHON
    if not _attr(lane, node.dir, entry, &out.attr):
        return PYTHON
    if out.attr.mode & (S_ISUID | S_ISGID) and valid & (SET_UID | SET_GID | SET_SIZE):
        return PYTHON
    part = part_of(node.dir, entry)
    path_of(part, node.dir.names + entry.name, entry.length, path)
    # What fails is tried again by the verb, which says why; each step can be made twice.
    if valid & (SET_UID | SET_GID):
        if fchownat(part.root_fd, path, wanted.uid if valid & SET_UID else -1, wanted.gid if valid & SET_GID else -1, AT_SYMLINK_NOFOLLOW) != 0:
            return PYTHON
    if valid & SET_MODE and fchmodat(part.root_fd, path, wanted.mode & 0o7777, 0) != 0:
        return PYTHON
    if valid & SET_SIZE and not truncate_at(part.root_fd, path, <int64_t>wanted.size):
        return PYTHON
    if valid & (SET_ATIME | SET_MTIME) and utimensat(part.root_fd, path, times, AT_SYMLINK_NOFOLLOW) != 0:
        return PYTHON
    if not _attr_of_node(lane, node, &out.attr):
        return PYTHON
    out.attr_valid = 0 if node.writers else FOREVER_S
    out.attr_valid_ns = 0
    out.dummy = 0
    _reply(lane, fd, header, sizeof(AttrOut), 0)
    return ANSWERED

# Open files of the upper


cdef int open_upper(State *lane, int fd, InHeader *header, Node *node, uint32_t flags) noexcept nogil:
    cdef char path[PATH_ROOM]
    cdef Attr attr
    cdef Dir *dir = node.dir
    cdef Entry *entry = &dir.entries[node.entry]
    cdef int opened, how = O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | <int>(flags & O_ACCMODE)
    if not lane.hands_over or entry.type != DT_REG or not _is_placed(lane, dir):
        return PYTHON
    if lane.held and flags & (O_ACCMODE | O_TRUNC):
        return PYTHON
    if flags & O_TRUNC:
        # For whom setuid and setgid would be cleared is the verb's to judge.
        if not flags & O_ACCMODE or not _attr(lane, dir, entry, &attr) or attr.mode & (S_ISUID | S_ISGID):
            return PYTHON
        how |= O_TRUNC
    elif node.backing:
        return _opened(lane, fd, header, node, -1, flags)
    path_of(&dir.upper, dir.names + entry.name, entry.length, path)
    opened = openat(dir.upper.root_fd, path, how)
    if opened < 0:
        return PYTHON
    if not node.backing:
        node.backing = _back(lane, fd, opened)
        if not node.backing:
            lane.hands_over = False
    c_close(opened)
    return _opened(lane, fd, header, node, -1, flags) if node.backing else PYTHON


cdef void attributes_move(int fd, Node *node) noexcept nogil:
    """What the kernel keeps of the attributes is not to be trusted from now on."""
    cdef InvalInodeOut notice
    notice.len = sizeof(InvalInodeOut)
    notice.code = INVAL_INODE
    notice.unique = 0
    notice.ino = node.id
    # The pages of what was copied up are those of the lower file, and nobody writes to them any more.
    notice.off = 0 if node.real else -1
    notice.length = 0
    # An error says that the kernel does not know the inode: then it has nothing wrong.
    c_write(fd, &notice, sizeof(InvalInodeOut))
