# What the lane knows: directories with the names in them, nodes, open files. Part of lane.pyx.
#
# An Entry is one name of a directory. LANE: answered here, if what is behind it turns out to be plain. OTHER: exists,
# and Python answers for it. UNSURE: Python answers, and what a listing shows of it is not known here. FREE: was removed
# here, and no layer has it. GONE: hidden by a whiteout that was made here.
#
# A Node without a directory has lost its name: its object is held by a descriptor (upper), a path or a number (lower).

from libc.string cimport memchr, memcmp, memcpy, memset, strlen

cdef enum:
    LANE = 0
    OTHER = 1
    UNSURE = 2
    FREE = 3
    GONE = 4

cdef enum:
    COMPACT_MIN = 4096  # entries of which half are FREE, before they are dropped

cdef enum:
    DT_UNKNOWN = 0
    DT_CHR = 2
    DT_DIR = 4
    DT_BLK = 6
    DT_REG = 8
    DT_LNK = 10


cdef struct Part:
    int root_fd         # the layer's; not owned
    int open_flags      # of open(2), beside O_RDONLY
    uint64_t device     # st_dev
    uint64_t position   # of the filesystem among the layers
    size_t length       # of path
    char *path          # of the directory below root_fd; "" for the root itself
    Image *image        # instead of all but `position`; then there is no other part
    uint64_t nid        # of the directory in it


cdef struct Entry:
    uint32_t name       # offset in the directory's names
    uint16_t length
    uint8_t type        # DT_*
    uint8_t state
    uint32_t hash
    uint16_t part       # the topmost that has the name; means nothing if `upper`
    uint8_t ended       # what is below of the name does not show
    uint8_t upper       # it is in the upper; then `ended` says that there is something below
    uint32_t first      # of a directory: where else it is, number in `places` and 1; 0: nowhere
    uint32_t last
    uint64_t ino        # as callers see it
    Node *node          # while the kernel knows it from here, and under this name first


cdef struct Place:
    uint32_t next       # number in `places` and 1
    uint16_t part


cdef struct Turn:
    uint64_t cookie
    uint32_t entry


cdef struct Dir:
    uint64_t id
    uint64_t ino
    uint64_t parent_ino
    uint64_t epoch      # of `parent_ino` and of the upper's path; with an owner, `paths` as it was for the path
    Node *owner         # the directory's own node; NULL: it is Python's
    Part *parts
    uint32_t part_count
    Part upper          # its path is of `epoch`
    bint has_upper
    bint impure         # the upper one is marked so, which Python knows, too
    uint32_t links      # st_nlink as it was at `links_epoch`; 0: not known
    uint64_t links_epoch
    bint recounted      # is among `recounts`
    Entry *entries
    uint32_t count
    uint32_t room
    uint32_t added      # names that came with a retraction
    uint32_t limit      # of those, before it is closed
    Place *places
    uint32_t place_count
    uint32_t place_room
    char *names
    size_t names_used
    size_t names_room
    uint32_t *slots     # number of an entry, and 1
    uint32_t mask
    uint32_t users      # nodes that refer to it
    bint closed         # answers no more LOOKUP; names are still found
    bint kept           # Python waits for the last user to go
    bint listable       # a listing may be answered here
    uint32_t unsure     # entries whose state is UNSURE
    uint32_t free_count # entries whose state is FREE
    Turn *turns         # in which order they are listed; NULL: not known
    uint32_t turn_count


cdef struct Node:
    uint64_t id
    uint64_t lookups
    uint64_t ino
    uint64_t real       # of a file that was copied up here, the number by its place in the upper; else 0
    Dir *dir            # where its first name is; NULL: it has no name any more
    uint32_t entry
    int pin             # O_PATH descriptor of an upper object without a name, else -1
    Part *held          # where a lower object without a name is
    int32_t backing     # of all its open files; 0: they are read here
    uint32_t writers    # of those, in the upper, that are open for writing
    File *files
    Dir *inside         # of a directory: the names in it, once they are known


cdef struct File:
    uint64_t fh
    int fd              # -1: backed, or its data is in an index
    uint32_t flags
    uint32_t uid
    uint32_t gid
    uint32_t pid
    Node *node
    File *next


cdef inline uint64_t _fnv(const char *name, size_t length) noexcept nogil:
    cdef uint64_t value = 0xCBF29CE484222325
    cdef size_t each
    for each in range(length):
        value = (value ^ <uint8_t>name[each]) * <uint64_t>0x100000001B3
    return value


cdef inline uint32_t _hash(const char *name, size_t length) noexcept nogil:
    cdef uint64_t value = _fnv(name, length)
    return <uint32_t>(value ^ (value >> 32))


cdef enum:
    COOKIE_MIN = 3      # after . and ..
    COOKIE_BITS = 62


cdef inline uint64_t cookie_of(const char *name, size_t length) noexcept nogil:
    """The offset in a directory after which a name comes is that of the name before it: made from names alone, it stays
    good whoever makes the listing, and while names come and go. 62 bits, since a negative offset is none."""
    cdef uint64_t value = _fnv(name, length)
    value = (value ^ (value >> 33)) * <uint64_t>0xFF51AFD7ED558CCD
    value = (value ^ (value >> 33)) >> (64 - COOKIE_BITS)
    return value if value >= COOKIE_MIN else value + COOKIE_MIN


cdef int _by_cookie(const void *one, const void *other) noexcept nogil:
    cdef uint64_t a = (<Turn *>one).cookie, b = (<Turn *>other).cookie
    return (a > b) - (a < b)


cdef bint dir_order(Dir *dir) noexcept nogil:
    """Know the order of a listing; False: no memory, or two names have one cookie, which Python settles."""
    cdef uint32_t each, bits = 0
    cdef Entry *entry
    cdef Turn *unordered
    if dir.turns != NULL and dir.turn_count == dir.count:
        return True
    dir_disorder(dir)
    while bits < 20 and dir.count >> bits > 2:
        bits += 1
    unordered = <Turn *>malloc((dir.count + 1) * sizeof(Turn))
    dir.turns = <Turn *>malloc((dir.count + 1) * sizeof(Turn))
    if unordered != NULL and dir.turns != NULL:
        for each in range(dir.count):
            entry = &dir.entries[each]
            unordered[each].cookie = cookie_of(dir.names + entry.name, entry.length)
            unordered[each].entry = each
        if _sort(unordered, dir.count, bits, dir.turns):
            dir.turn_count = dir.count
    free(unordered)
    if dir.turn_count != dir.count:
        dir_disorder(dir)
        return False
    for each in range(1, dir.count):
        if dir.turns[each].cookie == dir.turns[each - 1].cookie:
            dir_disorder(dir)
            return False
    return True


cdef bint _sort(Turn *turns, uint32_t count, uint32_t bits, Turn *out) noexcept nogil:
    """By the first `bits` of the cookies, which are spread evenly, and then each few that have them in common: names made
    to have many in common cost what any sort costs. False: no memory."""
    cdef uint32_t *ends = <uint32_t *>calloc((<size_t>1 << bits) + 1, sizeof(uint32_t))
    cdef uint32_t each, start = 0, shift = COOKIE_BITS - bits
    if ends == NULL:
        return False
    for each in range(count):
        ends[(turns[each].cookie >> shift) + 1] += 1
    for each in range(<uint32_t>1 << bits):
        ends[each + 1] += ends[each]
    for each in range(count):
        # The end of what is before becomes the end of what is here.
        out[ends[turns[each].cookie >> shift]] = turns[each]
        ends[turns[each].cookie >> shift] += 1
    for each in range(<uint32_t>1 << bits):
        if ends[each] - start > 1:
            qsort(out + start, ends[each] - start, sizeof(Turn), &_by_cookie)
        start = ends[each]
    free(ends)
    return True


cdef uint32_t dir_turn(Dir *dir, uint64_t cookie) noexcept nogil:
    """The first turn after a cookie."""
    cdef uint32_t low = 0, high = dir.turn_count, middle
    while low < high:
        middle = low + (high - low) // 2
        if dir.turns[middle].cookie <= cookie:
            low = middle + 1
        else:
            high = middle
    return low


cdef void dir_disorder(Dir *dir) noexcept nogil:
    free(dir.turns)
    dir.turns = NULL
    dir.turn_count = 0


cdef Entry *dir_find(Dir *dir, const char *name, size_t length) noexcept nogil:
    cdef uint32_t hash, at
    cdef Entry *entry
    if dir.slots == NULL:
        return NULL
    hash = _hash(name, length)
    at = hash & dir.mask
    while dir.slots[at]:
        entry = &dir.entries[dir.slots[at] - 1]
        if (
            entry.hash == hash
            and entry.length == length
            and memcmp(dir.names + entry.name, name, length) == 0
        ):
            return entry
        at = (at + 1) & dir.mask
    return NULL


cdef bint _dir_rehash(Dir *dir, uint32_t size) noexcept nogil:
    cdef uint32_t each, at
    cdef uint32_t *fresh = <uint32_t *>calloc(size, sizeof(uint32_t))
    if fresh == NULL:
        return False
    for each in range(dir.count):
        at = dir.entries[each].hash & (size - 1)
        while fresh[at]:
            at = (at + 1) & (size - 1)
        fresh[at] = each + 1
    free(dir.slots)
    dir.slots = fresh
    dir.mask = size - 1
    return True


cdef Entry *dir_add(Dir *dir, const char *name, size_t length) noexcept nogil:
    """A new name; NULL: no memory, or more than there may be."""
    cdef Entry *entry
    cdef uint32_t room
    cdef size_t names_room
    cdef void *moved
    if dir.count >= <uint32_t>0x7FFFFFF0 or dir.names_used + length > <size_t>0xFFFFFFFF:
        return NULL
    if dir.count == dir.room:
        room = dir.room * 2 if dir.room else 16
        moved = realloc(dir.entries, room * sizeof(Entry))
        if moved == NULL:
            return NULL
        dir.entries = <Entry *>moved
        dir.room = room
    if dir.names_used + length > dir.names_room:
        names_room = (dir.names_room + length) * 2
        moved = realloc(dir.names, names_room)
        if moved == NULL:
            return NULL
        dir.names = <char *>moved
        dir.names_room = names_room
    if dir.slots == NULL or (dir.count + 1) * 2 > dir.mask:
        if not _dir_rehash(dir, (dir.mask + 1) * 2 if dir.slots != NULL else 32):
            return NULL
    entry = &dir.entries[dir.count]
    memset(entry, 0, sizeof(Entry))
    entry.name = <uint32_t>dir.names_used
    entry.length = <uint16_t>length
    entry.hash = _hash(name, length)
    memcpy(dir.names + dir.names_used, name, length)
    dir.names_used += length
    _slot(dir, dir.count)
    dir.count += 1
    return entry


cdef bint dir_add_place(Dir *dir, Entry *entry, uint32_t part) noexcept nogil:
    """A directory is in this part too; False: no memory."""
    cdef uint32_t room
    cdef void *moved
    if dir.place_count == dir.place_room:
        room = dir.place_room * 2 if dir.place_room else 16
        if room > <uint32_t>1 << 30:
            return False
        moved = realloc(dir.places, room * sizeof(Place))
        if moved == NULL:
            return False
        dir.places = <Place *>moved
        dir.place_room = room
    dir.places[dir.place_count].next = 0
    dir.places[dir.place_count].part = <uint16_t>part
    dir.place_count += 1
    if entry.last:
        dir.places[entry.last - 1].next = dir.place_count
    else:
        entry.first = dir.place_count
    entry.last = dir.place_count
    return True


cdef inline void _slot(Dir *dir, uint32_t number) noexcept nogil:
    cdef uint32_t at = dir.entries[number].hash & dir.mask
    while dir.slots[at]:
        at = (at + 1) & dir.mask
    dir.slots[at] = number + 1


cdef bint dir_compact(Dir *dir) noexcept nogil:
    """Drop the entries that are FREE. False: no memory; nothing changed."""
    cdef uint32_t each, kept = 0
    cdef uint32_t *moved = <uint32_t *>calloc(dir.mask + 1, sizeof(uint32_t))
    if moved == NULL:
        return False
    for each in range(dir.count):
        if dir.entries[each].state == FREE:
            continue
        if kept != each:
            dir.entries[kept] = dir.entries[each]
            if dir.entries[kept].node != NULL:
                dir.entries[kept].node.entry = kept
        kept += 1
    dir.count = kept
    dir.free_count = 0
    dir_disorder(dir)
    free(dir.slots)
    dir.slots = moved
    for each in range(kept):
        _slot(dir, each)
    _names_together(dir)
    return True


cdef void _names_together(Dir *dir) noexcept nogil:
    """Give back the room of the names of dropped entries; without memory it stays as it is."""
    cdef uint32_t each
    cdef size_t used = 0
    cdef char *fresh
    for each in range(dir.count):
        used += dir.entries[each].length
    fresh = <char *>malloc(used + 1)
    if fresh == NULL:
        return
    used = 0
    for each in range(dir.count):
        memcpy(fresh + used, dir.names + dir.entries[each].name, dir.entries[each].length)
        dir.entries[each].name = <uint32_t>used
        used += dir.entries[each].length
    free(dir.names)
    dir.names = fresh
    dir.names_used = used
    dir.names_room = used + 1


cdef inline Part *part_of(Dir *dir, Entry *entry) noexcept nogil:
    """Where the object of an entry is."""
    return &dir.upper if entry.upper else &dir.parts[entry.part]


cdef inline uint64_t real_number(Entry *entry) noexcept nogil:
    """What the number of its object is, as the place of that makes it."""
    return entry.node.real if entry.node != NULL and entry.node.real else entry.ino


cdef inline void _unsure(Dir *dir, Entry *entry) noexcept nogil:
    if entry.state == FREE:
        dir.free_count -= 1
    if entry.state != UNSURE:
        entry.state = UNSURE
        dir.unsure += 1


cdef void dir_trim(Dir *dir) noexcept nogil:
    """All names are there: give back what was allocated for more."""
    cdef void *moved
    if dir.room > dir.count + 1:
        moved = realloc(dir.entries, (dir.count + 1) * sizeof(Entry))
        if moved != NULL:
            dir.entries = <Entry *>moved
            dir.room = dir.count + 1
    if dir.names_room > dir.names_used + 64:
        moved = realloc(dir.names, dir.names_used + 64)
        if moved != NULL:
            dir.names = <char *>moved
            dir.names_room = dir.names_used + 64


cdef void part_free(Part *part) noexcept nogil:
    if part != NULL:
        free(part.path)
        free(part)


cdef void node_free(Node *node) noexcept nogil:
    if node.pin >= 0:
        c_close(node.pin)
    part_free(node.held)
    free(node)


cdef void dir_free(Dir *dir) noexcept nogil:
    cdef uint32_t each
    if dir == NULL:
        return
    for each in range(dir.part_count):
        free(dir.parts[each].path)
    free(dir.parts)
    free(dir.upper.path)
    free(dir.places)
    free(dir.entries)
    free(dir.names)
    free(dir.slots)
    free(dir.turns)
    free(dir)
