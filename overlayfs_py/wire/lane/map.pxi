# A hash table from 64-bit numbers to pointers: open addressing, linear probing, deletion by moving back.
# Part of lane.pyx.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc


cdef struct Slot:
    uint64_t key
    void *value     # NULL: free


cdef struct Map:
    Slot *slots
    size_t mask     # number of slots less one
    size_t used


cdef inline size_t _home(uint64_t key, size_t mask) noexcept nogil:
    key ^= key >> 32
    key *= <uint64_t>0x9E3779B97F4A7C15
    return <size_t>(key >> 20) & mask


cdef void *map_get(Map *map, uint64_t key) noexcept nogil:
    cdef size_t at
    if map.slots == NULL:
        return NULL
    at = _home(key, map.mask)
    while map.slots[at].value != NULL:
        if map.slots[at].key == key:
            return map.slots[at].value
        at = (at + 1) & map.mask
    return NULL


cdef bint _map_resize(Map *map, size_t size) noexcept nogil:
    """False: no memory; nothing changed."""
    cdef Slot *old = map.slots
    cdef size_t count = map.mask + 1 if old != NULL else 0
    cdef size_t each, at
    cdef Slot *fresh = <Slot *>calloc(size, sizeof(Slot))
    if fresh == NULL:
        return False
    for each in range(count):
        if old[each].value != NULL:
            at = _home(old[each].key, size - 1)
            while fresh[at].value != NULL:
                at = (at + 1) & (size - 1)
            fresh[at] = old[each]
    free(old)
    map.slots = fresh
    map.mask = size - 1
    return True


cdef bint map_put(Map *map, uint64_t key, void *value) noexcept nogil:
    """Set; False: no memory."""
    cdef size_t at
    if map.slots == NULL or map.used * 4 >= (map.mask + 1) * 3:
        if not _map_resize(map, (map.mask + 1) * 2 if map.slots != NULL else 16):
            return False
    at = _home(key, map.mask)
    while map.slots[at].value != NULL:
        if map.slots[at].key == key:
            map.slots[at].value = value
            return True
        at = (at + 1) & map.mask
    map.slots[at].key = key
    map.slots[at].value = value
    map.used += 1
    return True


cdef void *map_pop(Map *map, uint64_t key) noexcept nogil:
    """Remove; NULL if it was not there."""
    cdef size_t at, hole, home
    cdef void *value
    if map.slots == NULL:
        return NULL
    at = _home(key, map.mask)
    while True:
        if map.slots[at].value == NULL:
            return NULL
        if map.slots[at].key == key:
            break
        at = (at + 1) & map.mask
    value = map.slots[at].value
    hole = at
    while True:
        at = (at + 1) & map.mask
        if map.slots[at].value == NULL:
            break
        home = _home(map.slots[at].key, map.mask)
        # Whether `hole` lies between the home of this one and where it is.
        if ((at - home) & map.mask) >= ((at - hole) & map.mask):
            map.slots[hole] = map.slots[at]
            hole = at
    map.slots[hole].value = NULL
    map.used -= 1
    if map.mask > 1024 and map.used * 8 < map.mask:
        # What is forgotten costs nothing. Without memory it stays as it is.
        _map_resize(map, (map.mask + 1) // 4)
    return value


cdef void map_clear(Map *map) noexcept nogil:
    free(map.slots)
    map.slots = NULL
    map.mask = 0
    map.used = 0
