# What the lane knows: directories with the names in them, nodes, open files. Part of lane.pyx.
#
# An Entry is one name of a directory. LANE: a plain file or symlink of one lower layer, answered here. OTHER: exists,
# and Python answers for it. UNSURE: Python answers, and what a listing shows of it is not known here.

from libc.string cimport memcmp, memcpy, memset, strlen

cdef enum:
    LANE = 0
    OTHER = 1
    UNSURE = 2

cdef enum:
    DT_UNKNOWN = 0
    DT_CHR = 2
    DT_DIR = 4
    DT_REG = 8
    DT_LNK = 10


cdef struct Part:
    int root_fd         # the layer's; not owned
    int open_flags      # of open(2), beside O_RDONLY
    uint64_t device     # st_dev
    uint64_t position   # of the filesystem among the layers
    size_t length       # of path
    char *path          # of the directory below root_fd; "" for the root itself


cdef struct Entry:
    uint32_t name       # offset in the directory's names
    uint16_t length
    uint8_t type        # DT_*
    uint8_t state
    uint32_t hash
    uint16_t part
    uint16_t unused
    uint64_t ino        # as callers see it
    Node *node          # while the kernel knows it from here


cdef struct Dir:
    uint64_t id
    uint64_t ino
    uint64_t parent_ino
    uint64_t epoch      # of `parent_ino`
    Part *parts
    uint32_t part_count
    Entry *entries
    uint32_t count
    uint32_t room
    uint32_t limit      # of names, before it is closed
    char *names
    size_t names_used
    size_t names_room
    uint32_t *slots     # number of an entry, and 1
    uint32_t mask
    uint32_t users      # nodes and open directories that refer to it
    bint closed         # answers no more LOOKUP; names are still found
    bint listable       # a listing may be answered here
    uint32_t unsure     # entries whose state is UNSURE


cdef struct Node:
    uint64_t id
    uint64_t lookups
    uint64_t ino
    Dir *dir
    uint32_t entry
    File *files


cdef struct File:
    uint64_t fh
    int fd
    uint32_t flags
    uint32_t uid
    uint32_t gid
    uint32_t pid
    Node *node
    File *next


cdef struct Listing:
    Dir *dir
    uint32_t count      # of entries when it was begun


cdef inline uint32_t _hash(const char *name, size_t length) noexcept nogil:
    cdef uint64_t value = 0xCBF29CE484222325
    cdef size_t each
    for each in range(length):
        value = (value ^ <uint8_t>name[each]) * <uint64_t>0x100000001B3
    return <uint32_t>(value ^ (value >> 32))


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
    cdef uint32_t room, at
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
    at = entry.hash & dir.mask
    while dir.slots[at]:
        at = (at + 1) & dir.mask
    dir.count += 1
    dir.slots[at] = dir.count
    return entry


cdef void dir_free(Dir *dir) noexcept nogil:
    cdef uint32_t each
    if dir == NULL:
        return
    for each in range(dir.part_count):
        free(dir.parts[each].path)
    free(dir.parts)
    free(dir.entries)
    free(dir.names)
    free(dir.slots)
    free(dir)
