/* Issues the system calls whose cost a benchmark reads, and times them.
 *
 *   probe OPERATION --dir DIR [--names FILE] [--size BYTES] [--passes N] [--warm N] [--delay-ns NS]
 *
 * One call is one sample. The result is one line of JSON on standard output:
 *
 *   {"operations": N, "wall_ns": N, "first_ns": N, "user_ns": N, "system_ns": N,
 *    "p50_ns": N, "p99_ns": N, "max_ns": N, "clock_ns": N}
 *
 * wall_ns runs from before the first operation to after the last; the clock is read once
 * between two operations, clock_ns each time, and that is inside wall_ns. p50, p99 and max are
 * of single operations. A system call that fails ends the run: exit status 3 and one line
 * {"errno": 18, "message": "..."}.
 *
 * FILE holds names relative to DIR, each ended by a NUL, in the order in which they are used.
 * Nothing is allocated, printed or opened between the two ends of the measurement but what the
 * operation itself needs.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

struct names {
    char **list;
    size_t count;
};

struct probe {
    int dir;              /* the directory under test */
    const char *path;     /* its name, for calls that take no descriptor */
    struct names names;
    size_t size;          /* bytes per operation, where it has some */
    uint64_t passes, warm, delay_ns;
    char *buffer;         /* size bytes to read into or write from */
    char **pairs;         /* second name of each operation that needs two */
    uint64_t *laps;       /* ns of each operation, or NULL while warming up */
    size_t done, room;
    uint64_t first_ns;
};

static _Noreturn void fail(const char *format, ...)
{
    int saved = errno;
    char message[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *c = message; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ')
            *c = '?'; /* a name may hold anything, a JSON string may not */
    printf("{\"errno\": %d, \"message\": \"%s: %s\"}\n", saved, message, strerror(saved));
    exit(3);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *reserve(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory)
        fail("memory for %zu bytes", bytes);
    memset(memory, 'x', bytes ? bytes : 1); /* touched now, not while the clock runs */
    return memory;
}

/* Busy, not asleep: a sleep of a few microseconds takes some fifty. */
static void delay(const struct probe *p)
{
    if (p->delay_ns) {
        uint64_t end = now_ns() + p->delay_ns;
        while (now_ns() < end)
            ;
    }
}

/* ---- one operation on one name; `i` counts from 0 over the list of names ---- */

typedef void (*operation)(struct probe *p, size_t i);

static void op_stat(struct probe *p, size_t i)
{
    struct stat st;
    delay(p);
    if (fstatat(p->dir, p->names.list[i], &st, AT_SYMLINK_NOFOLLOW) < 0)
        fail("stat %s", p->names.list[i]);
}

static void op_absent(struct probe *p, size_t i)
{
    struct stat st;
    delay(p);
    if (fstatat(p->dir, p->names.list[i], &st, AT_SYMLINK_NOFOLLOW) == 0) {
        errno = EEXIST;
        fail("%s should not exist", p->names.list[i]);
    }
    if (errno != ENOENT)
        fail("stat %s", p->names.list[i]);
}

static void op_open(struct probe *p, size_t i)
{
    int fd = openat(p->dir, p->names.list[i], O_RDONLY | O_CLOEXEC);
    if (fd < 0 || close(fd) < 0)
        fail("open %s", p->names.list[i]);
}

static void op_read(struct probe *p, size_t i)
{
    ssize_t n;
    int fd = openat(p->dir, p->names.list[i], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail("open %s", p->names.list[i]);
    n = read(fd, p->buffer, p->size);
    if (n < 0 || (size_t)n != p->size)
        fail("read of %zu bytes from %s gave %zd", p->size, p->names.list[i], n);
    close(fd);
}

static void op_create(struct probe *p, size_t i)
{
    int fd = openat(p->dir, p->names.list[i], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || close(fd) < 0)
        fail("create %s", p->names.list[i]);
}

static void write_all(struct probe *p, int fd, size_t i)
{
    ssize_t n = write(fd, p->buffer, p->size);
    if (n < 0 || (size_t)n != p->size)
        fail("write of %zu bytes to %s gave %zd", p->size, p->names.list[i], n);
}

static void op_write(struct probe *p, size_t i)
{
    int fd = openat(p->dir, p->names.list[i], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        fail("create %s", p->names.list[i]);
    write_all(p, fd, i);
    if (close(fd) < 0)
        fail("close %s", p->names.list[i]);
}

static void op_append(struct probe *p, size_t i)
{
    int fd = openat(p->dir, p->names.list[i], O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0)
        fail("open %s to append", p->names.list[i]);
    write_all(p, fd, i);
    if (close(fd) < 0)
        fail("close %s", p->names.list[i]);
}

/* Overwrites the first byte, then waits until the whole file is safe: first_ns is when the byte
 * was in, the operation as a whole is when fsync returned. */
static void op_first_byte(struct probe *p, size_t i)
{
    uint64_t start = now_ns();
    int fd = openat(p->dir, p->names.list[i], O_RDWR | O_CLOEXEC);
    if (fd < 0)
        fail("open %s to write", p->names.list[i]);
    if (pwrite(fd, "y", 1, 0) != 1)
        fail("write to %s", p->names.list[i]);
    p->first_ns += now_ns() - start;
    if (fsync(fd) < 0 || close(fd) < 0)
        fail("fsync %s", p->names.list[i]);
}

static void op_mkdir(struct probe *p, size_t i)
{
    if (mkdirat(p->dir, p->names.list[i], 0755) < 0)
        fail("mkdir %s", p->names.list[i]);
}

static void op_unlink(struct probe *p, size_t i)
{
    if (unlinkat(p->dir, p->names.list[i], 0) < 0)
        fail("unlink %s", p->names.list[i]);
}

static void op_rename(struct probe *p, size_t i)
{
    if (renameat(p->dir, p->names.list[i], p->dir, p->pairs[i]) < 0)
        fail("rename %s", p->names.list[i]);
}

static void op_link(struct probe *p, size_t i)
{
    if (linkat(p->dir, p->names.list[i], p->dir, p->pairs[i], 0) < 0)
        fail("link %s", p->names.list[i]);
}

static void op_symlink(struct probe *p, size_t i)
{
    if (symlinkat("a/target/of/some/length", p->dir, p->names.list[i]) < 0)
        fail("symlink %s", p->names.list[i]);
}

static void op_readlink(struct probe *p, size_t i)
{
    char target[4096];
    if (readlinkat(p->dir, p->names.list[i], target, sizeof target) < 0)
        fail("readlink %s", p->names.list[i]);
}

static void op_chmod(struct probe *p, size_t i)
{
    if (fchmodat(p->dir, p->names.list[i], 0600, 0) < 0)
        fail("chmod %s", p->names.list[i]);
}

static void op_chown(struct probe *p, size_t i)
{
    if (fchownat(p->dir, p->names.list[i], geteuid(), getegid(), 0) < 0)
        fail("chown %s", p->names.list[i]);
}

static void op_utimens(struct probe *p, size_t i)
{
    const struct timespec times[2] = {{1700000000, 1}, {1700000000, 2}};
    if (utimensat(p->dir, p->names.list[i], times, 0) < 0)
        fail("utimensat %s", p->names.list[i]);
}

/* There is no truncateat(2): the pair of a name is its whole path. */
static void op_truncate(struct probe *p, size_t i)
{
    if (truncate(p->pairs[i], (off_t)p->size) < 0)
        fail("truncate %s", p->names.list[i]);
}

static void op_setxattr(struct probe *p, size_t i)
{
    if (lsetxattr(p->pairs[i], "user.benchmark", "value", 5, 0) < 0)
        fail("setxattr %s", p->names.list[i]);
}

static void op_getxattr(struct probe *p, size_t i)
{
    char value[256];
    if (lgetxattr(p->pairs[i], "user.benchmark", value, sizeof value) < 0)
        fail("getxattr %s", p->names.list[i]);
}

static void op_listxattr(struct probe *p, size_t i)
{
    char list[1024];
    if (llistxattr(p->pairs[i], list, sizeof list) < 0)
        fail("listxattr %s", p->names.list[i]);
}

/* ---- whole directories ---- */

struct entry { /* struct linux_dirent64, which no header of the C library declares */
    uint64_t ino;
    int64_t offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

static int dots(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* Lists the directory `fd` and, if `descend`, lstats every entry and goes down. Returns entries. */
static uint64_t list(struct probe *p, int fd, int descend)
{
    _Alignas(8) char buffer[65536];
    uint64_t entries = 0;
    long n;

    while ((n = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < n;) {
            struct entry *e = (struct entry *)(buffer + at);
            struct stat st;
            at += e->length;
            if (dots(e->name))
                continue;
            entries++;
            if (!descend)
                continue;
            if (fstatat(fd, e->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                fail("stat %s", e->name);
            if (S_ISDIR(st.st_mode)) {
                int below = openat(fd, e->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                if (below < 0)
                    fail("open directory %s", e->name);
                entries += list(p, below, 1);
                close(below);
            }
        }
    }
    if (n < 0)
        fail("getdents64");
    return entries;
}

static uint64_t list_once(struct probe *p, int descend)
{
    int fd = openat(p->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint64_t entries;
    if (fd < 0)
        fail("open %s", p->path);
    entries = list(p, fd, descend);
    close(fd);
    return entries;
}

/* ---- what the machine itself costs: system calls, and waking another process ---- */

static void op_syscall(struct probe *p, size_t i)
{
    (void)p, (void)i;
    syscall(SYS_getppid);
}

static int to_child[2], to_parent[2];

static void start_echo(void)
{
    char byte;
    if (pipe2(to_child, O_CLOEXEC) < 0 || pipe2(to_parent, O_CLOEXEC) < 0)
        fail("pipe");
    switch (fork()) {
    case -1:
        fail("fork");
    case 0:
        close(to_child[1]);
        while (read(to_child[0], &byte, 1) == 1)
            if (write(to_parent[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    close(to_child[0]);
}

static void op_switch(struct probe *p, size_t i)
{
    char byte = 'x';
    (void)p, (void)i;
    if (write(to_child[1], &byte, 1) != 1 || read(to_parent[0], &byte, 1) != 1)
        fail("echo process");
}

/* ---- driving ---- */

static const struct {
    const char *name;
    operation run;
    int pairs; /* 1: second name beside the first; 2: whole path */
} operations[] = {
    {"stat", op_stat, 0},         {"absent", op_absent, 0},     {"open", op_open, 0},
    {"read", op_read, 0},         {"create", op_create, 0},     {"write", op_write, 0},
    {"append", op_append, 0},     {"first-byte", op_first_byte, 0}, {"mkdir", op_mkdir, 0},
    {"unlink", op_unlink, 0},     {"rename", op_rename, 1},     {"link", op_link, 1},
    {"symlink", op_symlink, 0},   {"readlink", op_readlink, 0}, {"chmod", op_chmod, 0},
    {"chown", op_chown, 0},       {"utimens", op_utimens, 0},   {"truncate", op_truncate, 2},
    {"setxattr", op_setxattr, 2}, {"getxattr", op_getxattr, 2}, {"listxattr", op_listxattr, 2},
    {"syscall", op_syscall, 0},   {"switch", op_switch, 0},
};

static void read_names(struct probe *p, const char *file)
{
    struct stat st;
    char *text;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    size_t length, at;

    if (fd < 0 || fstat(fd, &st) < 0)
        fail("open %s", file);
    length = (size_t)st.st_size;
    text = reserve(length + 1);
    for (at = 0; at < length;) {
        ssize_t n = read(fd, text + at, length - at);
        if (n <= 0)
            fail("read %s", file);
        at += (size_t)n;
    }
    close(fd);
    text[length] = 0;
    for (at = 0; at < length; at += strlen(text + at) + 1)
        p->names.count++;
    p->names.list = reserve(p->names.count * sizeof *p->names.list);
    p->names.count = 0;
    for (at = 0; at < length; at += strlen(text + at) + 1)
        p->names.list[p->names.count++] = text + at;
}

static void make_pairs(struct probe *p, int kind)
{
    p->pairs = reserve(p->names.count * sizeof *p->pairs);
    for (size_t i = 0; i < p->names.count; i++) {
        int n = kind == 1 ? asprintf(&p->pairs[i], "%s.second", p->names.list[i])
                          : asprintf(&p->pairs[i], "%s/%s", p->path, p->names.list[i]);
        if (n < 0)
            fail("memory for names");
    }
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t clock_cost_ns(void)
{
    uint64_t start = now_ns();
    for (int i = 0; i < 1000; i++)
        now_ns();
    return (now_ns() - start) / 1000;
}

static uint64_t cpu_ns(const struct timeval *t)
{
    return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_usec * 1000u;
}

static void print_result(struct probe *p, uint64_t count, uint64_t wall, const struct rusage *before,
                         const struct rusage *after)
{
    size_t n = p->done;
    qsort(p->laps, n, sizeof *p->laps, by_value);
    printf("{\"operations\": %llu, \"wall_ns\": %llu, \"first_ns\": %llu, \"user_ns\": %llu, "
           "\"system_ns\": %llu, \"p50_ns\": %llu, \"p99_ns\": %llu, \"max_ns\": %llu, "
           "\"clock_ns\": %llu}\n",
           (unsigned long long)count, (unsigned long long)wall, (unsigned long long)p->first_ns,
           (unsigned long long)(cpu_ns(&after->ru_utime) - cpu_ns(&before->ru_utime)),
           (unsigned long long)(cpu_ns(&after->ru_stime) - cpu_ns(&before->ru_stime)),
           (unsigned long long)(n ? p->laps[n / 2] : 0),
           (unsigned long long)(n ? p->laps[n * 99 / 100] : 0),
           (unsigned long long)(n ? p->laps[n - 1] : 0), (unsigned long long)clock_cost_ns());
}

static uint64_t per_name(struct probe *p, operation run, uint64_t passes)
{
    uint64_t count = 0;
    for (uint64_t pass = 0; pass < passes; pass++) {
        uint64_t before = now_ns();
        for (size_t i = 0; i < p->names.count; i++) {
            uint64_t after;
            run(p, i);
            after = now_ns();
            if (p->done < p->room)
                p->laps[p->done++] = after - before;
            before = after;
        }
        count += p->names.count;
    }
    return count;
}

static uint64_t per_directory(struct probe *p, int descend, uint64_t passes)
{
    uint64_t count = 0;
    for (uint64_t pass = 0; pass < passes; pass++) {
        uint64_t before = now_ns();
        count += list_once(p, descend);
        if (p->done < p->room)
            p->laps[p->done++] = now_ns() - before;
    }
    return count;
}

static void measure(struct probe *p, const char *what)
{
    struct rusage before, after;
    operation run = NULL;
    int whole = !strcmp(what, "list") || !strcmp(what, "walk");
    int descend = !strcmp(what, "walk");
    uint64_t count, start, wall;

    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (!strcmp(what, operations[i].name)) {
            run = operations[i].run;
            if (operations[i].pairs)
                make_pairs(p, operations[i].pairs);
        }
    if (!run && !whole) {
        errno = EINVAL;
        fail("operation %s", what);
    }
    if (run == op_switch)
        start_echo();

    if (whole)
        per_directory(p, descend, p->warm);
    else
        per_name(p, run, p->warm);
    p->first_ns = 0;

    p->room = p->passes * (whole ? 1 : p->names.count);
    p->laps = reserve(p->room * sizeof *p->laps);
    getrusage(RUSAGE_SELF, &before);
    start = now_ns();
    count = whole ? per_directory(p, descend, p->passes) : per_name(p, run, p->passes);
    wall = now_ns() - start;
    getrusage(RUSAGE_SELF, &after);
    print_result(p, count, wall, &before, &after);
    if (run == op_switch) {
        close(to_child[1]);
        wait(NULL);
    }
}

/* Fills DIR with `size`-byte files under the names of the list: untimed, for building layers. */
static void make_files(struct probe *p)
{
    for (size_t i = 0; i < p->names.count; i++) {
        int fd = openat(p->dir, p->names.list[i], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0)
            fail("create %s", p->names.list[i]);
        if (p->size)
            write_all(p, fd, i);
        close(fd);
    }
    printf("{\"operations\": %zu, \"wall_ns\": 0, \"first_ns\": 0, \"user_ns\": 0, "
           "\"system_ns\": 0, \"p50_ns\": 0, \"p99_ns\": 0, \"max_ns\": 0, \"clock_ns\": 0}\n",
           p->names.count);
}

static uint64_t number(const char *text)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end || end == text) {
        errno = EINVAL;
        fail("number %s", text);
    }
    return value;
}

int main(int argc, char **argv)
{
    struct probe p = {.path = ".", .passes = 1};
    const char *names = NULL;

    if (argc < 2 || argc % 2) {
        errno = EINVAL;
        fail("usage: probe OPERATION [--dir DIR] [--names FILE] [--size N] [--passes N]"
             " [--warm N] [--delay-ns N]");
    }
    for (int i = 2; i < argc; i += 2) {
        if (!strcmp(argv[i], "--dir"))
            p.path = argv[i + 1];
        else if (!strcmp(argv[i], "--names"))
            names = argv[i + 1];
        else if (!strcmp(argv[i], "--size"))
            p.size = number(argv[i + 1]);
        else if (!strcmp(argv[i], "--passes"))
            p.passes = number(argv[i + 1]);
        else if (!strcmp(argv[i], "--warm"))
            p.warm = number(argv[i + 1]);
        else if (!strcmp(argv[i], "--delay-ns"))
            p.delay_ns = number(argv[i + 1]);
        else {
            errno = EINVAL;
            fail("option %s", argv[i]);
        }
    }
    p.dir = open(p.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p.dir < 0)
        fail("open %s", p.path);
    p.buffer = reserve(p.size);
    if (names)
        read_names(&p, names);
    if (!strcmp(argv[1], "make"))
        make_files(&p);
    else
        measure(&p, argv[1]);
    return 0;
}
