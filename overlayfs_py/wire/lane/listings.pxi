# Listings. Part of lane.pyx.
#
# The kernel opens no directory, and says which one it wants names of and after which cookie (see tables.pxi). It keeps
# what it was told, so the order is forgotten with the last row.


cdef Dir *dir_to_list(State *lane, uint64_t id) noexcept nogil:
    """A directory all of whose names are known here; NULL: Python lists it, and may be asked to publish it."""
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, id)
    cdef Node *node
    if dir == NULL:
        node = <Node *>map_get(&lane.nodes, id)
        if node != NULL:
            dir = _inside(lane, node, NAMES_MAX)
    if dir == NULL:
        if node == NULL and map_get(&lane.looks, id) != <void *><uint64_t>-1:
            # All names are read anyway.
            map_put(&lane.looks, id, <void *><uint64_t>LISTED)
            lane.wanted = id
            lane.wanted_listing = True
        return NULL
    if dir.closed or not dir.listable or dir.unsure:
        return NULL
    if dir.owner == NULL and dir.epoch != lane.epoch:
        lane.wanted = id
        lane.wanted_listing = True
        return NULL
    if dir.has_upper and not _is_placed(lane, dir):
        return NULL
    return dir


cdef int _readdir(State *lane, int fd, InHeader *header, char *body, size_t size, bint plus) noexcept nogil:
    cdef ReadIn *request = <ReadIn *>body
    cdef Lister *reader
    cdef Dir *dir
    cdef Turn *turn
    cdef Entry *entry
    cdef uint32_t number
    cdef size_t room, used = 0, added
    if size < sizeof(ReadIn):
        return PYTHON
    dir = dir_to_list(lane, header.nodeid)
    if dir == NULL or not dir_order(dir):
        return PYTHON
    if request.offset == 0 and dir.has_upper:
        note_access(dir)
    reader = lister(lane, header.pid)
    if plus and request.offset == 0 and reader.habit == PROBED:
        reader.habit = NAMES
    room = request.size if request.size < READ_MAX else READ_MAX
    if request.offset == 0:
        used = _row(lane, 0, room, plus, reader, dir, NULL, dir.ino, b".", 1, 1)
    if request.offset == 1 or (request.offset == 0 and used):
        used += _row(lane, used, room, plus, reader, dir, NULL, dir.parent_ino, b"..", 2, 2)
    # Room for less than two rows is for none of the names either.
    for number in range(dir_turn(dir, request.offset), dir.turn_count):
        turn = &dir.turns[number]
        entry = &dir.entries[turn.entry]
        if entry.state == FREE or entry.state == GONE:
            continue
        added = _row(
            lane, used, room, plus, reader, dir, entry, entry.ino, dir.names + entry.name, entry.length, turn.cookie
        )
        if not added:
            break
        used += added
    if not used:
        dir_disorder(dir)
    if not _reply(lane, fd, header, used, 0) and plus:
        _untell(lane, lane.out + OUT, used)
    return ANSWERED


cdef size_t _row(
    State *lane,
    size_t used,
    size_t room,
    bint plus,
    Lister *reader,
    Dir *dir,
    Entry *entry,
    uint64_t ino,
    const char *name,
    size_t length,
    uint64_t offset,
) noexcept nogil:
    """One row of a listing; returns its size, 0 if there is no room for it."""
    cdef size_t fixed = sizeof(Dirent) + (sizeof(EntryOut) if plus else 0)
    cdef size_t whole = (fixed + length + 7) & ~<size_t>7
    cdef char *at = lane.out + OUT + used
    cdef EntryOut *told
    cdef Dirent *row
    cdef Node *node = NULL
    if used + whole > room:
        return 0
    memset(at, 0, whole)
    if plus:
        told = <EntryOut *>at
        # Python knows no directory any more that is closed and still open: a node in it could not be handed over.
        if entry != NULL and entry.state == LANE and not dir.closed and not withheld(reader, entry):
            node = _node(lane, dir, entry, &told.attr)
        if node != NULL:
            _fill_entry(lane, told, node)
        else:
            memset(told, 0, sizeof(EntryOut))
            # Without a node id the kernel asks for the name if it wants more.
        at += sizeof(EntryOut)
    row = <Dirent *>at
    row.ino = ino
    row.off = offset
    row.namelen = <uint32_t>length
    row.type = DT_DIR if entry == NULL else entry.type
    memcpy(at + sizeof(Dirent), name, length)
    return whole


cdef void _untell(State *lane, char *rows, size_t size) noexcept nogil:
    """Nobody got a listing with entries."""
    cdef size_t at = 0
    cdef EntryOut *told
    cdef Dirent *row
    cdef Node *node
    while at < size:
        told = <EntryOut *>(rows + at)
        row = <Dirent *>(rows + at + sizeof(EntryOut))
        node = <Node *>map_get(&lane.nodes, told.nodeid) if told.nodeid else NULL
        if node != NULL:
            _take_back(lane, node, 1)
        at += (sizeof(EntryOut) + sizeof(Dirent) + row.namelen + 7) & ~<size_t>7


