/* Preloaded into a process: the n-th allocation or thread creation that the engine asks for fails.
 *
 *     cc -shared -fPIC -o fail_nth.so fail_nth.c -ldl
 *
 * Only calls whose return address lies in the engine's extension count, so that Python's own allocations go on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_int countdown = -1; /* calls until the one that fails; below 0: none does */
static atomic_int calls;

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_aligned_alloc)(size_t, size_t);
static int (*real_posix_memalign)(void **, size_t, size_t);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static int (*real_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

/* dlsym may itself ask for memory before calloc is known */
static char early[4096];
static size_t early_used;

static void resolve(void) {
    if (real_pthread_create) return;
    real_malloc = dlsym(RTLD_NEXT, "malloc");
    real_calloc = dlsym(RTLD_NEXT, "calloc");
    real_realloc = dlsym(RTLD_NEXT, "realloc");
    real_aligned_alloc = dlsym(RTLD_NEXT, "aligned_alloc");
    real_posix_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    real_mmap = dlsym(RTLD_NEXT, "mmap");
    real_pthread_create = dlsym(RTLD_NEXT, "pthread_create");
}

__attribute__((constructor)) static void start(void) { resolve(); }

/* The n-th call from now on fails, counted from 0; below 0: none. Returns how many calls there were since the last time. */
int fail_nth(int n) {
    const int before = atomic_exchange(&calls, 0);
    atomic_store(&countdown, n);
    return before;
}

static int fails(const void *caller) {
    Dl_info from;
    if (!dladdr(caller, &from) || !from.dli_fname || !strstr(from.dli_fname, "_engine")) return 0;
    atomic_fetch_add(&calls, 1);
    return atomic_load(&countdown) >= 0 && atomic_fetch_sub(&countdown, 1) == 0;
}

#define CALLER __builtin_return_address(0)

void *malloc(size_t size) {
    if (!real_malloc) resolve();
    if (!fails(CALLER)) return real_malloc(size);
    errno = ENOMEM;
    return NULL;
}

void *calloc(size_t count, size_t size) {
    if (!real_calloc) { /* within dlsym */
        void *memory = early + early_used;
        early_used += (count * size + 15) & ~(size_t)15;
        return early_used <= sizeof early ? memory : NULL;
    }
    if (!fails(CALLER)) return real_calloc(count, size);
    errno = ENOMEM;
    return NULL;
}

void *realloc(void *memory, size_t size) {
    if (!real_realloc) resolve();
    if (!fails(CALLER)) return real_realloc(memory, size);
    errno = ENOMEM;
    return NULL;
}

void *aligned_alloc(size_t alignment, size_t size) {
    if (!fails(CALLER)) return real_aligned_alloc(alignment, size);
    errno = ENOMEM;
    return NULL;
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    return fails(CALLER) ? ENOMEM : real_posix_memalign(memory, alignment, size);
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    if (!real_mmap) resolve();
    if (!fails(CALLER)) return real_mmap(address, length, protection, flags, file, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    return fails(CALLER) ? EAGAIN : real_pthread_create(thread, attributes, run, argument);
}
