# Names: lookups, and what the kernel gives back of them. Part of lane.pyx.


cdef int _lookup(State *lane, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Dir *dir
    cdef Entry *entry
    cdef Node *node
    cdef EntryOut *out = <EntryOut *>(lane.out + OUT)
    cdef size_t length
    if size < 2 or body[size - 1] != 0:
        return PYTHON
    length = size - 1
    if length > 255 or body[0] == b"." or strlen(body) != length:
        # `.` and `..`, and names that hide others, are Python's.
        if length > 255 or length < 3 or _is_meta(body) or strlen(body) != length:
            return PYTHON
    dir = <Dir *>map_get(&lane.dirs, header.nodeid)
    if dir == NULL:
        node = <Node *>map_get(&lane.nodes, header.nodeid)
        if node == NULL:
            _count_look(lane, header.nodeid)
            return PYTHON
        dir = _inside(lane, node, NAMES_FOR_LOOKUP)
        if dir == NULL:
            return PYTHON
    if dir.closed:
        return PYTHON
    entry = dir_find(dir, body, length)
    if entry == NULL or entry.state == FREE or entry.state == GONE:
        memset(out, 0, sizeof(EntryOut))
        out.entry_valid = FOREVER_S
        out.attr_valid = FOREVER_S
        _reply(lane, fd, header, sizeof(EntryOut), 0)
        return ANSWERED
    if entry.state != LANE:
        return PYTHON
    asked_for(lane, header.pid, entry)
    node = _node(lane, dir, entry, &out.attr)
    if node == NULL:
        return PYTHON
    _fill_entry(lane, out, node)
    if not _reply(lane, fd, header, sizeof(EntryOut), 0):
        _take_back(lane, node, 1)
    return ANSWERED


cdef void _count_look(State *lane, uint64_t id) noexcept nogil:
    cdef uint64_t looks = <uint64_t>map_get(&lane.looks, id)
    if looks == <uint64_t>-1:
        return
    looks += 1
    map_put(&lane.looks, id, <void *>looks)
    # At 3, and where it was too large for that, at 9, 21, 45 ...
    if looks >= lane.publish_after and looks % lane.publish_after == 0:
        lane.wanted = id
        lane.wanted_listing = False


cdef bint _is_placed(State *lane, Dir *dir) noexcept nogil:
    """Whether it is known where a directory is in the upper; if not, that is asked for."""
    if dir.owner != NULL:
        return place_below(lane, dir)
    if dir.has_upper and dir.epoch == lane.epoch:
        return True
    lane.wanted = dir.id
    lane.wanted_listing = False
    return False


cdef bint _attr(State *lane, Dir *dir, Entry *entry, Attr *attr) noexcept nogil:
    """What an entry shows; False: Python should look. Of a directory st_nlink may be 0: it is to be counted."""
    cdef bint plain
    if entry.upper and not _is_placed(lane, dir):
        return False
    if entry.upper and entry.type == DT_DIR:
        plain = upper_directory_attr(lane, dir, entry, attr)
    elif part_of(dir, entry).image != NULL:
        plain = image_attr(dir, entry, attr)
    else:
        plain = plain_attr(dir, entry, attr)
    if not plain:
        return False
    if entry.type != DT_DIR:
        # An index of the upper may have another file for what has several names.
        return attr.nlink == 1 or lane.read_only
    if not lane.counts_links:
        attr.nlink = 1
    elif attr.nlink < 2:
        attr.nlink = 0
    return True


cdef Node *_node(State *lane, Dir *dir, Entry *entry, Attr *attr) noexcept nogil:
    """The node of an entry with one more lookup; NULL: Python should look."""
    cdef Node *node = entry.node
    if node == NULL and map_get(&lane.taken, entry.ino) != NULL:
        return NULL
    if not _attr(lane, dir, entry, attr):
        return NULL
    if node == NULL:
        node = <Node *>map_get(&lane.numbers, entry.ino)
        if node == NULL:
            node = _new_node(lane, dir, entry)
            if node == NULL:
                return NULL
        elif attr.nlink < 2 or entry.type == DT_DIR or node.dir.entries[node.entry].type != entry.type:
            return NULL
    if attr.nlink == 0 and not _count_links(lane, node, attr):
        _free_unknown(lane, node)
        return NULL
    node.lookups += 1
    return node


cdef Node *_new_node(State *lane, Dir *dir, Entry *entry) noexcept nogil:
    cdef Node *node = <Node *>calloc(1, sizeof(Node))
    if node == NULL:
        return NULL
    node.id = lane.next
    node.ino = entry.ino
    node.dir = dir
    node.entry = <uint32_t>(entry - dir.entries)
    node.pin = -1
    if not map_put(&lane.nodes, node.id, node):
        free(node)
        return NULL
    if not map_put(&lane.numbers, node.ino, node):
        map_pop(&lane.nodes, node.id)
        free(node)
        return NULL
    lane.next += 1
    entry.node = node
    dir.users += 1
    return node


cdef bint _count_links(State *lane, Node *node, Attr *attr) noexcept nogil:
    """Set st_nlink of a directory to what is in it; False: Python should count."""
    cdef Dir *dir = _inside(lane, node, NAMES_MAX)
    cdef uint32_t each
    if dir == NULL or dir.unsure:
        return False
    attr.nlink = 2
    for each in range(dir.count):
        if dir.entries[each].type == DT_DIR and dir.entries[each].state != FREE:
            attr.nlink += 1
    return True


cdef void _fill_entry(State *lane, EntryOut *out, Node *node) noexcept nogil:
    """All but the attributes."""
    out.nodeid = node.id
    out.generation = 0
    out.entry_valid = FOREVER_S
    out.attr_valid = 0 if node.writers else FOREVER_S
    out.entry_valid_ns = 0
    out.attr_valid_ns = 0


cdef void _take_back(State *lane, Node *node, uint64_t count) noexcept nogil:
    node.lookups -= count if count < node.lookups else node.lookups
    _free_unknown(lane, node)


cdef int _forget(State *lane, InHeader *header, char *body, size_t size) noexcept nogil:
    cdef Node *node = <Node *>map_get(&lane.nodes, header.nodeid)
    if node == NULL or size < sizeof(uint64_t):
        return PYTHON
    _take_back(lane, node, (<uint64_t *>body)[0])
    return ANSWERED


cdef int _batch_forget(State *lane, InHeader *header, char *body, size_t *count) noexcept nogil:
    """Take ours out; what is left of the request is Python's."""
    cdef size_t size = count[0] - HEADER
    cdef BatchForgetIn *batch = <BatchForgetIn *>body
    cdef ForgetOne *rows = <ForgetOne *>(body + sizeof(BatchForgetIn))
    cdef uint32_t each, kept = 0, total
    cdef Node *node
    if size < sizeof(BatchForgetIn):
        return PYTHON
    total = batch.count
    if total > (size - sizeof(BatchForgetIn)) // sizeof(ForgetOne):
        return PYTHON
    for each in range(total):
        node = <Node *>map_get(&lane.nodes, rows[each].nodeid)
        if node == NULL:
            rows[kept] = rows[each]
            kept += 1
        else:
            _take_back(lane, node, rows[each].nlookup)
    if not kept:
        return ANSWERED
    batch.count = kept
    count[0] = HEADER + sizeof(BatchForgetIn) + kept * sizeof(ForgetOne)
    header.len = <uint32_t>count[0]
    return PYTHON


cdef Dir *_inside(State *lane, Node *node, uint32_t names_max) noexcept nogil:
    """The names in a directory that is a node here; NULL: it is for Python."""
    cdef Dir *parent = node.dir
    cdef Entry *entry
    cdef Dir *dir
    cdef uint32_t count = 1, place
    cdef bint known
    if node.inside != NULL:
        return node.inside
    if parent == NULL:
        return NULL
    entry = &parent.entries[node.entry]
    if entry.type != DT_DIR:
        return NULL
    if entry.upper:
        return inside_upper(lane, node, names_max)
    place = entry.first
    while place:
        count += 1
        place = parent.places[place - 1].next
    dir = <Dir *>calloc(1, sizeof(Dir))
    if dir == NULL:
        return NULL
    dir.id, dir.ino, dir.parent_ino, dir.owner = node.id, node.ino, parent.ino, node
    dir.listable = lane.by_number
    dir.parts = <Part *>calloc(count, sizeof(Part))
    known = dir.parts != NULL and part_below(dir, &parent.parts[entry.part], parent, entry)
    place = entry.first
    while place and known:
        known = part_below(dir, &parent.parts[parent.places[place - 1].part], parent, entry)
        place = parent.places[place - 1].next
    if parent.parts[entry.part].image != NULL:
        names_max = NAMES_MAX
    if not known or dir_scan_all(dir, names_max) or not map_put(&lane.dirs, dir.id, dir):
        dir_free(dir)
        return NULL
    node.inside = dir
    return dir
