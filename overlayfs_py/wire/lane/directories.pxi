# Plain directories of the upper, and what is in them. Part of lane.pyx.
#
# A plain one is in the upper, no layer below has its name, and it has no xattr but perhaps the mark that it is opaque,
# which a directory gets where lower layers show beside it (ovl_create_upper()). So it shows what is in it, and a change
# of it is one system call; the mark comes after mkdir(2) and before a rename, where it changes nothing.
#
# Its node is its Dir's `owner`. The path of such a Dir follows from that of the directory above it, and holds for one
# value of `paths`: as long as neither Python nor the lane renames a directory.

cdef enum:
    NAMES_ADDED = 1024  # by Python, before a directory is closed; twice as many as it has may come to that


cdef bint is_plain_directory(Dir *dir, Entry *entry) noexcept nogil:
    """Whether a name is that of a plain directory whose node is here."""
    return (
        entry.state == LANE
        and entry.type == DT_DIR
        and entry.upper
        and not entry.ended
        and entry.node != NULL
        and entry.node.dir == dir
    )


cdef bint upper_directory_attr(State *lane, Dir *dir, Entry *entry, Attr *attr) noexcept nogil:
    """What an entry shows that is a directory of the upper; False: it is not plain, or not what was there."""
    cdef char path[PATH_ROOM]
    cdef struct_stat status
    path_of(&dir.upper, dir.names + entry.name, entry.length, path)
    if fstatat(dir.upper.root_fd, path, &status, AT_SYMLINK_NOFOLLOW) != 0 or status.st_dev != dir.upper.device:
        return False
    if (dir.upper.position << 48 | <uint64_t>status.st_ino) != entry.ino or not S_ISDIR(status.st_mode):
        return False
    _fill_attr(attr, &status, entry.ino)
    if entry.node != NULL:
        # Once it is the lane's, nobody else can mark it.
        return True
    return lane.changes and not entry.ended and has_plain_marks(lane, &dir.upper, path)


cdef bint has_plain_marks(State *lane, Part *part, const char *path) noexcept nogil:
    """Whether a directory has no mark, or only that it is opaque."""
    cdef char value[2]
    if not marked(part, path):
        return True
    if not has_only(part, path, lane.opaque):
        return False
    # Another value says that there are whiteouts among its files.
    return get_xattr(part, path, lane.opaque, value, sizeof(value)) == 1 and value[0] == c"y"


cdef bint set_opaque(State *lane, Part *part, const char *path) noexcept nogil:
    return set_xattr(part, path, lane.opaque, b"y", 1)


# Where they are, and what is in them


cdef bint place_below(State *lane, Dir *dir) noexcept nogil:
    """Whether it is known where a directory with an owner is in the upper; if only the directory of Python's that leads
    to it is missing, that is asked for."""
    cdef Node *owner = dir.owner
    cdef Dir *above = owner.dir
    cdef Entry *entry
    cdef Part fresh
    if not dir.has_upper:
        return False
    if dir.epoch == lane.paths:
        return True
    if above == NULL or not _is_placed(lane, above):
        return False
    entry = &above.entries[owner.entry]
    if not part_path(&fresh, above.upper.path, above.upper.length, above.names + entry.name, entry.length):
        return False
    free(dir.upper.path)
    dir.upper.path, dir.upper.length = fresh.path, fresh.length
    dir.epoch = lane.paths
    return True


cdef Dir *new_inside(State *lane, Node *node) noexcept nogil:
    """The Dir of a directory of the upper in one that is placed, without names; NULL: no memory, or too long a path."""
    cdef Dir *above = node.dir
    cdef Entry *entry = &above.entries[node.entry]
    cdef Dir *dir = <Dir *>calloc(1, sizeof(Dir))
    if dir == NULL:
        return NULL
    dir.id, dir.ino, dir.parent_ino, dir.owner = node.id, node.ino, above.ino, node
    dir.upper.root_fd, dir.upper.device, dir.upper.position = above.upper.root_fd, above.upper.device, above.upper.position
    dir.has_upper = dir.listable = True
    dir.epoch = lane.paths
    dir.limit = NAMES_ADDED
    if not part_path(&dir.upper, above.upper.path, above.upper.length, above.names + entry.name, entry.length):
        dir_free(dir)
        return NULL
    if not map_put(&lane.dirs, dir.id, dir):
        dir_free(dir)
        return NULL
    node.inside = dir
    return dir


cdef Dir *inside_upper(State *lane, Node *node, uint32_t names_max) noexcept nogil:
    """The names in a directory of the upper; NULL: it is for Python."""
    cdef Dir *dir
    if not _is_placed(lane, node.dir):
        return NULL
    dir = new_inside(lane, node)
    if dir == NULL:
        return NULL
    if dir_scan(dir, 0, dir.upper.root_fd, dir.upper.path, True, names_max):
        node.inside = NULL
        map_pop(&lane.dirs, dir.id)
        dir_free(dir)
        return NULL
    dir_trim(dir)
    dir.limit += dir.count * 2
    return dir


cdef void note_access(Dir *dir) noexcept nogil:
    """A directory that is placed is listed: its access time moves by the filesystem's own rules."""
    cdef char rows[512]
    cdef const char *here = "."
    if dir.upper.length:
        here = dir.upper.path
    cdef int fd = openat(dir.upper.root_fd, here, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)
    if fd >= 0:
        syscall(SYS_getdents64, fd, rows, sizeof(rows))
        c_close(fd)


# How many directories are in one of Python's, which remembers that


cdef bint may_count(State *lane) noexcept nogil:
    """Make room for two rows of `recounts`; False: no memory."""
    cdef size_t room
    cdef void *moved
    if lane.recount_count + 2 <= lane.recount_room:
        return True
    room = lane.recount_room * 2 if lane.recount_room else 16
    moved = realloc(lane.recounts, room * sizeof(uint64_t))
    if moved == NULL:
        return False
    lane.recounts = <uint64_t *>moved
    lane.recount_room = room
    return True


cdef void count_directories(State *lane, Dir *dir, int by) noexcept nogil:
    """A directory came into `dir`, or went."""
    if dir.links and lane.counts_links:
        dir.links += by
    if not dir.recounted:
        dir.recounted = True
        lane.recounts[lane.recount_count] = dir.id
        lane.recount_count += 1


# Changes


cdef int answer_mkdir(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef MkdirIn *request = <MkdirIn *>body
    cdef char *name = body + sizeof(MkdirIn)
    cdef size_t length = name_length(name, size - sizeof(MkdirIn)) if size > sizeof(MkdirIn) else 0
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef EntryOut *told = <EntryOut *>(lane.out + OUT)
    cdef char path[PATH_ROOM]
    cdef struct_stat status
    cdef Entry *entry
    cdef Node *node = NULL
    cdef uint64_t ino
    cdef int made
    if not length or not lane.own_modes or not is_ours(lane, header) or not may_change(lane, dir) or not may_count(lane):
        return PYTHON
    if dir.upper.length + 1 + length > STEP_MAX:
        return PYTHON
    entry = new_name(dir, name, length)
    if entry == NULL:
        return PYTHON
    path_of(&dir.upper, name, length, path)
    # As for a new file.
    c_umask(request.umask & 0o777)
    made = mkdirat(dir.upper.root_fd, path, request.mode & 0o7777)
    c_umask(0)
    if made != 0:
        return PYTHON
    if dir.part_count:
        # It saves lookups, and may fail.
        set_opaque(lane, &dir.upper, path)
    if fstatat(dir.upper.root_fd, path, &status, AT_SYMLINK_NOFOLLOW) == 0:
        ino = new_number(lane, dir, &status)
        if ino:
            fill_name(dir, entry, DT_DIR, ino)
            node = _new_node(lane, dir, entry)
    if node == NULL or new_inside(lane, node) == NULL:
        # As if it had never been.
        if node != NULL:
            _free_node(lane, node)
        unlinkat(dir.upper.root_fd, path, AT_REMOVEDIR)
        if entry.state != FREE:
            entry.state = FREE
            dir.free_count += 1
        return PYTHON
    count_directories(lane, dir, 1)
    node.lookups = 1
    _fill_entry(lane, told, node)
    _fill_attr(&told.attr, &status, ino)
    told.attr.nlink = 2 if lane.counts_links else 1
    if not _reply(lane, fd, header, sizeof(EntryOut), 0):
        _take_back(lane, node, 1)
    return ANSWERED


cdef int answer_rmdir(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef size_t length = name_length(body, size)
    cdef char path[PATH_ROOM]
    cdef Entry *entry
    cdef Held held
    if not length or not may_change(lane, dir) or not may_count(lane):
        return PYTHON
    entry = dir_find(dir, body, length)
    if entry == NULL or not is_plain_directory(dir, entry) or not hold(dir, entry, &held):
        return PYTHON
    path_of(&dir.upper, body, length, path)
    if unlinkat(dir.upper.root_fd, path, AT_REMOVEDIR) != 0:
        # Not empty, most likely: what is left in it, which may be whiteouts, is Python's to judge.
        release(&held)
        return PYTHON
    entry.state = FREE
    dir.free_count += 1
    if entry.node.inside != NULL:
        entry.node.inside.has_upper = False
    count_directories(lane, dir, -1)
    orphan(lane, entry.node, &held)
    _reply(lane, fd, header, 0, 0)
    return ANSWERED


cdef int rename_directory(
    State *lane, int fd, InHeader *header, Dir *source, Entry *entry, Dir *target, const char *new, size_t new_length, uint32_t flags
) noexcept nogil:
    """A plain directory goes to a name that is free. Both directories may be changed."""
    cdef char old_path[PATH_ROOM]
    cdef char new_path[PATH_ROOM]
    cdef Node *node = entry.node
    cdef Entry *place
    if not is_plain_directory(source, entry) or target.upper.length + 1 + new_length > STEP_MAX or not may_count(lane):
        return PYTHON
    place = new_name(target, new, new_length)
    if place == NULL:
        return PYTHON
    # Entries may lie elsewhere now.
    entry = &source.entries[node.entry]
    path_of(&source.upper, source.names + entry.name, entry.length, old_path)
    path_of(&target.upper, new, new_length, new_path)
    if target.part_count and not set_opaque(lane, &source.upper, old_path):
        return PYTHON
    if renameat2(source.upper.root_fd, old_path, target.upper.root_fd, new_path, flags) != 0:
        return PYTHON
    move_entry(lane, source, entry, target, place)
    if node.inside != NULL:
        node.inside.parent_ino = target.ino
    lane.paths += 1
    count_directories(lane, source, -1)
    count_directories(lane, target, 1)
    _drop_unused(lane, source)
    _reply(lane, fd, header, 0, 0)
    return ANSWERED


cdef void move_entry(State *lane, Dir *source, Entry *entry, Dir *target, Entry *place) noexcept nogil:
    """What was at `entry` is at `place` now, which was FREE; nothing is below either."""
    cdef Node *node = entry.node
    fill_name(target, place, entry.type, entry.ino)
    place.node = node
    entry.node = NULL
    entry.state = FREE
    source.free_count += 1
    node.dir = target
    node.entry = <uint32_t>(place - target.entries)
    target.users += 1
    source.users -= 1
