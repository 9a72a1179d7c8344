/* Scheduling policy: how many threads a pass runs on, and which cores they wait on. None of it changes a result.
 *
 *   - If there is so little work that waking a second thread costs more than it saves, it runs on one thread.
 *   - If one thread alone would have finished a run sooner, because another program held one of the cores, passes run
 *     on one thread for a while.
 *   - A worker that waits on the same core as another thread of its run moves to a free core.
 *
 * LLAMA2PY_SCHEDULING=off, read once, turns all of it off: every pass runs on as many threads as the caller requests,
 * and the operating system alone places them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static bool enabled;

static void read_environment(void) {
    const char *value = getenv("LLAMA2PY_SCHEDULING");
    enabled = !value || strcmp(value, "off") != 0;
}

static bool is_enabled(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_environment);
    return enabled;
}

/* ---- little work ---- */

/* SMALL_WORK: bytes of weights that a thread reads in about 40 microseconds, roughly the cost of waking another thread.
 * The smallest story model has 260K weights. Tokens beyond MANY_TOKENS do not count. */
enum { SMALL_WORK = 5 << 18, MANY_TOKENS = 16 };

int scheduling_threads(const l2p_model *model, int n_tokens, int n_threads) {
    const int64_t work = (int64_t)model->packed_bytes * (n_tokens < MANY_TOKENS ? n_tokens : MANY_TOKENS);
    if (n_threads < 1 || (work < SMALL_WORK && is_enabled())) return 1;
    return n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
}

/* ---- runs that one thread would have finished sooner ---- */

/* If one of the threads shares its core with another program, all of them lose a time slice at every barrier: a run is
 * then up to a hundred times slower than on one thread. After such a run, passes use one thread for twice as long as
 * the run took; or for twice as long as the last pause, if the threads have run well for less than that pause since. */
enum { PAUSE_TO_RUN = 2 };
static const int64_t LONG_RUN = 1000000;      /* nanoseconds: a shorter run cannot have lost a time slice */
static const int64_t LONG_PAUSE = 1000000000; /* only a run of more than half of it makes a longer pause */

static struct {         /* used by the caller that has the turn */
    bool judged;        /* the run that comes next */
    bool alone;         /* in a pause */
    int64_t pause_ends; /* nanoseconds */
    int64_t pause;      /* length of the last one */
    int64_t went_well;  /* how long threads have run well together since */
} history;

int scheduling_before_run(int n_threads) {
    if (!is_enabled()) return n_threads;
    if (n_threads > 1 && history.alone) history.alone = nanoseconds() < history.pause_ends;
    history.judged = !history.alone;
    return history.alone ? 1 : n_threads;
}

/* While one thread is preempted, the other n_threads - 1 wait, and no thread computes. If that takes more than
 * (n_threads - 1) / n_threads of the run, one thread alone would have been faster. (A run that is mostly one thread's
 * work, such as drawing from flat logits of a large vocabulary, looks the same.) */
void scheduling_after_run(int64_t length, int64_t waited, int n_threads) {
    const bool judged = history.judged;
    history.judged = false;
    if (!judged || n_threads < 2) return;
    const int64_t others = n_threads - 1;
    if (length < LONG_RUN || waited * n_threads <= length * others * others) {
        history.went_well += length;
        return;
    }
    const int64_t shortest = PAUSE_TO_RUN * length, longest = shortest > LONG_PAUSE ? shortest : LONG_PAUSE;
    const int64_t wanted =
        history.went_well < history.pause && 2 * history.pause > shortest ? 2 * history.pause : shortest;
    history.pause = wanted < longest ? wanted : longest;
    history.pause_ends = nanoseconds() + history.pause;
    history.went_well = 0;
    history.alone = true;
}

void scheduling_forget(void) { memset(&history, 0, sizeof history); }

/* ---- cores ---- */

/* No two threads of a run should wait on one core while the process may use others. ("Core" here is what Linux numbers
 * as a CPU. Which of these share a physical core is left to the system, which keeps moving threads.)
 *
 * If no core seems idle, Linux wakes a thread on the core of the thread that wakes it; and in a virtual machine of KVM
 * a halted core looks like one that the host has taken away. Threads that wait for each other then share a core, each
 * yielding to the other, until the scheduler separates them some milliseconds later: a prompt takes twice as long. */
#ifdef __linux__

/* For each thread: the last run in which it noted its core (upper half), and that core (lower half) */
static _Atomic uint64_t seen[MAX_THREADS];

static uint64_t seen_of(int thread) { return atomic_load_explicit(&seen[thread], memory_order_relaxed); }

void scheduling_note_core(int thread, uint32_t run) {
    if (!is_enabled()) return;
    const int core = sched_getcpu();
    if (core >= 0) atomic_store_explicit(&seen[thread], (uint64_t)run << 32 | (uint64_t)core, memory_order_relaxed);
}

void scheduling_leave_core(int thread, int n_threads, uint32_t run) {
    if (!is_enabled()) return;
    scheduling_note_core(thread, run);
    const uint64_t here = seen_of(thread);
    int other = 0;
    while (other < thread && seen_of(other) != here) other++;
    /* Never move thread 0, the caller's; nor any thread if the system does not say where it is. */
    if (other == thread || here >> 32 != run) return;

    cpu_set_t allowed, unused;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    unused = allowed;
    for (int i = 0; i < n_threads; i++) {
        const uint32_t core = (uint32_t)seen_of(i);
        if (core < CPU_SETSIZE) CPU_CLR(core, &unused);
    }
    /* The first call moves the thread; the second lets the system move it again. */
    if (CPU_COUNT(&unused) == 0 || sched_setaffinity(0, sizeof unused, &unused) != 0) return;
    if (sched_setaffinity(0, sizeof allowed, &allowed) != 0) { /* no longer allowed: take any allowed core */
        memset(&allowed, 0xff, sizeof allowed);
        sched_setaffinity(0, sizeof allowed, &allowed);
    }
    scheduling_note_core(thread, run);
}

#else

void scheduling_note_core(int thread, uint32_t run) { (void)thread, (void)run; }
void scheduling_leave_core(int thread, int n_threads, uint32_t run) { (void)thread, (void)n_threads, (void)run; }

#endif
