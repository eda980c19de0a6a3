/* Loaded by LD_PRELOAD: counts the calls of this process that change files below a folder, and kills it (SIGKILL) right
   before the n-th, or in the middle of it where that is a write. Without gog_arm it does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long steps;
static long fatal = -1;
static int torn;
static char folder[PATH_MAX];

void gog_arm(const char *below, long step, int in_the_middle) {
    snprintf(folder, sizeof folder, "%s/", below);
    atomic_store(&steps, 0);
    torn = in_the_middle;
    fatal = step;
}
long gog_steps(void) { return atomic_load(&steps); }

static int ours(const char *path) {
    if (!folder[0] || !path) return 0;
    if (path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
    char here[PATH_MAX];
    return getcwd(here, sizeof here) && strncat(here, "/", sizeof here - strlen(here) - 1) &&
           strncmp(here, folder, strlen(folder)) == 0;
}
static int ours_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return ours(path);
}
static int step(void) { return atomic_fetch_add(&steps, 1) == fatal; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define BEFORE(mine) if ((mine) && step()) die()
#define WRITE(half) if (ours_fd(fd) && step()) { if (torn && count > 1) { half; } die(); }

ssize_t write(int fd, const void *b, size_t count) { REAL(write); WRITE(real(fd, b, count / 2)) return real(fd, b, count); }
ssize_t pwrite(int fd, const void *b, size_t count, off_t at) { REAL(pwrite); WRITE(real(fd, b, count / 2, at)) return real(fd, b, count, at); }
ssize_t pwrite64(int fd, const void *b, size_t count, off64_t at) { REAL(pwrite64); WRITE(real(fd, b, count / 2, at)) return real(fd, b, count, at); }
ssize_t writev(int fd, const struct iovec *v, int count) { REAL(writev); WRITE(real(fd, v, count / 2)) return real(fd, v, count); }
int fsync(int fd) { REAL(fsync); BEFORE(ours_fd(fd)); return folder[0] ? 0 : real(fd); } /* nobody pulls the plug, and disks are slow */
int fdatasync(int fd) { REAL(fdatasync); BEFORE(ours_fd(fd)); return folder[0] ? 0 : real(fd); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); BEFORE(ours_fd(fd)); return real(fd, n); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); BEFORE(ours_fd(fd)); return real(fd, n); }
int rename(const char *a, const char *b) { REAL(rename); BEFORE(ours(a) || ours(b)); return real(a, b); }
int renameat(int d, const char *a, int e, const char *b) { REAL(renameat); BEFORE(ours(a) || ours(b)); return real(d, a, e, b); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { REAL(renameat2); BEFORE(ours(a) || ours(b)); return real(d, a, e, b, f); }
int unlink(const char *p) { REAL(unlink); BEFORE(ours(p)); return real(p); }
int unlinkat(int d, const char *p, int f) { REAL(unlinkat); BEFORE(d == AT_FDCWD ? ours(p) : ours_fd(d)); return real(d, p, f); }
int rmdir(const char *p) { REAL(rmdir); BEFORE(ours(p)); return real(p); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); BEFORE(ours(p)); return real(p, m); }
int mkdirat(int d, const char *p, mode_t m) { REAL(mkdirat); BEFORE(d == AT_FDCWD ? ours(p) : ours_fd(d)); return real(d, p, m); }
int symlink(const char *a, const char *b) { REAL(symlink); BEFORE(ours(b)); return real(a, b); }
int link(const char *a, const char *b) { REAL(link); BEFORE(ours(b)); return real(a, b); }

#define CHANGES (O_CREAT | O_TRUNC)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }
int open(const char *p, int flags, ...) { MODE REAL(open); BEFORE((flags & CHANGES) && ours(p)); return real(p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE REAL(open64); BEFORE((flags & CHANGES) && ours(p)); return real(p, flags, mode); }
int openat(int d, const char *p, int flags, ...) { MODE REAL(openat); BEFORE((flags & CHANGES) && d == AT_FDCWD && ours(p)); return real(d, p, flags, mode); }
