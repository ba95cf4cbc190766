# Who reads listings for their names alone. Part of lane.pyx.
#
# A listing with entries makes every inode in it known to the kernel, which costs more than the listing itself. That pays
# for whoever looks at the files afterwards (ls -l, du) and is lost on whoever does not (find, a glob). So the first
# listing of a thread withholds one file, the probe, and all beyond the first few. If the thread lists another directory
# without having asked for any withheld file, it is told of directories only, into which it may go, until it asks for a
# file. The kernel does likewise: of a long listing it wants entries at first, and then only if names were looked up.


cdef struct Lister:
    uint32_t pid        # as the kernel says: of the thread; 0 for all that are in no process namespace of ours
    uint8_t habit
    uint8_t given       # files of the first listing that it was told of


cdef enum:
    UNKNOWN = 0
    PROBED = 1          # one file was withheld, and was not asked for yet
    NAMES = 2           # wants no files
    FILES = 3           # wants them
    LISTERS = 256
    GIVEN_MAX = 32


cdef inline Lister *lister(State *lane, uint32_t pid) noexcept nogil:
    """What is known of a thread; what was known of another one in its place is forgotten."""
    cdef Lister *found = &lane.listers[pid % LISTERS]
    if found.pid != pid:
        found.pid, found.habit, found.given = pid, UNKNOWN, 0
    return found


cdef inline void asked_for(State *lane, uint32_t pid, Entry *entry) noexcept nogil:
    """A thread looks up a name that the kernel does not know."""
    cdef Lister *found = &lane.listers[pid % LISTERS]
    if found.pid == pid and found.habit and entry.type != DT_DIR:
        found.habit = FILES


cdef inline bint withheld(Lister *reader, Entry *entry) noexcept nogil:
    """Whether a listing with entries is to have only the name of a plain entry."""
    if entry.type == DT_DIR:
        return False
    if reader.habit > PROBED:
        return reader.habit == NAMES
    if (reader.habit == UNKNOWN or reader.given == GIVEN_MAX) and entry.node == NULL:
        reader.habit = PROBED
        return True
    if reader.given < GIVEN_MAX:
        reader.given += 1
    return False
