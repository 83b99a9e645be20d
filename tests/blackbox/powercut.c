/* Writes down what a program does to its database, so that tests/blackbox/chaos_power.py can cut the power afterwards, at any moment and
 * as often as it likes. LD_PRELOAD it with POWERCUT_TRACE=FILE. Only files whose name holds "interlock.db" are followed, and not
 * the shared memory beside them, which is made anew after a cut.
 *
 * A record: begin and end by CLOCK_MONOTONIC, kind (w write, t truncate, s fdatasync, S fsync), file (d database, l log), offset, length, bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096
static char kinds[MOST];
static off_t places[MOST];
static int trace = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name, ...) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static char kind_of(int fd) { return fd >= 0 && fd < MOST ? kinds[fd] : 0; }

static ssize_t plain_write(int fd, const void *bytes, size_t count) {
    REAL(write);
    return real(fd, bytes, count);
}

static void note(double begin, char what, char file, int64_t offset, const void *bytes, uint32_t length) {
    struct __attribute__((packed)) { double begin, end; char what, file; int64_t offset; uint32_t length; } head =
        { begin, now(), what, file, offset, length };
    pthread_mutex_lock(&lock);
    if (trace < 0 && getenv("POWERCUT_TRACE")) {
        REAL(open);
        trace = real(getenv("POWERCUT_TRACE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    if (trace >= 0) {
        if (plain_write(trace, &head, sizeof head) != (ssize_t)sizeof head) abort();
        for (uint32_t done = 0; bytes && done < length;) {
            ssize_t wrote = plain_write(trace, (const char *)bytes + done, length - done);
            if (wrote <= 0) abort();
            done += (uint32_t)wrote;
        }
    }
    pthread_mutex_unlock(&lock);
}

static int opened(const char *path, int fd) {
    if (fd >= 0 && fd < MOST) {
        const char *name = strrchr(path, '/');
        name = name ? name + 1 : path;
        size_t length = strlen(name);
        kinds[fd] = !strcmp(name, "interlock.db") ? 'd' : length > 4 && !strncmp(name, "interlock.db", 12) && !strcmp(name + length - 4, "-wal") ? 'l' : 0;
        places[fd] = 0;
    }
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        return opened(path, real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < MOST) kinds[fd] = 0;
    return real(fd);
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *bytes, size_t count, __typeof__(offset_##name) offset) { \
        REAL(name); \
        double begin = now(); \
        ssize_t wrote = real(fd, bytes, count, offset); \
        if (wrote > 0 && kind_of(fd)) note(begin, 'w', kind_of(fd), offset, bytes, (uint32_t)wrote); \
        return wrote; \
    }
static off_t offset_pwrite __attribute__((unused));
static off64_t offset_pwrite64 __attribute__((unused));
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *bytes, size_t count) {
    double begin = kind_of(fd) ? now() : 0;
    off_t place = kind_of(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t wrote = plain_write(fd, bytes, count);
    if (wrote > 0 && kind_of(fd)) note(begin, 'w', kind_of(fd), place, bytes, (uint32_t)wrote);
    return wrote;
}

#define SYNC(name, kind) \
    int name(int fd) { \
        REAL(name); \
        double begin = now(); \
        int done = real(fd); \
        if (!done && kind_of(fd)) note(begin, kind, kind_of(fd), 0, 0, 0); \
        return done; \
    }
SYNC(fsync, 'S')
SYNC(fdatasync, 's')

#define TRUNCATE(name, type) \
    int name(int fd, type length) { \
        REAL(name); \
        double begin = now(); \
        int done = real(fd, length); \
        if (!done && kind_of(fd)) note(begin, 't', kind_of(fd), length, 0, 0); \
        return done; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
