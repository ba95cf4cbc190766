# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Replies that need no Python: see the package's docstring for what is answered here and why that is right.

Threads: `serve` runs in the one thread that reads requests, mostly without the GIL. Every other method may be called
by any thread that holds the GIL. `_mutex` guards all tables; it is held over the reply to a request as well, so that
nobody changes what is being told. It is never held while the GIL is waited for.
"""

from libc.errno cimport EAGAIN, EINTR, ENODATA, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, errno

include "map.pxi"
include "layout.pxi"
include "tables.pxi"
include "scan.pxi"

from cpython.bytes cimport PyBytes_FromStringAndSize


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef extern from "<unistd.h>" nogil:
    ssize_t c_read "read" (int fd, void *buffer, size_t size)
    ssize_t c_write "write" (int fd, const void *buffer, size_t size)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd *fds, unsigned long count, int timeout_ms)
    int POLLIN

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *parts, int count, int64_t offset, int flags)
    int RWF_NOWAIT

cdef extern from "<sys/stat.h>" nogil:
    int fstat(int fd, struct_stat *status)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

cdef extern from *:
    """
    #define LANE_ATIME_NS(s) ((s).st_atim.tv_nsec)
    #define LANE_MTIME_NS(s) ((s).st_mtim.tv_nsec)
    #define LANE_CTIME_NS(s) ((s).st_ctim.tv_nsec)
    """
    uint32_t LANE_ATIME_NS(struct_stat status) nogil
    uint32_t LANE_MTIME_NS(struct_stat status) nogil
    uint32_t LANE_CTIME_NS(struct_stat status) nogil

FIRST_ID = 1 << 62
"""Node ids and file handles that are given out here begin with this one; Python's never reach it."""

cdef enum:
    PUBLISH_AFTER = 3   # lookups in a directory
    LISTED = 1 << 13    # stands for as many lookups
    HEADER = 40         # struct fuse_in_header
    OUT = 16            # struct fuse_out_header
    READ_MAX = 1 << 20
    TRUST_MAX = 8

cdef enum:
    ANSWERED = 0
    PYTHON = 1

cdef uint64_t _FIRST = <uint64_t>1 << 62
cdef uint64_t FOREVER_S = 1000000000


cdef inline int64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void _fill_attr(Attr *attr, struct_stat *status, uint64_t ino) noexcept nogil:
    memset(attr, 0, sizeof(Attr))
    attr.ino = ino
    attr.size = <uint64_t>status.st_size
    attr.blocks = <uint64_t>status.st_blocks
    attr.atime = <int64_t>status.st_atime
    attr.mtime = <int64_t>status.st_mtime
    attr.ctime = <int64_t>status.st_ctime
    attr.atime_ns = LANE_ATIME_NS(status[0])
    attr.mtime_ns = LANE_MTIME_NS(status[0])
    attr.ctime_ns = LANE_CTIME_NS(status[0])
    attr.mode = status.st_mode
    attr.nlink = <uint32_t>status.st_nlink
    attr.uid = status.st_uid
    attr.gid = status.st_gid
    attr.blksize = <uint32_t>status.st_blksize


cdef class Lane:
    """The lane of one mount.

    Args:
        file_flags: FOPEN_* of the reply to an open of a lower file.
        directory_flags: of an open directory.
        opens: whether files may be opened here (not where their opens must be in passthrough).
        metacopy: name of the xattr that marks a file without data.
    """

    cdef pthread_mutex_t _mutex
    cdef Map _nodes         # id -> Node
    cdef Map _numbers       # st_ino -> Node
    cdef Map _taken         # st_ino of nodes that Python knows
    cdef Map _dirs          # node id -> Dir
    cdef Map _looks         # node id -> lookups in a directory that is not published; _NEVER: it will not be
    cdef Map _files         # fh -> File
    cdef Map _listings      # fh -> Listing
    cdef uint64_t _next
    cdef uint64_t _epoch
    cdef uint32_t _file_flags
    cdef uint32_t _directory_flags
    cdef bint _opens
    cdef bytes _metacopy_kept
    cdef const char *_metacopy
    cdef char *_out
    cdef uint64_t _wanted   # directory that Python should publish
    cdef bint _wanted_listing
    cdef int64_t _trust
    cdef bint _ended
    cdef readonly uint64_t answered

    def __cinit__(self, int file_flags, int directory_flags, bint opens, bytes metacopy):
        pthread_mutex_init(&self._mutex, NULL)
        self._next = _FIRST
        self._file_flags = file_flags
        self._directory_flags = directory_flags
        self._opens = opens
        self._metacopy_kept = metacopy
        self._metacopy = self._metacopy_kept
        self._out = <char *>malloc(OUT + READ_MAX)
        if self._out == NULL:
            raise MemoryError

    def __dealloc__(self):
        self._clear()
        free(self._out)
        pthread_mutex_destroy(&self._mutex)

    # Python's side. Each takes the mutex without holding the GIL for it.

    cdef void _lock(self):
        with nogil:
            pthread_mutex_lock(&self._mutex)

    cdef void _unlock(self):
        pthread_mutex_unlock(&self._mutex)

    def close(self):
        """Close what is open; the lane knows nothing any more."""
        self._lock()
        self._clear()
        self._unlock()

    cdef void _clear(self):
        cdef size_t each
        cdef File *file
        for each in range(self._files.mask + 1 if self._files.slots != NULL else 0):
            file = <File *>self._files.slots[each].value
            if file != NULL:
                c_close(file.fd)
                free(file)
        for each in range(self._listings.mask + 1 if self._listings.slots != NULL else 0):
            free(self._listings.slots[each].value)
        for each in range(self._nodes.mask + 1 if self._nodes.slots != NULL else 0):
            free(self._nodes.slots[each].value)
        for each in range(self._dirs.mask + 1 if self._dirs.slots != NULL else 0):
            dir_free(<Dir *>self._dirs.slots[each].value)
        map_clear(&self._files)
        map_clear(&self._listings)
        map_clear(&self._nodes)
        map_clear(&self._numbers)
        map_clear(&self._taken)
        map_clear(&self._dirs)
        map_clear(&self._looks)

    def publish(self, uint64_t id, uint64_t ino, uint64_t parent_ino, list parts, upper, bint listable):
        """Take over the lookups in a directory.

        Args:
            id: its node id.
            ino, parent_ino: what its listing says of `.` and `..`.
            parts: of each lower directory, top first: (root descriptor, path, st_dev, position, flags of open(2)).
            upper: (root descriptor, path) of the upper directory, or None.
            listable: whether a listing shows what `parts` have, without more ado.

        Returns True if it did.
        """
        cdef Dir *dir
        cdef Part *part
        cdef uint32_t each, names_max
        cdef uint64_t looks
        cdef int result = 0
        cdef int fd
        cdef bytes path
        if len(parts) > 60000 or any(len(row[1]) > STEP_MAX for row in parts):
            self._never(id)
            return False
        if upper is not None and len(upper[1]) > STEP_MAX:
            self._never(id)
            return False
        self._lock()
        dir = <Dir *>map_get(&self._dirs, id)
        looks = <uint64_t>map_get(&self._looks, id)
        self._unlock()
        if dir != NULL:
            dir.parent_ino = parent_ino
            dir.epoch = self._epoch
            return True
        # Reading all names for a few lookups would not pay.
        names_max = <uint32_t>min(<uint64_t>1 << 20, 1024 + looks * 256)
        dir = <Dir *>calloc(1, sizeof(Dir))
        if dir == NULL:
            return False
        dir.id, dir.ino, dir.parent_ino, dir.epoch = id, ino, parent_ino, self._epoch
        dir.listable = listable and upper is None
        dir.parts = <Part *>calloc(len(parts) + 1, sizeof(Part))
        if dir.parts == NULL:
            free(dir)
            return False
        for row in parts:
            part = &dir.parts[dir.part_count]
            path = row[1]
            part.root_fd, part.device, part.position, part.open_flags = row[0], row[2], row[3], row[4]
            part.length = len(path)
            part.path = <char *>malloc(part.length + 1)
            if part.path == NULL:
                dir_free(dir)
                return False
            memcpy(part.path, <char *>path, part.length + 1)
            dir.part_count += 1
        if upper is not None:
            fd = upper[0]
            path = upper[1]
            result = self._scan(dir, 0, fd, path, True, names_max)
        for each in range(dir.part_count):
            if result:
                break
            part = &dir.parts[each]
            result = self._scan(dir, each, part.root_fd, PyBytes_FromStringAndSize(part.path, part.length), False, names_max)
        dir.limit = dir.count * 2 + 1024
        if result:
            looks = looks * 2 + PUBLISH_AFTER if dir.count >= names_max else <uint64_t>-1
            dir_free(dir)
            self._lock()
            map_put(&self._looks, id, <void *>looks)
            self._unlock()
            return False
        self._lock()
        if map_put(&self._dirs, id, dir):
            map_pop(&self._looks, id)
        else:
            dir_free(dir)
            dir = NULL
        self._unlock()
        return dir != NULL

    cdef int _scan(self, Dir *dir, uint32_t number, int root_fd, bytes path, bint upper, uint32_t names_max):
        cdef const char *raw = path
        cdef int result
        with nogil:
            result = dir_scan(dir, number, root_fd, raw, upper, names_max)
        return result

    def never(self, uint64_t id):
        """A directory is nothing for the lane."""
        self._never(id)

    cdef void _never(self, uint64_t id):
        self._lock()
        map_put(&self._looks, id, <void *><uint64_t>-1)
        self._unlock()

    def retract(self, uint64_t parent, bytes name):
        """Python is about to change a name: it answers for it from now on.

        Returns the node id that goes with the name here, 0 if none does; that node is to be handed over first.
        """
        cdef Dir *dir
        cdef Entry *entry
        cdef uint64_t id = 0
        cdef const char *raw = name
        cdef size_t length = len(name)
        self._lock()
        dir = <Dir *>map_get(&self._dirs, parent)
        if dir != NULL and 0 < length <= 255:
            entry = dir_find(dir, raw, length)
            if entry != NULL and entry.node != NULL:
                id = entry.node.id
            elif entry != NULL:
                if entry.state != UNSURE:
                    entry.state = UNSURE
                    dir.unsure += 1
            elif not dir.closed:
                entry = dir_add(dir, raw, length) if dir.count < dir.limit else NULL
                if entry == NULL:
                    self._close_dir(dir)
                else:
                    entry.state = UNSURE
                    dir.unsure += 1
        self._unlock()
        return id

    cdef void _close_dir(self, Dir *dir) noexcept nogil:
        dir.closed = True
        self._drop_unused(dir)

    cdef void _drop_unused(self, Dir *dir) noexcept nogil:
        if dir.closed and not dir.users:
            map_pop(&self._dirs, dir.id)
            dir_free(dir)

    def moved(self):
        """A directory may have another parent now."""
        self._lock()
        self._epoch += 1
        self._unlock()

    def owns(self, uint64_t id):
        """(id of the parent, name, st_ino) of a node that Python is to take over; None if it is not one of ours."""
        cdef Node *node
        cdef Entry *entry
        found = None
        self._lock()
        node = <Node *>map_get(&self._nodes, id)
        if node != NULL:
            entry = &node.dir.entries[node.entry]
            found = (
                node.dir.id,
                PyBytes_FromStringAndSize(node.dir.names + entry.name, entry.length),
                node.ino,
            )
        self._unlock()
        return found

    def claim(self, uint64_t ino):
        """Python is about to tell the kernel of an inode: the node id that the kernel knows from here, 0 if none.

        From then on the inode is not told of here, until it is `gone`.
        """
        cdef Node *node
        cdef uint64_t id = 0
        self._lock()
        node = <Node *>map_get(&self._numbers, ino)
        if node != NULL:
            id = node.id
        map_put(&self._taken, ino, <void *>1)
        self._unlock()
        return id

    def hand_over(self, uint64_t id):
        """Python knows the node from now on: (lookups, [(fh, descriptor, flags, uid, gid, pid)])."""
        cdef Node *node
        cdef File *file
        cdef Entry *entry
        files = []
        lookups = 0
        self._lock()
        node = <Node *>map_get(&self._nodes, id)
        if node != NULL:
            lookups = node.lookups
            while node.files != NULL:
                file = node.files
                files.append((file.fh, file.fd, file.flags, file.uid, file.gid, file.pid))
                node.files = file.next
                map_pop(&self._files, file.fh)
                free(file)
            entry = &node.dir.entries[node.entry]
            if entry.state == LANE:
                entry.state = OTHER
            self._free_node(node)
        self._unlock()
        return lookups, files

    cdef void _free_node(self, Node *node) noexcept nogil:
        cdef Dir *dir = node.dir
        dir.entries[node.entry].node = NULL
        map_pop(&self._nodes, node.id)
        map_pop(&self._numbers, node.ino)
        free(node)
        dir.users -= 1
        self._drop_unused(dir)

    def gone(self, uint64_t ino, uint64_t id):
        """Python forgets a node: (ids of nodes in that directory which are ours)."""
        cdef Dir *dir
        cdef uint32_t each
        left = []
        self._lock()
        map_pop(&self._taken, ino)
        map_pop(&self._looks, id)
        dir = <Dir *>map_get(&self._dirs, id)
        if dir != NULL:
            dir.closed = True
            if dir.users:
                for each in range(dir.count):
                    if dir.entries[each].node != NULL:
                        left.append(dir.entries[each].node.id)
            self._drop_unused(dir)
        self._unlock()
        return left

    def listing_of(self, uint64_t fh):
        """Python takes over an open directory: its node id, 0 if it is not ours."""
        cdef Listing *listing
        cdef uint64_t id = 0
        self._lock()
        listing = <Listing *>map_pop(&self._listings, fh)
        if listing != NULL:
            id = listing.dir.id
            self._close_listing(listing)
        self._unlock()
        return id

    cdef void _close_listing(self, Listing *listing) noexcept nogil:
        cdef Dir *dir = listing.dir
        free(listing)
        dir.users -= 1
        self._drop_unused(dir)


    def counts(self):
        """What is held: nodes, directories, open files, open directories, numbers that Python knows."""
        return (
            self._nodes.used,
            self._dirs.used,
            self._files.used,
            self._listings.used,
            self._taken.used,
        )

    def answer(self, int fd, const uint8_t[::1] request):
        """Answer one request, for tests: True if it was answered here, the rest of it if it was in part."""
        cdef size_t count = request.shape[0]
        cdef int result
        if count == 0:
            return False
        cdef char *copy = <char *>malloc(count)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, &request[0], count)
        with nogil:
            result = self._answer(fd, copy, &count)
        rest = PyBytes_FromStringAndSize(copy, count)
        free(copy)
        return True if result == ANSWERED else rest

    def wanted(self):
        """The directory that is to be published before the next request is answered, 0 if none is; and whether it is
        for a listing."""
        cdef uint64_t id = self._wanted
        self._wanted = 0
        return id, self._wanted_listing

    # The reader

    def next(self, int fd, int wake_fd, buffer, int poll_us):
        """Answer requests until one is for Python; returns its size, 0: woken or interrupted, -1: the mount is gone.

        Raises OSError where the kernel gives no requests.
        """
        cdef char[::1] view = buffer
        cdef char *into = &view[0]
        cdef size_t room = view.shape[0]
        cdef int64_t count
        cdef int number = 0
        with nogil:
            count = self._next_for_python(fd, wake_fd, into, room, poll_us, &number)
        if number:
            raise OSError(number, "reading from /dev/fuse")
        return count

    cdef int64_t _next_for_python(self, int fd, int wake_fd, char *buffer, size_t room, int poll_us, int *number) noexcept nogil:
        cdef int64_t window = <int64_t>poll_us * 1000
        cdef int64_t until = 0, slept
        cdef bint looked = False
        cdef ssize_t count
        cdef size_t size
        cdef pollfd watched[2]
        watched[0].fd = fd
        watched[0].events = POLLIN
        watched[1].fd = wake_fd
        watched[1].events = POLLIN
        if self._trust and window:
            until = _now_ns() + window
        while True:
            if not until:
                slept = _now_ns()
                watched[0].revents = 0
                watched[1].revents = 0
                if c_poll(watched, 2, -1) < 0 and errno != EINTR:
                    number[0] = errno
                    return 0
                if watched[1].revents:
                    return 0
                if _now_ns() - slept < window and self._trust < TRUST_MAX:
                    self._trust += 1
            count = c_read(fd, buffer, room)
            if count < 0:
                if errno == EAGAIN:
                    if until and _now_ns() < until:
                        looked = True
                        continue
                    if until:
                        self._trust >>= 1
                    until = 0
                    looked = False
                    continue
                if errno == EINTR or errno == ENOENT:
                    continue
                if errno == ENODEV:
                    return -1
                number[0] = errno
                return 0
            if looked and self._trust < TRUST_MAX:
                self._trust += 1
            looked = False
            size = <size_t>count
            if self._answer(fd, buffer, &size) == PYTHON:
                return <int64_t>size
            until = _now_ns() + window if self._trust and window else 0

    cdef int _answer(self, int fd, char *buffer, size_t *count) noexcept nogil:
        cdef InHeader *header = <InHeader *>buffer
        cdef int result
        if count[0] < HEADER or header.len != count[0] or header.extlen:
            return PYTHON
        pthread_mutex_lock(&self._mutex)
        result = self._dispatch(fd, header, buffer + HEADER, count)
        pthread_mutex_unlock(&self._mutex)
        if result == ANSWERED:
            self.answered += 1
        return result

    cdef int _dispatch(self, int fd, InHeader *header, char *body, size_t *count) noexcept nogil:
        cdef size_t size = count[0] - HEADER
        if header.opcode == LOOKUP:
            return self._lookup(fd, header, body, size)
        if header.opcode == GETATTR:
            return self._getattr(fd, header)
        if header.opcode == READ:
            return self._read(fd, header, body, size)
        if header.opcode == FORGET:
            return self._forget(header, body, size)
        if header.opcode == BATCH_FORGET:
            return self._batch_forget(header, body, count)
        if header.opcode == OPEN:
            return self._open(fd, header, body, size)
        if header.opcode == RELEASE:
            return self._release(fd, header, body, size)
        if header.opcode == READDIRPLUS or header.opcode == READDIR:
            return self._readdir(fd, header, body, size, header.opcode == READDIRPLUS)
        if header.opcode == OPENDIR:
            return self._opendir(fd, header)
        if header.opcode == RELEASEDIR:
            return self._releasedir(fd, header, body, size)
        if header.opcode == READLINK:
            return self._readlink(fd, header)
        if header.opcode == GETXATTR:
            return self._getxattr(fd, header, body, size)
        return PYTHON

    cdef bint _reply(self, int fd, InHeader *header, size_t size, int error) noexcept nogil:
        """Send `size` bytes of the reply; False if nobody waits for it any more."""
        cdef OutHeader *out = <OutHeader *>self._out
        out.len = <uint32_t>(OUT + size)
        out.error = -error
        out.unique = header.unique
        return c_write(fd, self._out, OUT + size) >= 0

    # Names

    cdef int _lookup(self, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
        cdef Dir *dir
        cdef Entry *entry
        cdef Node *node
        cdef EntryOut *out = <EntryOut *>(self._out + OUT)
        cdef struct_stat status
        cdef size_t length
        if size < 2 or body[size - 1] != 0:
            return PYTHON
        length = size - 1
        if length > 255 or body[0] == b"." or strlen(body) != length:
            # `.` and `..`, and names that hide others, are Python's.
            if length > 255 or length < 3 or _is_meta(body) or strlen(body) != length:
                return PYTHON
        dir = <Dir *>map_get(&self._dirs, header.nodeid)
        if dir == NULL:
            self._count_look(header.nodeid)
            return PYTHON
        if dir.closed:
            return PYTHON
        entry = dir_find(dir, body, length)
        if entry == NULL:
            memset(out, 0, sizeof(EntryOut))
            out.entry_valid = FOREVER_S
            out.attr_valid = FOREVER_S
            self._reply(fd, header, sizeof(EntryOut), 0)
            return ANSWERED
        if entry.state != LANE:
            return PYTHON
        node = self._node(dir, entry, &status)
        if node == NULL:
            return PYTHON
        self._fill_entry(out, node, &status)
        if not self._reply(fd, header, sizeof(EntryOut), 0):
            self._take_back(node, 1)
        return ANSWERED

    cdef void _count_look(self, uint64_t id) noexcept nogil:
        cdef uint64_t looks = <uint64_t>map_get(&self._looks, id)
        if looks == <uint64_t>-1:
            return
        looks += 1
        map_put(&self._looks, id, <void *>looks)
        # At 3, and where it was too large for that, at 9, 21, 45 ...
        if looks >= PUBLISH_AFTER and looks % PUBLISH_AFTER == 0:
            self._wanted = id
            self._wanted_listing = False

    cdef bint _stat(self, Dir *dir, Entry *entry, struct_stat *status) noexcept nogil:
        """The status of a plain file or symlink; False: Python should look."""
        cdef char path[PATH_ROOM]
        cdef Part *part = &dir.parts[entry.part]
        path_of(part, dir.names + entry.name, entry.length, path)
        if fstatat(part.root_fd, path, status, AT_SYMLINK_NOFOLLOW) != 0:
            return False
        if status.st_dev != part.device or status.st_nlink != 1:
            return False
        if (part.position << 48 | <uint64_t>status.st_ino) != entry.ino:
            return False
        if S_ISREG(status.st_mode):
            return status.st_size != 0 or not marked(part, path)
        return S_ISLNK(status.st_mode)

    cdef Node *_node(self, Dir *dir, Entry *entry, struct_stat *status) noexcept nogil:
        """The node of an entry with one more lookup; NULL: Python should look."""
        cdef Node *node
        if entry.node == NULL and map_get(&self._taken, entry.ino) != NULL:
            return NULL
        if not self._stat(dir, entry, status):
            return NULL
        node = entry.node
        if node == NULL:
            if map_get(&self._numbers, entry.ino) != NULL:
                return NULL
            node = <Node *>calloc(1, sizeof(Node))
            if node == NULL:
                return NULL
            node.id = self._next
            node.ino = entry.ino
            node.dir = dir
            node.entry = <uint32_t>(entry - dir.entries)
            if not map_put(&self._nodes, node.id, node):
                free(node)
                return NULL
            if not map_put(&self._numbers, node.ino, node):
                map_pop(&self._nodes, node.id)
                free(node)
                return NULL
            self._next += 1
            entry.node = node
            dir.users += 1
        node.lookups += 1
        return node

    cdef void _fill_entry(self, EntryOut *out, Node *node, struct_stat *status) noexcept nogil:
        out.nodeid = node.id
        out.generation = 0
        out.entry_valid = FOREVER_S
        out.attr_valid = FOREVER_S
        out.entry_valid_ns = 0
        out.attr_valid_ns = 0
        _fill_attr(&out.attr, status, node.ino)

    cdef void _take_back(self, Node *node, uint64_t count) noexcept nogil:
        node.lookups -= count if count < node.lookups else node.lookups
        if not node.lookups and node.files == NULL:
            self._free_node(node)

    cdef int _forget(self, InHeader *header, char *body, size_t size) noexcept nogil:
        cdef Node *node = <Node *>map_get(&self._nodes, header.nodeid)
        if node == NULL or size < sizeof(uint64_t):
            return PYTHON
        self._take_back(node, (<uint64_t *>body)[0])
        return ANSWERED

    cdef int _batch_forget(self, InHeader *header, char *body, size_t *count) noexcept nogil:
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
            node = <Node *>map_get(&self._nodes, rows[each].nodeid)
            if node == NULL:
                rows[kept] = rows[each]
                kept += 1
            else:
                self._take_back(node, rows[each].nlookup)
        if not kept:
            return ANSWERED
        batch.count = kept
        count[0] = HEADER + sizeof(BatchForgetIn) + kept * sizeof(ForgetOne)
        header.len = <uint32_t>count[0]
        return PYTHON

    # Nodes

    cdef int _getattr(self, int fd, InHeader *header) noexcept nogil:
        cdef Node *node = <Node *>map_get(&self._nodes, header.nodeid)
        cdef AttrOut *out = <AttrOut *>(self._out + OUT)
        cdef struct_stat status
        if node == NULL or not self._stat(node.dir, &node.dir.entries[node.entry], &status):
            return PYTHON
        out.attr_valid = FOREVER_S
        out.attr_valid_ns = 0
        out.dummy = 0
        _fill_attr(&out.attr, &status, node.ino)
        self._reply(fd, header, sizeof(AttrOut), 0)
        return ANSWERED

    cdef int _readlink(self, int fd, InHeader *header) noexcept nogil:
        cdef Node *node = <Node *>map_get(&self._nodes, header.nodeid)
        cdef char path[PATH_ROOM]
        cdef Entry *entry
        cdef Part *part
        cdef ssize_t length
        if node == NULL:
            return PYTHON
        entry = &node.dir.entries[node.entry]
        part = &node.dir.parts[entry.part]
        path_of(part, node.dir.names + entry.name, entry.length, path)
        length = readlinkat(part.root_fd, path, self._out + OUT, 4096)
        if length <= 0 or length >= 4096:
            return PYTHON
        self._reply(fd, header, <size_t>length, 0)
        return ANSWERED

    cdef int _getxattr(self, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
        """Only that a file has no capability and no ACL, which is asked for all the time."""
        cdef Node *node = <Node *>map_get(&self._nodes, header.nodeid)
        cdef char path[PATH_ROOM]
        cdef char proc[PATH_ROOM + 64]
        cdef char *name
        cdef Entry *entry
        cdef Part *part
        if node == NULL or size <= sizeof(GetxattrIn) or body[size - 1] != 0:
            return PYTHON
        name = body + sizeof(GetxattrIn)
        if strlen(name) != size - sizeof(GetxattrIn) - 1:
            return PYTHON
        if not (_same(name, "system.posix_acl_access") or _same(name, "system.posix_acl_default")):
            # security.capability is noted by Python: see wire/device/killpriv.
            return PYTHON
        entry = &node.dir.entries[node.entry]
        part = &node.dir.parts[entry.part]
        path_of(part, node.dir.names + entry.name, entry.length, path)
        snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", part.root_fd, path)
        if lgetxattr(proc, name, NULL, 0) >= 0 or errno != ENODATA:
            return PYTHON
        self._reply(fd, header, 0, ENODATA)
        return ANSWERED

    # Open files

    cdef int _open(self, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
        cdef Node *node
        cdef File *file
        cdef Entry *entry
        cdef Part *part
        cdef OpenOut *out = <OpenOut *>(self._out + OUT)
        cdef char path[PATH_ROOM]
        cdef uint32_t flags
        cdef int opened
        if not self._opens or size < sizeof(OpenIn):
            return PYTHON
        flags = (<OpenIn *>body).flags
        node = <Node *>map_get(&self._nodes, header.nodeid)
        if node == NULL or flags & O_ACCMODE or flags & O_TRUNC:
            return PYTHON
        entry = &node.dir.entries[node.entry]
        if entry.type != DT_REG:
            return PYTHON
        part = &node.dir.parts[entry.part]
        path_of(part, node.dir.names + entry.name, entry.length, path)
        opened = openat(part.root_fd, path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | part.open_flags)
        if opened < 0:
            return PYTHON
        file = <File *>calloc(1, sizeof(File))
        if file == NULL or fgetxattr(opened, self._metacopy, NULL, 0) >= 0:
            c_close(opened)
            free(file)
            return PYTHON
        file.fh = self._next
        if not map_put(&self._files, file.fh, file):
            c_close(opened)
            free(file)
            return PYTHON
        self._next += 1
        file.fd = opened
        file.flags = flags
        file.uid, file.gid, file.pid = header.uid, header.gid, header.pid
        file.node = node
        file.next = node.files
        node.files = file
        out.fh = file.fh
        out.open_flags = self._file_flags
        out.backing_id = 0
        if not self._reply(fd, header, sizeof(OpenOut), 0):
            self._close_file(file)
        return ANSWERED

    cdef void _close_file(self, File *file) noexcept nogil:
        cdef Node *node = file.node
        cdef File **link = &node.files
        while link[0] != NULL and link[0] != file:
            link = &link[0].next
        if link[0] == file:
            link[0] = file.next
        map_pop(&self._files, file.fh)
        c_close(file.fd)
        free(file)
        if not node.lookups and node.files == NULL:
            self._free_node(node)

    cdef int _release(self, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
        cdef File *file
        if size < sizeof(ReleaseIn):
            return PYTHON
        file = <File *>map_get(&self._files, (<ReleaseIn *>body).fh)
        if file == NULL:
            return PYTHON
        self._reply(fd, header, 0, 0)
        self._close_file(file)
        return ANSWERED

    cdef int _read(self, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
        cdef ReadIn *request = <ReadIn *>body
        cdef File *file
        cdef iovec part
        cdef ssize_t count
        cdef struct_stat status
        if size < sizeof(ReadIn) or request.size > READ_MAX or request.offset >> 62:
            return PYTHON
        file = <File *>map_get(&self._files, request.fh)
        if file == NULL:
            return PYTHON
        part.iov_base = self._out + OUT
        part.iov_len = request.size
        count = preadv2(file.fd, &part, 1, <int64_t>request.offset, RWF_NOWAIT)
        if count < 0 and errno == EOPNOTSUPP:
            # A filesystem that has no way to say so has its data in memory, as tmpfs.
            count = preadv2(file.fd, &part, 1, <int64_t>request.offset, 0)
        if count < 0:
            return PYTHON
        if <size_t>count < request.size:
            if fstat(file.fd, &status) != 0 or <int64_t>request.offset + count < status.st_size:
                return PYTHON
        self._reply(fd, header, <size_t>count, 0)
        return ANSWERED

    # Open directories

    cdef int _opendir(self, int fd, InHeader *header) noexcept nogil:
        cdef Dir *dir = <Dir *>map_get(&self._dirs, header.nodeid)
        cdef OpenOut *out = <OpenOut *>(self._out + OUT)
        cdef Listing *listing
        cdef uint64_t fh
        if dir == NULL:
            if map_get(&self._looks, header.nodeid) != <void *><uint64_t>-1:
                # All names are read anyway.
                map_put(&self._looks, header.nodeid, <void *><uint64_t>LISTED)
                self._wanted = header.nodeid
                self._wanted_listing = True
            return PYTHON
        if dir.closed or not dir.listable or dir.unsure:
            return PYTHON
        if dir.epoch != self._epoch:
            self._wanted = header.nodeid
            self._wanted_listing = True
            return PYTHON
        listing = <Listing *>calloc(1, sizeof(Listing))
        if listing == NULL:
            return PYTHON
        fh = self._next
        if not map_put(&self._listings, fh, listing):
            free(listing)
            return PYTHON
        self._next += 1
        listing.dir = dir
        listing.count = dir.count
        dir.users += 1
        out.fh = fh
        out.open_flags = self._directory_flags
        out.backing_id = 0
        if not self._reply(fd, header, sizeof(OpenOut), 0):
            map_pop(&self._listings, fh)
            self._close_listing(listing)
        return ANSWERED

    cdef int _releasedir(self, int fd, InHeader *header, char *body, size_t size) noexcept nogil:
        cdef Listing *listing
        if size < sizeof(ReleaseIn):
            return PYTHON
        listing = <Listing *>map_pop(&self._listings, (<ReleaseIn *>body).fh)
        if listing == NULL:
            return PYTHON
        self._close_listing(listing)
        self._reply(fd, header, 0, 0)
        return ANSWERED

    cdef int _readdir(self, int fd, InHeader *header, char *body, size_t size, bint plus) noexcept nogil:
        cdef ReadIn *request = <ReadIn *>body
        cdef Listing *listing
        cdef Dir *dir
        cdef Entry *entry
        cdef uint64_t number
        cdef size_t room, used = 0, added
        if size < sizeof(ReadIn):
            return PYTHON
        listing = <Listing *>map_get(&self._listings, request.fh)
        if listing == NULL:
            return PYTHON
        dir = listing.dir
        if request.offset == 0:
            if dir.unsure:
                # Names have changed since it was opened: Python reads it.
                return PYTHON
            listing.count = dir.count
        room = request.size if request.size < READ_MAX else READ_MAX
        number = request.offset
        while number < <uint64_t>listing.count + 2:
            if number == 0:
                added = self._row(used, room, plus, dir, NULL, dir.ino, b".", 1, 1)
            elif number == 1:
                added = self._row(used, room, plus, dir, NULL, dir.parent_ino, b"..", 2, 2)
            else:
                entry = &dir.entries[number - 2]
                added = self._row(used, room, plus, dir, entry, entry.ino, dir.names + entry.name, entry.length, number + 1)
            if not added:
                break
            used += added
            number += 1
        if not self._reply(fd, header, used, 0) and plus:
            self._untell(self._out + OUT, used)
        return ANSWERED

    cdef size_t _row(
        self, size_t used, size_t room, bint plus, Dir *dir, Entry *entry, uint64_t ino, const char *name, size_t length, uint64_t offset
    ) noexcept nogil:
        """One row of a listing; returns its size, 0 if there is no room for it."""
        cdef size_t fixed = sizeof(Dirent) + (sizeof(EntryOut) if plus else 0)
        cdef size_t whole = (fixed + length + 7) & ~<size_t>7
        cdef char *at = self._out + OUT + used
        cdef EntryOut *told
        cdef Dirent *row
        cdef Node *node = NULL
        cdef struct_stat status
        if used + whole > room:
            return 0
        memset(at, 0, whole)
        if plus:
            told = <EntryOut *>at
            # Python knows no directory any more that is closed and still open: a node in it could not be handed over.
            if entry != NULL and entry.state == LANE and not dir.closed:
                node = self._node(dir, entry, &status)
            if node != NULL:
                self._fill_entry(told, node, &status)
            # Else without a node id: then the kernel asks for the name if it wants more.
            at += sizeof(EntryOut)
        row = <Dirent *>at
        row.ino = ino
        row.off = offset
        row.namelen = <uint32_t>length
        row.type = DT_DIR if entry == NULL else entry.type
        memcpy(at + sizeof(Dirent), name, length)
        return whole

    cdef void _untell(self, char *rows, size_t size) noexcept nogil:
        """Nobody got a listing with entries."""
        cdef size_t at = 0
        cdef EntryOut *told
        cdef Dirent *row
        cdef Node *node
        while at < size:
            told = <EntryOut *>(rows + at)
            row = <Dirent *>(rows + at + sizeof(EntryOut))
            node = <Node *>map_get(&self._nodes, told.nodeid) if told.nodeid else NULL
            if node != NULL:
                self._take_back(node, 1)
            at += (sizeof(EntryOut) + sizeof(Dirent) + row.namelen + 7) & ~<size_t>7


cdef inline bint _same(const char *one, const char *other) noexcept nogil:
    cdef size_t length = strlen(one)
    return length == strlen(other) and memcmp(one, other, length) == 0
