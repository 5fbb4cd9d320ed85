/* Preloaded library: numbers the calls that change a disk below some folders, and spoils one of them.

   shim_arm(folders, number, effect, error, log) begins; folders are joined by ':'. Calls are numbered from 1.
   Effects: 0 only numbers them, 1 this call fails, 2 this and every later one fail (unlink and rmdir work: a
   full disk), 3 this write takes half of its bytes, 4 it takes half and every later one fails, 5 SIGKILL
   before the call, 6 SIGKILL after half of the write.
   shim_count() is the number of calls. Each is a line of the log, writes with their bytes, for a replay.

   A connection to another machine, or the look-up of its name, ends the process with SIGABRT.

   Python, Rust (safetensors, tokenizers) and C++ streams (torch, onnx) all call these functions of the C
   library. What they do not see: writes to mapped memory, and what stdio flushes in fclose. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, FULL, SHORT, SHORT_FULL, KILL, KILL_HALF };
static char folders[4096];
static long number;
static int effect, error_number, log_file = -1;
static volatile long *count; /* shared with the parent, which reads it after the end */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void shim_arm(const char *where, long n, int what, int error, const char *log) {
    *count = 0, number = n, effect = what, error_number = error;
    log_file = *log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    strncpy(folders, where, sizeof folders - 1);
}

long shim_count(void) { return *count; }

/* Whether a path lies in one of the folders. */
static int counts(const char *path) {
    for (const char *start = folders; *start;) {
        size_t size = strcspn(start, ":");
        if (!strncmp(path, start, size) && (path[size] == '/' || !path[size])) return 1;
        start += size + (start[size] == ':');
    }
    return 0;
}

static int path_of(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0;
}

/* The absolute path of `name` below the folder `handle`. */
static void join(int handle, const char *name, char *path) {
    *path = 0;
    if (*name != '/') {
        if (handle == AT_FDCWD) { if (!getcwd(path, PATH_MAX)) *path = 0; }
        else path_of(handle, path);
        strncat(path, "/", PATH_MAX - strlen(path) - 1);
    }
    strncat(path, name, PATH_MAX - strlen(path) - 1);
}

static void note(const char *call, const char *path, const char *other, long offset, const void *data, long size) {
    char line[3 * PATH_MAX];
    if (log_file < 0) return;
    int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%ld\t%ld\n", *count, call, path, other, offset, size);
    syscall(SYS_write, log_file, line, length);
    if (data) syscall(SYS_write, log_file, data, size);
}

/* Numbers a call: 0 = it happens, -1 = it fails, 1 = a write takes half. */
static int next(int removes, int writes) {
    pthread_mutex_lock(&mutex);
    long mine = ++*count;
    pthread_mutex_unlock(&mutex);
    if (!number || mine < number) return 0;
    if (mine == number) switch (effect) {
        case FAIL: case FULL: break;
        case SHORT: case SHORT_FULL: case KILL_HALF: if (writes) return 1; if (effect != KILL_HALF) return 0; /* fall through */
        case KILL: kill(getpid(), SIGKILL); for (;;) pause();
        default: return 0;
    } else if (removes || !(effect == FULL || effect == SHORT_FULL)) return 0;
    errno = error_number;
    return -1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_HANDLE(handle) char path[PATH_MAX]; int mine = *folders && (handle) > 2 && path_of(handle, path) && counts(path)
#define AFTER_HALF if (half == 1 && effect == KILL_HALF) { kill(getpid(), SIGKILL); for (;;) pause(); }

ssize_t write(int handle, const void *data, size_t size) {
    REAL(write);
    ON_HANDLE(handle);
    int half = mine ? next(0, size > 1) : 0;
    if (half < 0) return -1;
    ssize_t done = real(handle, data, half ? size / 2 : size);
    if (mine && done > 0) note("write", path, "", lseek(handle, 0, SEEK_CUR) - done, data, done);
    AFTER_HALF
    return done;
}
ssize_t pwrite64(int handle, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    ON_HANDLE(handle);
    int half = mine ? next(0, size > 1) : 0;
    if (half < 0) return -1;
    ssize_t done = real(handle, data, half ? size / 2 : size, offset);
    if (mine && done > 0) note("write", path, "", offset, data, done);
    AFTER_HALF
    return done;
}
ssize_t pwrite(int handle, const void *data, size_t size, off_t offset) { return pwrite64(handle, data, size, offset); }
ssize_t writev(int handle, const struct iovec *parts, int n) {
    REAL(writev);
    ON_HANDLE(handle);
    if (!mine) return real(handle, parts, n);
    ssize_t done = 0; /* part by part, so that each is a write */
    for (int i = 0; i < n; i++) {
        ssize_t part = parts[i].iov_len ? write(handle, parts[i].iov_base, parts[i].iov_len) : 0;
        if (part < 0) return done ? done : -1;
        done += part;
        if ((size_t)part < parts[i].iov_len) break;
    }
    return done;
}
size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    REAL(fwrite);
    ON_HANDLE(fileno(file));
    int half = mine ? next(0, size * n > 1) : 0;
    if (half < 0) return 0;
    fflush(file);
    size_t done = real(data, size, half ? n / 2 : n, file);
    fflush(file);
    if (mine && done) note("write", path, "", lseek(fileno(file), 0, SEEK_CUR) - size * done, data, size * done);
    AFTER_HALF
    if (half) errno = error_number;
    return done;
}
/* What copies in the kernel is refused, so that the caller copies by write. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    ON_HANDLE(out);
    if (mine) { errno = ENOSYS; return -1; }
    return real(in, from, out, to, size, flags);
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t size) {
    REAL(sendfile64);
    ON_HANDLE(out);
    if (!mine) return real(out, in, from, size);
    char data[1 << 16];
    if (size > sizeof data) size = sizeof data;
    ssize_t got = from ? pread(in, data, size, *from) : read(in, data, size);
    if (got <= 0) return got;
    ssize_t done = write(out, data, got);
    if (done > 0 && from) *from += done;
    else if (!from && done < got) lseek(in, (done > 0 ? done : 0) - got, SEEK_CUR);
    return done;
}
ssize_t sendfile(int out, int in, off_t *from, size_t size) { return sendfile64(out, in, from, size); }

#define FLUSH(name) int name(int handle) { REAL(name); ON_HANDLE(handle); if (mine && next(0, 0)) return -1; \
    int result = real(handle); if (mine && !result) note("fsync", path, "", 0, NULL, 0); return result; }
FLUSH(fsync)
FLUSH(fdatasync)
int ftruncate64(int handle, off64_t size) {
    REAL(ftruncate64);
    ON_HANDLE(handle);
    if (mine && next(0, 0)) return -1;
    int result = real(handle, size);
    if (mine && !result) note("truncate", path, "", size, NULL, 0);
    return result;
}
int ftruncate(int handle, off_t size) { return ftruncate64(handle, size); }
int posix_fallocate64(int handle, off64_t offset, off64_t size) {
    REAL(posix_fallocate64);
    ON_HANDLE(handle);
    if (mine && next(0, 0)) return error_number;
    return real(handle, offset, size);
}
int posix_fallocate(int handle, off_t offset, off_t size) { return posix_fallocate64(handle, offset, size); }

static int moved(int from, const char *a, int to, const char *b, unsigned flags) {
    char one[PATH_MAX], other[PATH_MAX];
    join(from, a, one), join(to, b, other);
    int mine = *folders && (counts(one) || counts(other));
    if (mine && next(0, 0)) return -1;
    int result = syscall(SYS_renameat2, from, a, to, b, flags);
    if (mine && !result) note(flags & RENAME_EXCHANGE ? "exchange" : "rename", one, other, 0, NULL, 0);
    return result;
}
int rename(const char *a, const char *b) { return moved(AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int from, const char *a, int to, const char *b) { return moved(from, a, to, b, 0); }
int renameat2(int from, const char *a, int to, const char *b, unsigned flags) { return moved(from, a, to, b, flags); }

static int removed(int handle, const char *name, int flags) {
    char path[PATH_MAX];
    join(handle, name, path);
    int mine = *folders && counts(path);
    if (mine && next(1, 0)) return -1;
    int result = syscall(SYS_unlinkat, handle, name, flags);
    if (mine && !result) note("unlink", path, "", 0, NULL, 0);
    return result;
}
int unlink(const char *name) { return removed(AT_FDCWD, name, 0); }
int unlinkat(int handle, const char *name, int flags) { return removed(handle, name, flags); }
int rmdir(const char *name) { return removed(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int handle, const char *name, mode_t mode) {
    char path[PATH_MAX];
    join(handle, name, path);
    int mine = *folders && counts(path);
    if (mine && next(0, 0)) return -1;
    int result = syscall(SYS_mkdirat, handle, name, mode);
    if (mine && !result) note("mkdir", path, "", 0, NULL, 0);
    return result;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int symlinkat(const char *text, int handle, const char *name) {
    char path[PATH_MAX];
    join(handle, name, path);
    int mine = *folders && counts(path);
    if (mine && next(0, 0)) return -1;
    int result = syscall(SYS_symlinkat, text, handle, name);
    if (mine && !result) note("symlink", path, text, 0, NULL, 0);
    return result;
}
int symlink(const char *text, const char *name) { return symlinkat(text, AT_FDCWD, name); }

static int opened(int handle, const char *name, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT, mine = 0, new = 0;
    char path[PATH_MAX];
    if (writes && *folders) {
        join(handle, name, path);
        mine = counts(path);
        if (mine && next(0, 0)) return -1;
        new = mine && access(path, F_OK);
    }
    int result = syscall(SYS_openat, handle, name, flags | O_LARGEFILE, mode);
    int named = (flags & O_TMPFILE) != O_TMPFILE;
    if (mine && result >= 0 && named && (new || flags & O_TRUNC)) note(new ? "create" : "empty", path, "", 0, NULL, 0);
    return result;
}
#define OPEN(name, handle, ...) int name(__VA_ARGS__, int flags, ...) { va_list rest; va_start(rest, flags); \
    mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0; va_end(rest); \
    return opened(handle, path, flags, mode); }
OPEN(open, AT_FDCWD, const char *path)
OPEN(open64, AT_FDCWD, const char *path)
OPEN(openat, handle, int handle, const char *path)
OPEN(openat64, handle, int handle, const char *path)

static void leaves(const char *what) {
    fprintf(stderr, "the network was opened: %s\n", what);
    abort();
}
int connect(int handle, const struct sockaddr *address, socklen_t size) {
    REAL(connect);
    if (address->sa_family == AF_INET && (ntohl(((struct sockaddr_in *)address)->sin_addr.s_addr) >> 24) != 127)
        leaves("an IPv4 address");
    if (address->sa_family == AF_INET6 && !IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)address)->sin6_addr))
        leaves("an IPv6 address");
    return real(handle, address, size);
}
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    REAL(getaddrinfo);
    if (name && strcmp(name, "localhost") && strncmp(name, "127.", 4) && strcmp(name, "::1")) leaves(name);
    return real(name, service, hints, result);
}
