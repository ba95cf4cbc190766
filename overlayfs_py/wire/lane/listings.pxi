# Open directories. Part of lane.pyx.


cdef int _opendir(State *lane, int fd, InHeader *header) noexcept nogil:
    cdef Dir *dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    cdef OpenOut *out = <OpenOut *>(lane.out + OUT)
    cdef Listing *listing
    cdef Node *node
    cdef uint64_t fh
    if dir == NULL:
        node = <Node *>map_get(&lane.nodes, header.nodeid)
        if node != NULL:
            dir = _inside(lane, node, NAMES_MAX)
    if dir == NULL:
        if node == NULL and map_get(&lane.looks, header.nodeid) != <void *><uint64_t>-1:
            # All names are read anyway.
            map_put(&lane.looks, header.nodeid, <void *><uint64_t>LISTED)
            lane.wanted = header.nodeid
            lane.wanted_listing = True
        return PYTHON
    if dir.closed or not dir.listable or dir.unsure:
        return PYTHON
    if dir.owner == NULL and dir.epoch != lane.epoch:
        lane.wanted = header.nodeid
        lane.wanted_listing = True
        return PYTHON
    if dir.has_upper and not _is_placed(lane, dir):
        return PYTHON
    listing = <Listing *>calloc(1, sizeof(Listing))
    if listing == NULL:
        return PYTHON
    fh = lane.next
    if not map_put(&lane.listings, fh, listing):
        free(listing)
        return PYTHON
    lane.next += 1
    listing.dir = dir
    listing.count = dir.count
    dir.listings += 1
    dir.users += 1
    out.fh = fh
    out.open_flags = lane.directory_flags
    out.backing_id = 0
    if not _reply(lane, fd, header, sizeof(OpenOut), 0):
        map_pop(&lane.listings, fh)
        _close_listing(lane, listing)
    return ANSWERED


cdef int _releasedir(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Listing *listing
    if size < sizeof(ReleaseIn):
        return PYTHON
    listing = <Listing *>map_get(&lane.listings, (<ReleaseIn *>body).fh)
    if listing == NULL or listing.shared:
        return PYTHON
    map_pop(&lane.listings, (<ReleaseIn *>body).fh)
    _close_listing(lane, listing)
    _reply(lane, fd, header, 0, 0)
    return ANSWERED


cdef int _readdir(State *lane, int fd, InHeader *header, char *body, size_t size, bint plus) noexcept nogil:
    cdef ReadIn *request = <ReadIn *>body
    cdef Listing *listing
    cdef Dir *dir
    cdef Entry *entry
    cdef uint64_t number
    cdef size_t room, used = 0, added
    if size < sizeof(ReadIn):
        return PYTHON
    listing = <Listing *>map_get(&lane.listings, request.fh)
    if listing == NULL:
        return PYTHON
    dir = listing.dir
    if request.offset == 0:
        if dir.unsure or not dir.listable:
            # Names have changed since it was opened: Python reads it.
            return PYTHON
        listing.count = dir.count
        if dir.has_upper and _is_placed(lane, dir):
            note_access(dir)
    room = request.size if request.size < READ_MAX else READ_MAX
    number = request.offset
    while number < <uint64_t>listing.count + 2:
        if number == 0:
            added = _row(lane, used, room, plus, dir, NULL, dir.ino, b".", 1, 1)
        elif number == 1:
            added = _row(lane, used, room, plus, dir, NULL, dir.parent_ino, b"..", 2, 2)
        else:
            entry = &dir.entries[number - 2]
            if entry.state == FREE or entry.state == GONE:
                number += 1
                continue
            added = _row(lane, used, room, plus, dir, entry, entry.ino, dir.names + entry.name, entry.length, number + 1)
        if not added:
            break
        used += added
        number += 1
    if not _reply(lane, fd, header, used, 0) and plus:
        _untell(lane, lane.out + OUT, used)
    return ANSWERED


cdef size_t _row(
    State *lane, size_t used, size_t room, bint plus, Dir *dir, Entry *entry, uint64_t ino, const char *name, size_t length, uint64_t offset
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
        if entry != NULL and entry.state == LANE and not dir.closed:
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


