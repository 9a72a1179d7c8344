/* What every check uses: failing, numbers, guarded arrays. */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- failing ---- */

char doing[256];

void now(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(doing, sizeof doing, format, arguments);
    va_end(arguments);
}

_Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "kernel_check: %s: ", doing);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1); /* other threads may be running */
}

void on_signal(int number) { /* guard pages end here; only what a signal handler may call */
    const char *what = number == SIGILL ? "an illegal instruction\n" : "it touched memory outside of its arrays\n";
    if (write(2, "kernel_check: ", 14) < 0 || write(2, doing, strlen(doing)) < 0 || write(2, ": ", 2) < 0 ||
        write(2, what, strlen(what)) < 0)
        _exit(2);
    _exit(1);
}

void pause_us(long microseconds) {
    nanosleep(&(struct timespec){microseconds / 1000000, microseconds % 1000000 * 1000}, NULL);
}

void *cancel_soon(void *flag) {
    pause_us(3000);
    __atomic_store_n((int32_t *)flag, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* ---- numbers ---- */

uint64_t lcg_state;

void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = random_float();
}

void hash(uint64_t *h, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (int byte = 0; byte < 4; byte++) *h = (*h ^ (bits_of(x[i]) >> (8 * byte) & 0xff)) * 0x100000001b3u;
}

int greatest_common_divisor(int a, int b) { return b ? greatest_common_divisor(b, a % b) : a; }

/* ---- guarded arrays: flush with a page that must not be touched, canaries before ---- */

Guarded guarded(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    Guarded g = {.bytes = bytes, .page = page, .mapped = (size_t)round_up((int64_t)bytes + 64, (int64_t)page) + page};
    g.pages = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.pages == MAP_FAILED || mprotect(g.pages + g.mapped - page, page, PROT_NONE)) fail("no memory for the check");
    memset(g.pages, CANARY, g.mapped - page);
    g.array = g.pages + g.mapped - page - bytes;
    return g;
}

int is_canary(const void *memory, size_t bytes) { /* the first byte is one, and each is like its neighbour */
    const unsigned char *at = memory;
    return bytes == 0 || (at[0] == CANARY && memcmp(at, at + 1, bytes - 1) == 0);
}

void unguard(Guarded g) {
    if (!is_canary(g.pages, (size_t)(g.array - g.pages))) fail("wrote in front of an array");
    munmap(g.pages, g.mapped);
}
