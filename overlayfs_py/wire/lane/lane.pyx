# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Replies that need no Python: see the package's docstring for what is answered here and why that is right.

Threads: `next` runs in the one thread that reads requests, mostly without the GIL. Every other method may be called
by any thread that holds the GIL. `mutex` guards all tables; it is held over the reply to a request as well, so that
nobody changes what is being told. It is never held while the GIL is waited for.
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, ENODATA, ENODEV, ENOENT, ENOSYS, ENOTTY, EOPNOTSUPP, ERANGE, errno

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

include "map.pxi"
include "layout.pxi"
include "tables.pxi"
include "scan.pxi"
include "image.pxi"
include "calls.pxi"

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

cdef extern from "<sys/ioctl.h>" nogil:
    int c_ioctl "ioctl" (int fd, unsigned long order, void *argument)

cdef extern from "<sys/statvfs.h>" nogil:
    struct struct_statvfs "statvfs":
        unsigned long f_bsize
        unsigned long f_frsize
        uint64_t f_blocks
        uint64_t f_bfree
        uint64_t f_bavail
        uint64_t f_files
        uint64_t f_ffree
        unsigned long f_namemax
    int fstatvfs(int fd, struct_statvfs *status)

INTERFACE = 10
"""As the package has it; a build that says something else is not used."""

FIRST_ID = 1 << 62
"""Node ids and file handles that are given out here begin with this one; Python's never reach it."""

cdef enum:
    LISTED = 1 << 13    # stands for as many lookups
    NAMES_MAX = 1 << 20
    NAMES_FOR_LOOKUP = 1280
    HEADER = 40         # struct fuse_in_header
    OUT = 16            # struct fuse_out_header
    READ_MAX = 1 << 20
    TRUST_MAX = 8
    CROWDED = -1000     # so many short sleeps until it is trusted again
    AWAY_NS = 100000    # between two looks, which take 1 us

cdef enum:
    ANSWERED = 0
    PYTHON = 1

cdef uint64_t FIRST = <uint64_t>1 << 62
cdef uint64_t FOREVER_S = 1000000000


cdef inline int64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline bint _same(const char *one, const char *other) noexcept nogil:
    cdef size_t length = strlen(one)
    return length == strlen(other) and memcmp(one, other, length) == 0


cdef inline bint _starts(const char *one, const char *start) noexcept nogil:
    cdef size_t length = strlen(start)
    return strlen(one) >= length and memcmp(one, start, length) == 0


cdef inline bint _is_policy(const char *name) noexcept nogil:
    """Whether an xattr is one of those that more than what is stored decides about (see overlay.change)."""
    return (
        _starts(name, "trusted.overlay.")
        or _starts(name, "user.overlay.")
        or _starts(name, "user.fuseoverlayfs.")
        or _starts(name, "user.containers.")
        or _starts(name, "security.fuseoverlayfs.")
    )


include "listers.pxi"
include "state.pxi"
include "names.pxi"
include "nodes.pxi"
include "files.pxi"
include "changes.pxi"
include "copying_up.pxi"
include "directories.pxi"
include "listings.pxi"
include "reader.pxi"
include "handing_over.pxi"


cdef bint _fill_parts(State *lane, Dir *dir, list parts, image) except -1:
    cdef Part *part
    cdef bytes path
    dir.parts = <Part *>calloc(len(parts) + 1, sizeof(Part))
    if dir.parts == NULL:
        return False
    if image is not None:
        part = &dir.parts[0]
        part.image = lane.images[<uint32_t>image[0]]
        part.nid, part.position = image[1], image[2]
        dir.part_count = 1
        return True
    for row in parts:
        part = &dir.parts[dir.part_count]
        path = row[1]
        part.root_fd, part.device, part.position, part.open_flags = row[0], row[2], row[3], row[4]
        if not part_path(part, path, len(path), NULL, 0):
            return False
        dir.part_count += 1
    return True


cdef bint _set_upper(Dir *dir, tuple upper):
    """Where the upper directory is, from now on; False: no memory."""
    cdef bytes path = upper[1]
    free(dir.upper.path)
    dir.has_upper = dir.listable = False
    if not part_path(&dir.upper, path, len(path), NULL, 0):
        return False
    dir.upper.root_fd, dir.upper.device, dir.upper.position, dir.impure = upper[0], upper[2], upper[3], upper[4]
    dir.has_upper = True
    return True


cdef int _scan_upper(State *lane, Dir *dir, int root_fd, bytes path, uint32_t names_max):
    cdef const char *raw = path
    cdef int result
    with nogil:
        result = dir_scan(dir, 0, root_fd, raw, True, names_max)
    return result


cdef void _never(State *lane, uint64_t id):
    _lock(lane)
    map_put(&lane.looks, id, <void *><uint64_t>-1)
    _unlock(lane)


cdef class Lane(HandingOver):
    """The lane of one mount.

    Args:
        file_flags: FOPEN_* of the reply to an open of a lower file.
        metacopy: name of the xattr that marks a file without data.
        opaque: of the one that marks a directory which hides what is below.
        publish_after: how many lookups in a directory it takes for its names to be read.
        by_number: whether an inode has the same number under all its names.
        backed: files are handed to the kernel, all opens of one alike.
        counts_links: whether st_nlink of a directory says how many are in it.
        acl: whether ACLs are answered for.
        read_only: whether nothing is ever copied up.
        changes: whether plain changes in the upper are made here.
        hands_over: whether files of the upper go to the kernel, all opens of one alike; else opening them is Python's.
        statfs_fd: what STATFS is asked of.
    """

    cdef bytes _metacopy
    cdef bytes _origin
    cdef bytes _opaque

    def __cinit__(
        self,
        int file_flags,
        bytes metacopy,
        bytes opaque,
        *,
        uint32_t publish_after=3,
        bint by_number=True,
        bint backed=False,
        bint counts_links=True,
        bint acl=True,
        bint read_only=False,
        bint changes=False,
        bint hands_over=False,
        int statfs_fd=-1,
    ):
        cdef State *lane = &self._state
        pthread_mutex_init(&lane.mutex, NULL)
        lane.next = FIRST
        lane.file_flags = file_flags
        lane.publish_after = publish_after
        lane.by_number, lane.backed, lane.counts_links = by_number, backed, counts_links
        lane.acl, lane.read_only, lane.changes, lane.hands_over = acl, read_only, changes, hands_over
        lane.own_modes = True
        lane.uid, lane.gid = geteuid(), getegid()
        lane.statfs_fd = statfs_fd
        lane.stage_fd = -1
        self._metacopy = metacopy
        lane.metacopy = self._metacopy
        self._opaque = opaque
        lane.opaque = self._opaque
        lane.out = <char *>malloc(OUT + READ_MAX)
        if lane.out == NULL:
            raise MemoryError

    def __dealloc__(self):
        state_clear(&self._state)
        free(self._state.out)
        pthread_mutex_destroy(&self._state.mutex)

    @staticmethod
    def cookie(bytes name):
        """Where a name is in a listing; see tables.pxi."""
        cdef const char *raw = name
        return cookie_of(raw, len(name))

    def close(self):
        """Close what is open; the lane knows nothing any more."""
        _lock(&self._state)
        state_clear(&self._state)
        _unlock(&self._state)

    @property
    def answered(self):
        """How many requests were answered here."""
        return self._state.answered

    def counts(self):
        """What is held: nodes, directories, open files, numbers that Python knows."""
        cdef State *lane = &self._state
        return lane.nodes.used, lane.dirs.used, lane.files.used, lane.taken.used

    def copies_up(self, int stage_fd, bytes origin, bint syncs, layers):
        """Copy plain files up, too.

        Args:
            stage_fd: where files without a name are made, on the upper's mount; stays the caller's.
            origin: the name of the mark.
            syncs: whether a copy's data must be on the disk before the copy is seen.
            layers: of each from which files may be copied (descriptor of its root or of its objects, position of the
                filesystem that its root is on, origin that a copy of the root would have).
        """
        cdef State *lane = &self._state
        cdef Layer *layer
        cdef const uint8_t[::1] raw
        _lock(lane)
        for fd, position, mark in layers:
            raw = mark
            if not HANDLE_AT < raw.shape[0] <= ORIGIN_MAX:
                continue
            layer = <Layer *>calloc(1, sizeof(Layer))
            if layer == NULL:
                break
            layer.position, layer.length = position, <uint32_t>raw.shape[0]
            memcpy(layer.origin, &raw[0], layer.length)
            if not map_put(&lane.layers, fd, layer):
                free(layer)
                break
        self._origin = origin
        lane.origin = self._origin
        lane.stage_fd, lane.syncs, lane.clones = stage_fd, syncs, True
        _unlock(lane)

    # Publishing

    def image(self, int fd, int objects_fd):
        """Know an image: the index that is open as `fd`, and the directory of the objects, which stays the caller's.

        Returns its number; -1 if it cannot be read from here.
        """
        cdef State *lane = &self._state
        cdef Image *image = <Image *>calloc(1, sizeof(Image))
        cdef Image **images
        if image == NULL:
            raise MemoryError
        if not image_open(image, fd):
            free(image)
            return -1
        image.objects_fd = objects_fd
        _lock(lane)
        images = <Image **>realloc(lane.images, (lane.image_count + 1) * sizeof(Image *))
        if images != NULL:
            lane.images = images
            images[lane.image_count] = image
            lane.image_count += 1
        _unlock(lane)
        if images == NULL:
            image_close(image)
            free(image)
            raise MemoryError
        return lane.image_count - 1

    def publish(self, uint64_t id, uint64_t ino, uint64_t parent_ino, list parts, image, upper, bint listable):
        """Take over the lookups in a directory of Python's.

        Args:
            id: its node id.
            ino, parent_ino: what its listing says of `.` and `..`.
            parts: of each lower directory, top first: (root descriptor, path, st_dev, position, flags of open(2)).
            image: instead of `parts`: (number of the image, inode number, position).
            upper: (root descriptor, path, st_dev, position, whether it is marked impure) of the upper directory, or
                None.
            listable: whether a listing shows what there is, without more ado.

        Returns True if it did.
        """
        cdef State *lane = &self._state
        cdef Dir *dir
        cdef uint32_t each, names_max
        cdef uint64_t looks
        cdef int result = 0
        if len(parts) > 60000 or any(len(row[1]) > STEP_MAX for row in parts):
            _never(lane, id)
            return False
        if upper is not None and len(upper[1]) > STEP_MAX:
            _never(lane, id)
            return False
        _lock(lane)
        dir = <Dir *>map_get(&lane.dirs, id)
        looks = <uint64_t>map_get(&lane.looks, id)
        if dir != NULL:
            # What the upper has got meanwhile got there by verbs, and their names were retracted.
            result = upper is not None and not _set_upper(dir, upper)
            if not result:
                dir.parent_ino = parent_ino
                dir.epoch = lane.epoch
                dir.listable = listable
        _unlock(lane)
        if dir != NULL:
            return not result
        # Reading all names for a few lookups would not pay.
        names_max = <uint32_t>min(<uint64_t>NAMES_MAX, 1024 + looks * 256)
        dir = <Dir *>calloc(1, sizeof(Dir))
        if dir == NULL:
            return False
        dir.id, dir.ino, dir.parent_ino, dir.epoch = id, ino, parent_ino, lane.epoch
        if not _fill_parts(lane, dir, parts, image) or (upper is not None and not _set_upper(dir, upper)):
            dir_free(dir)
            return False
        dir.listable = listable
        if upper is not None:
            result = _scan_upper(lane, dir, upper[0], upper[1], names_max)
        if image is not None:
            names_max = NAMES_MAX
        if not result:
            with nogil:
                result = dir_scan_all(dir, names_max)
        if result:
            looks = looks * 2 + 3 if dir.count >= names_max else <uint64_t>-1
            dir_free(dir)
            _lock(lane)
            map_put(&lane.looks, id, <void *>looks)
            _unlock(lane)
            return False
        _lock(lane)
        if map_put(&lane.dirs, id, dir):
            map_pop(&lane.looks, id)
        else:
            dir_free(dir)
            dir = NULL
        _unlock(lane)
        return dir != NULL

    def never(self, uint64_t id):
        """A directory is nothing for the lane."""
        cdef State *lane = &self._state
        _never(lane, id)

    def moved(self):
        """A directory may have another parent now."""
        cdef State *lane = &self._state
        _lock(lane)
        lane.epoch += 1
        lane.paths += 1
        lane.links_epoch += 1
        _unlock(lane)

    def hold(self, bint on):
        """Leave changes to Python, or make them here again."""
        cdef State *lane = &self._state
        _lock(lane)
        lane.held = on
        _unlock(lane)

    def removing(self):
        """A directory may have no name any more."""
        cdef State *lane = &self._state
        _lock(lane)
        lane.links_epoch += 1
        _unlock(lane)

    def wanted(self):
        """The directory that is to be published before the next request is answered, 0 if none is; whether it is for a
        listing; and whether it is to be marked impure."""
        cdef State *lane = &self._state
        cdef uint64_t id = lane.wanted
        cdef bint impure = lane.wanted_impure
        lane.wanted = 0
        lane.wanted_impure = False
        return id, lane.wanted_listing, impure

    # The reader

    def answer(self, int fd, const uint8_t[::1] request):
        """Answer one request, for tests: True if it was answered here, the rest of it if it was in part."""
        cdef State *lane = &self._state
        cdef size_t count = request.shape[0]
        cdef int result
        if count == 0:
            return False
        cdef char *copy = <char *>malloc(count)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, &request[0], count)
        with nogil:
            result = _answer(lane, fd, copy, &count)
        rest = PyBytes_FromStringAndSize(copy, count)
        free(copy)
        return True if result == ANSWERED else rest

    def interrupt(self, int thread):
        """Wake a thread that sleeps in `next`, by its native id.

        It may go to sleep just after that, so once may not be enough. Before `next` has taken the signal for itself
        nobody is sent one: it would end the process.
        """
        if self._state.interruptible:
            lane_interrupt(thread)

    def next(self, int fd, int wake_fd, buffer, int poll_us):
        """Answer requests until one is for Python; returns its size, 0: woken or interrupted, -1: the mount is gone.

        Whoever wants the thread back writes to `wake_fd`, and calls `interrupt` until it is.

        Whoever wants the thread that is in here back writes to `wake_fd` and calls `interrupt` until it is.

        Raises OSError where the kernel gives no requests.
        """
        cdef State *lane = &self._state
        cdef char[::1] view = buffer
        cdef char *into = &view[0]
        cdef size_t room = view.shape[0]
        cdef int64_t count
        cdef int number = 0
        if not lane.own_umask:
            # The umask of a caller is set for a moment, for this thread alone.
            lane.own_umask = True
            if unshare(CLONE_FS) != 0:
                lane.hands_over = lane.own_modes = False
            lane.interruptible = lane_interruptible()
        with nogil:
            count = _next_for_python(lane, fd, wake_fd, into, room, poll_us, &number)
        if number:
            raise OSError(number, "reading from /dev/fuse")
        return count
