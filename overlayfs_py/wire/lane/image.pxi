# An EROFS index, mapped and read in place; layerstore.index.reader has the same for Python. Part of lane.pyx.
#
# Nothing in the file is trusted: whatever its bytes are, nothing outside of the mapping is touched, and the answer is
# "not for the lane" (False, a negative number). Python then meets the damage itself, says what it is, and answers EIO.
# What is accepted here is what the reader accepts, or less.

from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap

cdef enum:
    BLOCK_BITS = 12
    BLOCK = 4096
    SUPERBLOCK = 1024
    SUPERBLOCK_SIZE = 128
    LAYOUT_PLAIN = 0
    LAYOUT_INLINE = 2
    LAYOUT_CHUNKED = 4
    DIRENT_SIZE = 12
    XATTR_HEADER = 12
    TARGET_MAX = 4095
    OBJECT_PATH = 65    # ab/ and 62 digits

cdef enum:
    CONTENT_DAMAGED = 0
    CONTENT_INLINE = 1
    CONTENT_OBJECT = 2
    CONTENT_HOLE = 3

cdef uint8_t[8] _DT_OF_EROFS = [0, 8, 4, 2, 6, 1, 12, 10]


cdef struct Image:
    const uint8_t *map
    size_t size
    uint64_t meta       # where inodes are counted from
    uint64_t xattrs     # where shared xattrs are counted from
    int64_t time_s      # of inodes that have no time of their own
    uint32_t time_ns
    int objects_fd      # of the store; not owned


cdef struct Inode:
    uint32_t mode
    uint32_t layout
    uint32_t nlink
    uint32_t uid
    uint32_t gid
    uint32_t place      # first block, device number or form of the chunks
    uint64_t size
    int64_t mtime_s
    uint32_t mtime_ns
    uint64_t body       # where the xattrs begin
    uint64_t tail       # and end: data, or the array of chunks


cdef struct Xattr:
    const uint8_t *name     # without its prefix
    const uint8_t *value
    uint32_t name_length
    uint32_t value_length
    uint8_t prefix


cdef struct XattrWalk:
    uint64_t shared     # the next shared one's number
    uint32_t shared_left
    uint64_t at         # the next one of its own
    uint64_t end


cdef inline uint16_t _u16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] | at[1] << 8)


cdef inline uint32_t _u32(const uint8_t *at) noexcept nogil:
    return at[0] | at[1] << 8 | at[2] << 16 | <uint32_t>at[3] << 24


cdef inline uint64_t _u64(const uint8_t *at) noexcept nogil:
    return _u32(at) | <uint64_t>_u32(at + 4) << 32


cdef bint image_open(Image *image, int fd) noexcept nogil:
    """Map the index that is open as `fd`; False: no memory, or no index."""
    cdef struct_stat status
    cdef void *mapped
    cdef const uint8_t *block
    if fstat(fd, &status) != 0 or status.st_size < SUPERBLOCK + SUPERBLOCK_SIZE:
        return False
    mapped = mmap(NULL, <size_t>status.st_size, PROT_READ, MAP_SHARED, fd, 0)
    if mapped == MAP_FAILED:
        return False
    image.map = <const uint8_t *>mapped
    image.size = <size_t>status.st_size
    block = image.map + SUPERBLOCK
    if _u32(block) != <uint32_t>0xE0F5E1E2 or block[12] != BLOCK_BITS or block[90] != 0:
        image_close(image)
        return False
    image.time_s = <int64_t>_u64(block + 24)
    image.time_ns = _u32(block + 32)
    image.meta = <uint64_t>_u32(block + 40) << BLOCK_BITS
    image.xattrs = <uint64_t>_u32(block + 44) << BLOCK_BITS
    return True


cdef void image_close(Image *image) noexcept nogil:
    if image.map != NULL:
        munmap(<void *>image.map, image.size)
        image.map = NULL


cdef inline bint _within(Image *image, uint64_t start, uint64_t length) noexcept nogil:
    return start <= image.size and length <= image.size - start


cdef enum:
    KINDS = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12  # by S_IFMT of a mode without its low bits


cdef bint image_inode(Image *image, uint64_t nid, Inode *inode) noexcept nogil:
    cdef uint64_t offset
    cdef const uint8_t *at
    cdef uint32_t form, count
    if nid > image.size // 32:
        return False
    offset = image.meta + nid * 32
    if not _within(image, offset, 32):
        return False
    at = image.map + offset
    form, count = _u16(at), _u16(at + 2)
    inode.mode = _u16(at + 4)
    if not KINDS >> (inode.mode >> 12) & 1:
        return False
    if form & 1:
        if not _within(image, offset, 64):
            return False
        inode.size = _u64(at + 8)
        inode.place = _u32(at + 16)
        inode.uid, inode.gid = _u32(at + 24), _u32(at + 28)
        inode.mtime_s, inode.mtime_ns = <int64_t>_u64(at + 32), _u32(at + 40)
        inode.nlink = _u32(at + 44)
        inode.body = offset + 64
    else:
        inode.nlink = _u16(at + 6)
        inode.size = _u32(at + 8)
        inode.place = _u32(at + 16)
        inode.uid, inode.gid = _u16(at + 24), _u16(at + 26)
        inode.mtime_s, inode.mtime_ns = image.time_s, image.time_ns
        inode.body = offset + 32
    inode.layout = form >> 1 & 7
    if form >> 4 or not (inode.layout == LAYOUT_PLAIN or inode.layout == LAYOUT_INLINE or inode.layout == LAYOUT_CHUNKED):
        return False
    inode.tail = inode.body + (XATTR_HEADER + 4 * (count - 1) if count else 0)
    return inode.tail <= image.size and inode.size < <uint64_t>1 << 62 and inode.mtime_ns < 1000000000


cdef bint image_data(Image *image, Inode *inode) noexcept nogil:
    """Whether the data of an inode is in the index, all of it."""
    cdef uint64_t full = inode.size
    if inode.layout == LAYOUT_CHUNKED:
        return False
    if inode.layout == LAYOUT_INLINE:
        full = full >> BLOCK_BITS << BLOCK_BITS
    if full and not _within(image, <uint64_t>inode.place << BLOCK_BITS, full):
        return False
    return full == inode.size or _within(image, inode.tail, inode.size - full)


cdef void image_copy(Image *image, Inode *inode, uint64_t start, size_t count, char *into) noexcept nogil:
    """Copy `count` bytes of the data from `start` on; it is there (`image_data`), and so are these."""
    cdef uint64_t full = inode.size
    cdef size_t part = 0
    if inode.layout == LAYOUT_INLINE:
        full = full >> BLOCK_BITS << BLOCK_BITS
    if start < full:
        part = count if count < full - start else <size_t>(full - start)
        memcpy(into, image.map + (<uint64_t>inode.place << BLOCK_BITS) + start, part)
    if part < count:
        memcpy(into + part, image.map + inode.tail + (start + part - full), count - part)


cdef int64_t image_readlink(Image *image, uint64_t nid, char *into) noexcept nogil:
    """The target of a symlink into TARGET_MAX bytes; returns its length, -1: not for the lane."""
    cdef Inode inode
    if not image_inode(image, nid, &inode) or not S_ISLNK(inode.mode):
        return -1
    if inode.size == 0 or inode.size > TARGET_MAX or not image_data(image, &inode):
        return -1
    image_copy(image, &inode, 0, <size_t>inode.size, into)
    if memchr(into, 0, <size_t>inode.size) != NULL:
        return -1
    return <int64_t>inode.size


# Xattrs


cdef bint xattrs_begin(Image *image, Inode *inode, XattrWalk *walk) noexcept nogil:
    """False: damaged."""
    walk.shared_left = 0
    walk.at = walk.end = inode.tail
    if inode.body == inode.tail:
        return True
    if inode.tail - inode.body < XATTR_HEADER:
        return False
    walk.shared_left = image.map[inode.body + 4]
    walk.shared = inode.body + XATTR_HEADER
    walk.at = walk.shared + 4 * walk.shared_left
    return walk.at <= walk.end


cdef int xattrs_next(Image *image, XattrWalk *walk, Xattr *found) noexcept nogil:
    """1: one more; 0: that was all; -1: damaged."""
    cdef uint64_t at, end
    cdef const uint8_t *entry
    if walk.shared_left:
        at = image.xattrs + 4 * <uint64_t>_u32(image.map + walk.shared)
        end = image.size
        walk.shared += 4
        walk.shared_left -= 1
        if xattr_at(image, at, end, found) == 0:
            return -1
        return 1
    if walk.at + 4 > walk.end:
        return 0
    at = xattr_at(image, walk.at, walk.end, found)
    if at == 0:
        return -1
    walk.at = at
    return 1


cdef uint64_t xattr_at(Image *image, uint64_t at, uint64_t end, Xattr *found) noexcept nogil:
    """Read one entry; returns where the next one starts, 0: damaged."""
    cdef const uint8_t *entry
    if at > end or end - at < 4:
        return 0
    entry = image.map + at
    found.name_length = entry[0]
    found.prefix = entry[1]
    found.value_length = _u16(entry + 2)
    if end - at < 4 + <uint64_t>found.name_length + found.value_length:
        return 0
    if xattr_prefix(found.prefix) == NULL:
        return 0
    found.name = entry + 4
    found.value = found.name + found.name_length
    if strlen(xattr_prefix(found.prefix)) + found.name_length > 255 or memchr(found.name, 0, found.name_length) != NULL:
        return 0
    return (at + 4 + found.name_length + found.value_length + 3) & ~<uint64_t>3


cdef const char *xattr_prefix(uint8_t number) noexcept nogil:
    if number == 1:
        return "user."
    if number == 2:
        return "system.posix_acl_access"
    if number == 3:
        return "system.posix_acl_default"
    if number == 4:
        return "trusted."
    if number == 6:
        return "security."
    return NULL


cdef inline bint xattr_begins(Xattr *xattr, const char *start) noexcept nogil:
    """Whether its name without the prefix begins so."""
    cdef size_t length = strlen(start)
    return xattr.name_length >= length and memcmp(xattr.name, start, length) == 0


cdef inline bint xattr_is_mark(Xattr *xattr) noexcept nogil:
    """One of the overlay's own, or escaped to look unlike one."""
    return xattr.prefix == 4 and xattr_begins(xattr, "overlay.")


cdef inline bint xattr_is(Xattr *xattr, const char *name) noexcept nogil:
    """Args: name: in full."""
    cdef const char *prefix = xattr_prefix(xattr.prefix)
    cdef size_t length = strlen(prefix)
    return (
        strlen(name) == length + xattr.name_length
        and memcmp(name, prefix, length) == 0
        and memcmp(name + length, xattr.name, xattr.name_length) == 0
    )


cdef inline size_t xattr_name(Xattr *xattr, char *into) noexcept nogil:
    """The name in full, ended by a zero byte, into 256 bytes; returns its length."""
    cdef const char *prefix = xattr_prefix(xattr.prefix)
    cdef size_t length = strlen(prefix)
    memcpy(into, prefix, length)
    memcpy(into + length, xattr.name, xattr.name_length)
    length += xattr.name_length
    into[length] = 0
    return length


cdef int image_stands_for_device(Image *image, Inode *inode) noexcept nogil:
    """Whether an empty file is kept for a 0/0 character device: 1 it is, 0 it is not, -1 damaged."""
    cdef XattrWalk walk
    cdef Xattr found
    cdef int more
    if not xattrs_begin(image, inode, &walk):
        return -1
    while True:
        more = xattrs_next(image, &walk, &found)
        if more <= 0:
            return more
        if found.prefix == 4 and xattr_is(&found, "trusted.overlay.overlay.whiteout"):
            return 1


# Content


cdef inline bint _is_digit(uint8_t value) noexcept nogil:
    return 48 <= value <= 57 or 97 <= value <= 102


cdef int image_content(Image *image, Inode *inode, char *path) noexcept nogil:
    """Where the content of a regular file is: CONTENT_*; `path` below the objects, OBJECT_PATH bytes and a zero."""
    cdef XattrWalk walk
    cdef Xattr found
    cdef bint metacopy = False, redirect = False
    cdef uint32_t each
    cdef int more
    cdef uint64_t width, start, count
    if not S_ISREG(inode.mode):
        return CONTENT_DAMAGED
    if inode.layout != LAYOUT_CHUNKED:
        return CONTENT_INLINE if image_data(image, inode) else CONTENT_DAMAGED
    if not xattrs_begin(image, inode, &walk):
        return CONTENT_DAMAGED
    while True:
        more = xattrs_next(image, &walk, &found)
        if more < 0:
            return CONTENT_DAMAGED
        if more == 0:
            break
        if xattr_is(&found, "trusted.overlay.metacopy"):
            metacopy = True
        elif xattr_is(&found, "trusted.overlay.redirect"):
            if redirect or found.value_length != OBJECT_PATH + 1 or found.value[0] != c"/" or found.value[3] != c"/":
                return CONTENT_DAMAGED
            for each in range(1, OBJECT_PATH + 1):
                if each != 3 and not _is_digit(found.value[each]):
                    return CONTENT_DAMAGED
            memcpy(path, found.value + 1, OBJECT_PATH)
            path[OBJECT_PATH] = 0
            redirect = True
    if redirect and metacopy:
        return CONTENT_OBJECT
    count = (inode.size + (<uint64_t>1 << (BLOCK_BITS + (inode.place & 31))) - 1) >> (BLOCK_BITS + (inode.place & 31))
    width = 8 if inode.place & 32 else 4
    start = (inode.tail + width - 1) // width * width
    if count > image.size or not _within(image, start, count * width):
        return CONTENT_DAMAGED
    while count:
        count -= 1
        if _u32(image.map + start + count * width + width - 4) != <uint32_t>0xFFFFFFFF:
            return CONTENT_DAMAGED
    return CONTENT_HOLE


# Directories


cdef int dir_scan_image(Dir *dir, uint32_t part_number, uint32_t names_max) noexcept nogil:
    """Add the names of a directory of an image to those of the directories above it.

    Returns 0: done; 1: not for the lane (damaged, too many names).
    """
    cdef Part *part = &dir.parts[part_number]
    cdef Image *image = part.image
    cdef Inode inode
    cdef uint64_t number, start, length, blocks
    cdef const uint8_t *block
    cdef const uint8_t *last = NULL
    cdef const uint8_t *name
    cdef uint32_t count, each, low, high, length_of, last_length = 0
    cdef int order
    cdef const uint8_t *ended
    if not image_inode(image, part.nid, &inode) or not S_ISDIR(inode.mode) or inode.layout == LAYOUT_CHUNKED:
        return 1
    if inode.size == 0 or inode.size > image.size:
        return 1
    blocks = (inode.size + BLOCK - 1) >> BLOCK_BITS
    for number in range(blocks):
        length = inode.size - (number << BLOCK_BITS)
        if length > BLOCK:
            length = BLOCK
        if inode.layout == LAYOUT_INLINE and length < BLOCK:
            start = inode.tail
        else:
            start = (inode.place + number) << BLOCK_BITS
        if length < DIRENT_SIZE or not _within(image, start, length):
            return 1
        block = image.map + start
        count = _u16(block + 8)
        if count % DIRENT_SIZE or count == 0 or count > length:
            return 1
        count //= DIRENT_SIZE
        for each in range(count):
            low = _u16(block + each * DIRENT_SIZE + 8)
            if low < count * DIRENT_SIZE or low > length:
                return 1
            name = block + low
            if each + 1 < count:
                high = _u16(block + each * DIRENT_SIZE + 20)
                if high <= low or high > length:
                    return 1
                length_of = high - low
                if memchr(name, 0, length_of) != NULL:
                    return 1
            else:
                ended = <const uint8_t *>memchr(name, 0, <size_t>(length - low))
                length_of = <uint32_t>(ended - name) if ended != NULL else <uint32_t>(length - low)
            if length_of == 0 or length_of > 255 or memchr(name, c"/", length_of) != NULL:
                return 1
            if last != NULL:
                order = memcmp(last, name, last_length if last_length < length_of else length_of)
                if order > 0 or (order == 0 and last_length >= length_of):
                    return 1
            last, last_length = name, length_of
            if not _add_of_image(dir, part_number, name, length_of, block + each * DIRENT_SIZE, names_max):
                return 1
    return 0


cdef bint _add_of_image(
    Dir *dir, uint32_t part_number, const uint8_t *name, uint32_t length, const uint8_t *row, uint32_t names_max
) noexcept nogil:
    cdef Part *part = &dir.parts[part_number]
    cdef Entry *entry
    cdef Inode inode
    cdef uint64_t nid = _u64(row)
    if name[0] == c"." and (length == 1 or (length == 2 and name[1] == c".")):
        return True
    if not 1 <= row[10] <= 7:
        return False
    if dir.count >= names_max or (length >= 4 and _is_meta(<const char *>name)):
        return False
    entry = dir_find(dir, <const char *>name, length)
    if entry != NULL:
        if entry.upper:
            return _add_below(dir, entry, part_number, _DT_OF_EROFS[row[10]])
        return True
    entry = dir_add(dir, <const char *>name, length)
    if entry == NULL:
        return False
    entry.type = _DT_OF_EROFS[row[10]]
    entry.part = <uint16_t>part_number
    entry.ino = part.position << 48 | nid
    entry.state = LANE
    if not 1 < nid < <uint64_t>1 << 48:
        # Its number is made up.
        _unsure(dir, entry)
    elif entry.type == DT_REG or entry.type == DT_CHR:
        if not image_inode(part.image, nid, &inode):
            _unsure(dir, entry)
        elif entry.type == DT_CHR:
            if inode.place == 0:
                # A whiteout.
                _unsure(dir, entry)
        elif inode.size == 0 and image_stands_for_device(part.image, &inode):
            _unsure(dir, entry)
    return True


cdef inline uint64_t _nid(Node *node) noexcept nogil:
    """Of a node that is in an image."""
    return node.ino & ((<uint64_t>1 << 48) - 1)


cdef bint image_attr(Dir *dir, Entry *entry, Attr *attr) noexcept nogil:
    """What an entry's inode shows; False: not for the lane."""
    cdef Part *part = &dir.parts[entry.part]
    cdef Inode inode
    if not image_inode(part.image, entry.ino & ((<uint64_t>1 << 48) - 1), &inode):
        return False
    if inode.mode >> 12 != entry.type:
        return False
    memset(attr, 0, sizeof(Attr))
    attr.ino = entry.ino
    attr.size = inode.size
    attr.blocks = (inode.size + 511) // 512
    attr.atime = attr.mtime = attr.ctime = inode.mtime_s
    attr.atime_ns = attr.mtime_ns = attr.ctime_ns = inode.mtime_ns
    attr.mode = inode.mode
    attr.nlink = inode.nlink
    attr.uid = inode.uid
    attr.gid = inode.gid
    attr.blksize = BLOCK
    if entry.type == DT_CHR or entry.type == DT_BLK:
        attr.rdev = inode.place
    return True
