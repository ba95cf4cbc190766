# The state of a lane, and how long what is in it lives. Part of lane.pyx.

cdef enum:
    HANDLE_AT = 21      # where a filesystem's own handle begins in an origin, struct ovl_fb
    HANDLE_MAX = 128    # MAX_HANDLE_SZ
    ORIGIN_MAX = HANDLE_AT + HANDLE_MAX


cdef struct State:
    pthread_mutex_t mutex
    Map nodes           # id -> Node
    Map numbers         # st_ino -> Node
    Map taken           # st_ino of nodes that Python knows
    Map dirs            # node id -> Dir
    Map looks           # node id -> lookups in a directory that is not published; NEVER: it will not be
    Map files           # fh -> File
    Lister listers[LISTERS]
    Image **images
    uint32_t image_count
    uint64_t *released  # directories of Python's that nothing here needs any more
    size_t released_count
    size_t released_room
    uint64_t *recounts  # directories in which others were made, removed or renamed here
    size_t recount_count
    size_t recount_room
    uint64_t next
    uint64_t epoch
    uint64_t paths      # counts the renames of all directories, those that are made here too
    uint64_t links_epoch
    uint32_t file_flags
    uint32_t publish_after
    bint by_number
    bint backed
    bint counts_links
    bint acl
    bint read_only
    bint changes        # plain changes in the upper are made here
    bint held           # but not now
    bint hands_over     # the upper's files go to the kernel; else opening them is Python's
    bint own_umask
    bint own_modes      # what is made here gets the mode that its caller would give it
    int stage_fd        # work/work; -1: every copy-up is Python's
    const char *origin  # the name of the mark
    bint syncs          # a copy's data must be on the disk before it is seen
    bint clones         # the upper's filesystem shares data between files, as far as is known
    Map layers          # descriptor of a layer -> Layer
    uint32_t uid
    uint32_t gid
    int statfs_fd
    const char *metacopy
    const char *opaque
    char *out
    uint64_t wanted     # directory that Python should publish
    bint wanted_listing
    bint wanted_impure
    int64_t trust
    bint interruptible  # the reader may sleep in read(2)
    bint blocking       # and does so now
    uint64_t answered


cdef struct Layer:
    uint64_t position   # of the filesystem that its root is on
    uint32_t length     # of the root's origin, of which each file's has the beginning
    uint8_t[ORIGIN_MAX] origin


cdef void _lock(State *lane):
    """For Python's threads: waits without the GIL."""
    with nogil:
        pthread_mutex_lock(&lane.mutex)


cdef void _unlock(State *lane):
    pthread_mutex_unlock(&lane.mutex)


cdef void state_clear(State *lane) noexcept nogil:
    """Forget everything, and close what is open."""
    cdef size_t each
    cdef File *file
    for each in range(lane.files.mask + 1 if lane.files.slots != NULL else 0):
        file = <File *>lane.files.slots[each].value
        if file != NULL:
            if file.fd >= 0:
                c_close(file.fd)
            free(file)
    for each in range(lane.nodes.mask + 1 if lane.nodes.slots != NULL else 0):
        if lane.nodes.slots[each].value != NULL:
            node_free(<Node *>lane.nodes.slots[each].value)
    for each in range(lane.dirs.mask + 1 if lane.dirs.slots != NULL else 0):
        dir_free(<Dir *>lane.dirs.slots[each].value)
    for each in range(lane.image_count):
        image_close(lane.images[each])
        free(lane.images[each])
    free(lane.images)
    lane.images = NULL
    lane.image_count = 0
    for each in range(lane.layers.mask + 1 if lane.layers.slots != NULL else 0):
        free(lane.layers.slots[each].value)
    map_clear(&lane.layers)
    lane.stage_fd = -1
    free(lane.released)
    lane.released = NULL
    lane.released_count = lane.released_room = 0
    free(lane.recounts)
    lane.recounts = NULL
    lane.recount_count = lane.recount_room = 0
    map_clear(&lane.files)
    map_clear(&lane.nodes)
    map_clear(&lane.numbers)
    map_clear(&lane.taken)
    map_clear(&lane.dirs)
    map_clear(&lane.looks)


cdef void _close_dir(State *lane, Dir *dir) noexcept nogil:
    dir.closed = True
    _drop_unused(lane, dir)


cdef void _drop_unused(State *lane, Dir *dir) noexcept nogil:
    if dir.users:
        return
    if dir.owner != NULL:
        _free_unknown(lane, dir.owner)
        return
    if dir.kept:
        dir.kept = False
        _release_id(lane, dir.id)
    if dir.closed:
        map_pop(&lane.dirs, dir.id)
        dir_free(dir)


cdef void _release_id(State *lane, uint64_t id) noexcept nogil:
    cdef size_t room
    cdef void *moved
    if lane.released_count == lane.released_room:
        room = lane.released_room * 2 if lane.released_room else 64
        moved = realloc(lane.released, room * sizeof(uint64_t))
        if moved == NULL:
            # Then the directory stays in Python's table until the mount ends.
            return
        lane.released = <uint64_t *>moved
        lane.released_room = room
    lane.released[lane.released_count] = id
    lane.released_count += 1


cdef void _free_unknown(State *lane, Node *node) noexcept nogil:
    """Free a node unless something still needs it."""
    if not node.lookups and node.files == NULL and (node.inside == NULL or not node.inside.users):
        _free_node(lane, node)


cdef void _free_node(State *lane, Node *node) noexcept nogil:
    cdef Dir *dir = node.dir
    if node.inside != NULL:
        map_pop(&lane.dirs, node.id)
        dir_free(node.inside)
    map_pop(&lane.nodes, node.id)
    map_pop(&lane.numbers, node.ino)
    if dir != NULL:
        dir.entries[node.entry].node = NULL
        if node.real:
            # Its mark is for a verb to read.
            dir.entries[node.entry].state = OTHER
        dir.users -= 1
        _drop_unused(lane, dir)
    node_free(node)
