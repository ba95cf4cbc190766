# Layouts of <linux/fuse.h>, as wire/device/protocol.py has them. Part of lane.pyx.

cdef enum:
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    READDIR = 28
    CREATE = 35
    IOCTL = 39
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45

cdef enum:      # FATTR_*
    SET_MODE = 1 << 0
    SET_UID = 1 << 1
    SET_GID = 1 << 2
    SET_SIZE = 1 << 3
    SET_ATIME = 1 << 4
    SET_MTIME = 1 << 5
    SET_FH = 1 << 6
    SET_ATIME_NOW = 1 << 7
    SET_MTIME_NOW = 1 << 8
    SET_LOCKOWNER = 1 << 9
    SET_CTIME = 1 << 10
    SET_KILL_SUIDGID = 1 << 11

cdef enum:
    INVAL_INODE = 2             # FUSE_NOTIFY_INVAL_INODE
    FOPEN_PASSTHROUGH = 1 << 7
    BACKING_OPEN = 0x4010E501   # _IOW(229, 1, struct fuse_backing_map)
    BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)


cdef packed struct InHeader:
    uint32_t len
    uint32_t opcode
    uint64_t unique
    uint64_t nodeid
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint16_t extlen
    uint16_t padding


cdef packed struct OutHeader:
    uint32_t len
    int32_t error
    uint64_t unique


cdef packed struct Attr:
    uint64_t ino
    uint64_t size
    uint64_t blocks
    int64_t atime
    int64_t mtime
    int64_t ctime
    uint32_t atime_ns
    uint32_t mtime_ns
    uint32_t ctime_ns
    uint32_t mode
    uint32_t nlink
    uint32_t uid
    uint32_t gid
    uint32_t rdev
    uint32_t blksize
    uint32_t flags


cdef packed struct EntryOut:
    uint64_t nodeid
    uint64_t generation
    uint64_t entry_valid
    uint64_t attr_valid
    uint32_t entry_valid_ns
    uint32_t attr_valid_ns
    Attr attr


cdef packed struct AttrOut:
    uint64_t attr_valid
    uint32_t attr_valid_ns
    uint32_t dummy
    Attr attr


cdef packed struct OpenIn:
    uint32_t flags
    uint32_t open_flags


cdef packed struct OpenOut:
    uint64_t fh
    uint32_t open_flags
    int32_t backing_id


cdef packed struct ReadIn:
    uint64_t fh
    uint64_t offset
    uint32_t size
    uint32_t read_flags
    uint64_t lock_owner
    uint32_t flags
    uint32_t padding


cdef packed struct ReleaseIn:
    uint64_t fh
    uint32_t flags
    uint32_t release_flags
    uint64_t lock_owner


cdef packed struct IoctlIn:
    uint64_t fh
    uint32_t flags
    uint32_t order
    uint64_t argument
    uint32_t in_size
    uint32_t out_size


cdef packed struct GetxattrIn:
    uint32_t size
    uint32_t padding


cdef packed struct GetxattrOut:
    uint32_t size
    uint32_t padding


cdef packed struct StatfsOut:
    uint64_t blocks
    uint64_t bfree
    uint64_t bavail
    uint64_t files
    uint64_t ffree
    uint32_t bsize
    uint32_t namelen
    uint32_t frsize
    uint32_t padding
    uint32_t spare[6]


cdef packed struct BackingMap:
    int32_t fd
    uint32_t flags
    uint64_t padding


cdef packed struct ForgetOne:
    uint64_t nodeid
    uint64_t nlookup


cdef packed struct BatchForgetIn:
    uint32_t count
    uint32_t dummy


cdef packed struct Dirent:
    uint64_t ino
    uint64_t off
    uint32_t namelen
    uint32_t type


cdef packed struct MkdirIn:
    uint32_t mode
    uint32_t umask


cdef packed struct CreateIn:
    uint32_t flags
    uint32_t mode
    uint32_t umask
    uint32_t open_flags


cdef packed struct RenameIn:
    uint64_t newdir


cdef packed struct Rename2In:
    uint64_t newdir
    uint32_t flags
    uint32_t padding


cdef packed struct SetattrIn:
    uint32_t valid
    uint32_t padding
    uint64_t fh
    uint64_t size
    uint64_t lock_owner
    int64_t atime
    int64_t mtime
    int64_t ctime
    uint32_t atime_ns
    uint32_t mtime_ns
    uint32_t ctime_ns
    uint32_t mode
    uint32_t unused4
    uint32_t uid
    uint32_t gid
    uint32_t unused5


cdef packed struct InvalInodeOut:
    uint32_t len
    int32_t code
    uint64_t unique
    uint64_t ino
    int64_t off
    int64_t length
