/* Where threads run: no two threads of a run on one core, as long as the process may use others. (A core is what Linux
 * numbers as a CPU; which of them share a physical one is left to the system, which goes on moving threads.)
 *
 * Linux wakes a thread on the core of whoever wakes it, if no core seems idle; and in a virtual machine of KVM's a halted
 * core looks like one that the host has taken away. Threads that wait for each other's steps then share a core, the one
 * yielding to the other, until the scheduler parts them some milliseconds later: a prompt takes twice as long. So a
 * worker that has to wait, and finds a thread before it on its own core, moves to another. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "engine.h"

#ifdef __linux__

/* Of each thread: the run in which it last looked (the upper half), and where it was. */
static _Atomic uint64_t seen[MAX_THREADS];

static uint64_t seen_of(int thread) { return atomic_load_explicit(&seen[thread], memory_order_relaxed); }

void cores_look(int thread, uint32_t run) {
    const int core = sched_getcpu();
    if (core >= 0) atomic_store_explicit(&seen[thread], (uint64_t)run << 32 | (uint64_t)core, memory_order_relaxed);
}

void cores_part(int thread, int n_threads, uint32_t run) {
    cores_look(thread, run);
    const uint64_t here = seen_of(thread);
    int other = 0;
    while (other < thread && seen_of(other) != here) other++;
    /* Thread 0 always stays: where the caller's runs is not ours to say. Nor where nobody can tell where that is. */
    if (other == thread || here >> 32 != run) return;

    cpu_set_t allowed, unused;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    unused = allowed;
    for (int i = 0; i < n_threads; i++) {
        const uint32_t core = (uint32_t)seen_of(i);
        if (core < CPU_SETSIZE) CPU_CLR(core, &unused);
    }
    /* The first call moves it; the second leaves it free to be moved by the system again. */
    if (CPU_COUNT(&unused) == 0 || sched_setaffinity(0, sizeof unused, &unused) != 0) return;
    if (sched_setaffinity(0, sizeof allowed, &allowed) != 0) { /* they are no longer: whatever is */
        memset(&allowed, 0xff, sizeof allowed);
        sched_setaffinity(0, sizeof allowed, &allowed);
    }
    cores_look(thread, run);
}

#else

void cores_look(int thread, uint32_t run) { (void)thread, (void)run; }
void cores_part(int thread, int n_threads, uint32_t run) { (void)thread, (void)n_threads, (void)run; }

#endif
