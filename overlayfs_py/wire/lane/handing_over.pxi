# What goes from the lane to Python and back. Part of lane.pyx.


cdef class HandingOver:
    """Python's side of the nodes that are known here: names retracted, nodes taken over and let go."""

    cdef State _state

    def retract(self, uint64_t parent, bytes name):
        """Python is about to change a name: it answers for it from now on.

        Returns the node id that goes with the name here, 0 if none does; that node is to be handed over first.
        """
        cdef State *lane = &self._state
        cdef Dir *dir
        cdef Entry *entry
        cdef Node *node
        cdef uint64_t id = 0
        cdef const char *raw = name
        cdef size_t length = len(name)
        _lock(lane)
        dir = <Dir *>map_get(&lane.dirs, parent)
        if dir != NULL:
            dir.links = 0
        if dir != NULL and 0 < length <= 255:
            entry = dir_find(dir, raw, length)
            if entry != NULL:
                node = entry.node
                if node == NULL and entry.state == LANE:
                    # Perhaps known under another name.
                    node = <Node *>map_get(&lane.numbers, entry.ino)
                if node != NULL:
                    id = node.id
                else:
                    _unsure(dir, entry)
            elif not dir.closed:
                entry = dir_add(dir, raw, length) if dir.added < dir.limit else NULL
                if entry == NULL:
                    _close_dir(lane, dir)
                else:
                    dir.added += 1
                    _unsure(dir, entry)
        _unlock(lane)
        return id

    def released(self):
        """The directories that were kept, and that nothing here needs any more."""
        cdef State *lane = &self._state
        cdef size_t each
        if not lane.released_count:
            return ()
        _lock(lane)
        ids = [lane.released[each] for each in range(lane.released_count)]
        lane.released_count = 0
        _unlock(lane)
        return ids

    @property
    def changed_directories(self):
        """Whether `recounted` has something to say."""
        return self._state.recount_count != 0

    def recounted(self):
        """The directories in which others were made, removed or renamed here since this was asked."""
        cdef State *lane = &self._state
        cdef Dir *dir
        cdef size_t each
        _lock(lane)
        ids = [lane.recounts[each] for each in range(lane.recount_count)]
        for each in range(lane.recount_count):
            dir = <Dir *>map_get(&lane.dirs, lane.recounts[each])
            if dir != NULL:
                dir.recounted = False
        lane.recount_count = 0
        _unlock(lane)
        return ids

    def owns(self, uint64_t id):
        """(id of the parent, name, st_ino) of a node that Python is to take over; None if it is not one of ours, or
        has no name."""
        cdef State *lane = &self._state
        cdef Node *node
        cdef Entry *entry
        found = None
        _lock(lane)
        node = <Node *>map_get(&lane.nodes, id)
        if node != NULL and node.dir != NULL:
            entry = &node.dir.entries[node.entry]
            found = (
                node.dir.id,
                PyBytes_FromStringAndSize(node.dir.names + entry.name, entry.length),
                node.ino,
            )
        _unlock(lane)
        return found

    def nameless(self, uint64_t id):
        """The same of one without a name: (descriptor or -1, where the lower object is, st_ino). The descriptor is a copy
        for the caller, who closes it; the place is (descriptor of the layer's root, path) or (number of the image,
        number in it)."""
        cdef State *lane = &self._state
        cdef Node *node
        cdef Part *held
        cdef uint32_t each
        found = None
        _lock(lane)
        node = <Node *>map_get(&lane.nodes, id)
        if node != NULL and node.dir == NULL:
            held = node.held
            if held == NULL:
                found = fcntl(node.pin, F_DUPFD_CLOEXEC, 3), None, node.ino
            elif held.image == NULL:
                found = -1, (held.root_fd, <bytes>held.path), node.ino
            else:
                for each in range(lane.image_count):
                    if lane.images[each] == held.image:
                        found = -1, (<int>each, held.nid), node.ino
        _unlock(lane)
        return found

    def set_links(self, uint64_t id, uint32_t links):
        """st_nlink of a directory, until one of its names is retracted or a directory is removed or moved."""
        cdef State *lane = &self._state
        cdef Dir *dir
        _lock(lane)
        dir = <Dir *>map_get(&lane.dirs, id)
        if dir != NULL:
            dir.links = links
            dir.links_epoch = lane.links_epoch
        _unlock(lane)

    def tell(self, uint64_t parent, bytes name):
        """The entry behind a name as a lookup would tell it, counted as one: (struct fuse_entry_out, st_ino, type);
        None: there is none here after all, and the kernel is to ask."""
        cdef State *lane = &self._state
        cdef Dir *dir
        cdef Entry *entry
        cdef Node *node
        cdef EntryOut out
        told = None
        _lock(lane)
        dir = <Dir *>map_get(&lane.dirs, parent)
        entry = dir_find(dir, name, len(name)) if dir != NULL and not dir.closed else NULL
        if entry != NULL and entry.state == LANE and (entry.type != DT_DIR or entry.upper):
            node = _node(lane, dir, entry, &out.attr)
            if node != NULL:
                _fill_entry(lane, &out, node)
                told = PyBytes_FromStringAndSize(<char *>&out, sizeof(EntryOut)), entry.ino, <int>entry.type
        _unlock(lane)
        return told

    def untell(self, bytes told):
        """Take `tell` back."""
        cdef State *lane = &self._state
        cdef const char *raw = told
        cdef Node *node
        _lock(lane)
        node = <Node *>map_get(&lane.nodes, (<const EntryOut *>raw).nodeid)
        if node != NULL:
            _take_back(lane, node, 1)
        _unlock(lane)

    def claim(self, uint64_t ino):
        """Python is about to tell the kernel of an inode: the node id that the kernel knows from here, 0 if none.

        From then on the inode is not told of here, until Python lets go of it (`gone`, `give_back`).
        """
        cdef State *lane = &self._state
        cdef Node *node
        cdef uint64_t id = 0
        _lock(lane)
        node = <Node *>map_get(&lane.numbers, ino)
        if node != NULL:
            id = node.id
        map_put(&lane.taken, ino, <void *>1)
        _unlock(lane)
        return id

    def hand_over(self, uint64_t id):
        """Python knows the node from now on: (lookups, backing id, whether that is the upper's file, [(fh, descriptor,
        flags, uid, gid, pid)]).

        The descriptor is -1 of a file whose data is not read through one here.
        """
        cdef State *lane = &self._state
        cdef Node *node
        cdef File *file
        cdef Entry *entry
        files = []
        lookups = backing = 0
        upper = False
        _lock(lane)
        node = <Node *>map_get(&lane.nodes, id)
        if node != NULL:
            lookups, backing = node.lookups, node.backing
            upper = node.pin >= 0 or (node.dir != NULL and node.dir.entries[node.entry].upper != 0)
            while node.files != NULL:
                file = node.files
                files.append((file.fh, file.fd, file.flags, file.uid, file.gid, file.pid))
                node.files = file.next
                map_pop(&lane.files, file.fh)
                free(file)
            if node.dir != NULL:
                entry = &node.dir.entries[node.entry]
                if entry.state == LANE:
                    entry.state = OTHER
            if node.inside != NULL:
                # What is known of the names in it stays good.
                node.inside.owner = NULL
                if node.inside.has_upper and node.inside.epoch != lane.paths:
                    # Where it is comes from Python.
                    node.inside.epoch = lane.epoch - 1
                else:
                    node.inside.epoch = lane.epoch
                node.inside = NULL
            _free_node(lane, node)
        _unlock(lane)
        return lookups, backing, upper, files

    def keep(self, uint64_t id):
        """Whether a directory that the kernel has forgotten is still needed here, for what is below it; then its id will
        be among those `released`."""
        cdef State *lane = &self._state
        cdef Dir *dir
        cdef bint needed = False
        _lock(lane)
        dir = <Dir *>map_get(&lane.dirs, id)
        if dir != NULL and dir.users:
            needed = dir.kept = True
        _unlock(lane)
        return needed

    def gone(self, uint64_t ino, uint64_t id, bint keep_number):
        """Python forgets a node. Args: keep_number: but the inode stays Python's."""
        cdef State *lane = &self._state
        cdef Dir *dir
        _lock(lane)
        if not keep_number:
            map_pop(&lane.taken, ino)
        map_pop(&lane.looks, id)
        dir = <Dir *>map_get(&lane.dirs, id)
        if dir != NULL:
            dir.kept = False
            _close_dir(lane, dir)
        _unlock(lane)

    def give_back(self, uint64_t ino):
        """Python has no node of an inode any more."""
        cdef State *lane = &self._state
        _lock(lane)
        map_pop(&lane.taken, ino)
        _unlock(lane)
