/* The thread pool: one per process, made on first use, workers added as a call asks for more of them.
 *
 * A token is 20 to 40 barriers, so waiting threads spin for some tens of microseconds before they sleep (between
 * tokens) or give up their time slice (within one). */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "engine.h"

#if defined(__x86_64__)
#define spin_pause() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define spin_pause() __asm__ __volatile__("isb") /* "yield" costs next to nothing on most cores */
#else
#define spin_pause() ((void)0)
#endif

enum { SPINS = 2000 };

/* Threads in lock-step wait for a time slice at every barrier if one of them shares its core with another program: up to
 * a hundred times slower than one thread alone. Results do not depend on the number of threads, so behind such a run
 * there is one thread only, for twice as long as that took; or for twice as long as the last time, if threads together
 * have done well for less than that since. */
enum { PAUSE_TO_RUN = 2 };
static const int64_t LONG_RUN = 1000000;      /* nanoseconds: a shorter one has not lost a time slice */
static const int64_t LONG_PAUSE = 1000000000; /* a longer one is only behind a run of more than half of it */

static int64_t nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

typedef struct {
    _Alignas(64) atomic_uint round; /* grows by one when there is something to do */
    atomic_int asleep;              /* needs `wake` to notice */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t thread;
} Worker;

static struct {
    pthread_mutex_t turn; /* held by whoever runs work or changes the pool */
    int n_workers;
    Worker workers[MAX_THREADS]; /* worker i is thread i + 1 of a run; thread 0 is the caller */

    Work work; /* of this run; written before any round grows. NULL: end */
    void *context;
    int n_threads;
    _Alignas(64) atomic_int finished; /* workers that are through with this run */
    _Alignas(64) atomic_int arrived;  /* threads that have come to the current barrier */
    _Alignas(64) atomic_uint barriers; /* barriers passed */
    atomic_llong waited;               /* nanoseconds of this run that threads waited, beyond spinning */
    uint32_t run;                      /* counts them */
    bool judged;                       /* this one */
    bool alone;                        /* in a pause */
    int64_t pause_ends;                /* nanoseconds */
    int64_t pause;                     /* the last one's length */
    int64_t went_well;                 /* so long did threads together since then */
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local int this_thread; /* of a run: workers know their number, whoever calls is 0 */

/* A waiting loop: spin at first, then let others run (there may be more threads than cores). */
typedef struct {
    int spins;
    int64_t since; /* when spinning ended */
} Wait;

static inline void wait_a_little(Wait *wait) {
    if (++wait->spins < SPINS) {
        spin_pause();
    } else {
        if (wait->spins == SPINS) {
            wait->since = nanoseconds();
            cores_part(this_thread, pool.n_threads, pool.run);
        }
        sched_yield();
    }
}

static inline void end_wait(const Wait *wait) {
    if (wait->since) atomic_fetch_add_explicit(&pool.waited, nanoseconds() - wait->since, memory_order_relaxed);
}

static void wait_for_round(Worker *self, unsigned seen) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&self->round, memory_order_acquire) != seen) return;
        spin_pause();
    }
    pthread_mutex_lock(&self->mutex);
    atomic_store(&self->asleep, 1); /* before the look at round: the caller writes round, then looks at asleep */
    while (atomic_load(&self->round) == seen) pthread_cond_wait(&self->wake, &self->mutex);
    atomic_store(&self->asleep, 0);
    pthread_mutex_unlock(&self->mutex);
}

static void *worker_main(void *argument) {
    Worker *self = argument;
    this_thread = (int)(self - pool.workers) + 1;
    for (unsigned seen = 0;; seen++) {
        wait_for_round(self, seen);
        if (!pool.work) return NULL;
        cores_look(this_thread, pool.run);
        pool.work(pool.context, this_thread, pool.n_threads);
        atomic_fetch_add_explicit(&pool.finished, 1, memory_order_release);
    }
}

static void start_round(Worker *worker) {
    atomic_fetch_add(&worker->round, 1);
    if (!atomic_load(&worker->asleep)) return;
    pthread_mutex_lock(&worker->mutex);
    pthread_cond_signal(&worker->wake);
    pthread_mutex_unlock(&worker->mutex);
}

/* fork() copies only the thread that called it. No run may be half-way then, and the child starts its own workers. */
static void before_fork(void) { pthread_mutex_lock(&pool.turn); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&pool.turn); }
static void after_fork_in_child(void) {
    pool.n_workers = 0;
    pthread_mutex_init(&pool.turn, NULL);
}

static void watch_fork(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

static void add_workers(int wanted) {
    /* Signals are for the threads that the caller knows: a Ctrl-C must interrupt what these wait for. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.n_workers < wanted) {
        Worker *worker = &pool.workers[pool.n_workers];
        atomic_init(&worker->round, 0);
        atomic_init(&worker->asleep, 0);
        pthread_mutex_init(&worker->mutex, NULL);
        pthread_cond_init(&worker->wake, NULL);
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) break; /* fewer, then */
        pool.n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void threads_take_turn(void) {
    static pthread_once_t watched = PTHREAD_ONCE_INIT;
    pthread_once(&watched, watch_fork);
    pthread_mutex_lock(&pool.turn);
}
void threads_end_turn(void) { pthread_mutex_unlock(&pool.turn); }

/* Was a run of this length worth its threads? If one is put aside for some time, n_threads - 1 wait for as long, and
 * n_threads do nothing: more than (n_threads - 1) / n_threads of the run, and one alone would have been faster. (Where
 * most of a run is one thread's work, as in drawing from flat logits of a large vocabulary, that looks the same.) */
static void judge_run(int64_t length, int n_threads) {
    const int64_t waited = atomic_load(&pool.waited), others = n_threads - 1;
    if (length < LONG_RUN || waited * n_threads <= length * others * others) {
        pool.went_well += length;
        return;
    }
    const int64_t shortest = PAUSE_TO_RUN * length, longest = shortest > LONG_PAUSE ? shortest : LONG_PAUSE;
    const int64_t wanted = pool.went_well < pool.pause && 2 * pool.pause > shortest ? 2 * pool.pause : shortest;
    pool.pause = wanted < longest ? wanted : longest;
    pool.pause_ends = nanoseconds() + pool.pause;
    pool.went_well = 0;
    pool.alone = true;
}

void threads_run(int n_threads, Work work, void *context) {
    if (n_threads > 1) add_workers(n_threads - 1);
    if (n_threads > pool.n_workers + 1) n_threads = pool.n_workers + 1;

    pool.work = work;
    pool.context = context;
    pool.n_threads = n_threads;
    pool.run++;
    atomic_store(&pool.finished, 0);
    atomic_store(&pool.waited, 0);
    const int64_t start = n_threads > 1 ? nanoseconds() : 0;
    if (n_threads > 1) cores_look(0, pool.run);
    for (int i = 0; i < n_threads - 1; i++) start_round(&pool.workers[i]);
    work(context, 0, n_threads);
    Wait wait = {0};
    while (atomic_load_explicit(&pool.finished, memory_order_acquire) < n_threads - 1) wait_a_little(&wait);
    end_wait(&wait);
    if (pool.judged && n_threads > 1) judge_run(nanoseconds() - start, n_threads);
    pool.judged = false;
}

int threads_that_help(int n_threads) {
    if (n_threads > 1 && pool.alone) pool.alone = nanoseconds() < pool.pause_ends;
    pool.judged = !pool.alone;
    return pool.alone ? 1 : n_threads;
}

void threads_barrier(int n_threads) {
    if (n_threads == 1) return;
    const unsigned passed = atomic_load_explicit(&pool.barriers, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) + 1 == n_threads) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&pool.barriers, 1, memory_order_release);
    } else {
        Wait wait = {0};
        while (atomic_load_explicit(&pool.barriers, memory_order_acquire) == passed) wait_a_little(&wait);
        end_wait(&wait);
    }
}

void threads_stop(void) {
    pool.work = NULL;
    for (int i = 0; i < pool.n_workers; i++) start_round(&pool.workers[i]);
    for (int i = 0; i < pool.n_workers; i++) {
        pthread_join(pool.workers[i].thread, NULL);
        pthread_mutex_destroy(&pool.workers[i].mutex);
        pthread_cond_destroy(&pool.workers[i].wake);
    }
    pool.n_workers = 0;
    pool.alone = pool.judged = false;
    pool.pause = 0;
}
