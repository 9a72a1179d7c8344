/* Where threads run: no two threads of one run on one core, as long as the process may use others.
 *
 * Linux wakes a thread on the core of whoever wakes it, if no core seems idle; and in a virtual machine of KVM's a halted
 * core looks like one that the host has taken away. Threads that wait for each other's steps then share a core, the one
 * yielding to the other, until the scheduler parts them some milliseconds later: a prompt takes twice as long. So a
 * worker that finds a thread before it on its own core moves to another. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>

#include "engine.h"

#ifdef __linux__

/* Of each thread of the run: where it was when it last looked. A stale one costs a move to and fro, and no more. */
static atomic_int core_of[MAX_THREADS];

static int look(int thread) {
    const int core = sched_getcpu();
    if (atomic_load_explicit(&core_of[thread], memory_order_relaxed) != core) /* else everybody's copy stays valid */
        atomic_store_explicit(&core_of[thread], core, memory_order_relaxed);
    return core;
}

void cores_part(int thread, int n_threads) {
    const int core = look(thread);
    int other = 0;
    while (other < thread && atomic_load_explicit(&core_of[other], memory_order_relaxed) != core) other++;
    if (other == thread) return; /* as always for thread 0, the caller's: where that runs is not ours to say */

    cpu_set_t allowed, unused;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    unused = allowed;
    for (int i = 0; i < n_threads; i++) {
        const int used = atomic_load_explicit(&core_of[i], memory_order_relaxed);
        if (used >= 0 && used < CPU_SETSIZE) CPU_CLR(used, &unused);
    }
    /* Moved by the first call, and free to be moved by the system again by the second. */
    if (CPU_COUNT(&unused) > 0 && sched_setaffinity(0, sizeof unused, &unused) == 0) {
        sched_setaffinity(0, sizeof allowed, &allowed);
        look(thread);
    }
}

#else

void cores_part(int thread, int n_threads) {
    (void)thread;
    (void)n_threads;
}

#endif
