/* The thread pool: one per process, made on first use. A call that wants more threads adds workers.
 *
 * A token takes 20 to 40 barriers, so waiting threads spin for some tens of microseconds before they sleep (between
 * tokens) or give up their time slice (within a token). Scheduling policy is in scheduling.c. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
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

int64_t nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

enum { SPINS = 2000 };

typedef struct {
    _Alignas(64) atomic_uint round; /* grows by one when there is something to do */
    atomic_int asleep;              /* must be woken to see it */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t thread;
} Worker;

static struct {
    pthread_mutex_t turn; /* held by the caller that runs work or changes the pool */
    int n_workers;
    Worker workers[MAX_THREADS]; /* worker i is thread i + 1 of a run; thread 0 is the caller */

    Work work; /* of this run; written before any round grows. NULL: end the thread */
    void *context;
    int n_threads;
    _Alignas(64) atomic_int finished;  /* workers that have finished this run */
    _Alignas(64) atomic_int arrived;   /* threads that have arrived at the current barrier */
    _Alignas(64) atomic_uint barriers; /* barriers passed */
    atomic_llong waited;               /* nanoseconds of this run that threads waited, beyond spinning */
    uint32_t run;                      /* this run's number */
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local int this_thread; /* number in a run: workers have theirs, any caller is 0 */

/* A waiting loop: spin first, then let others run (there may be more threads than cores). */
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
            scheduling_leave_core(this_thread, pool.n_threads, pool.run);
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
    atomic_store(&self->asleep, 1); /* before round is read: the caller writes round, then reads asleep */
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
        scheduling_note_core(this_thread, pool.run);
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

/* ---- flags ---- */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t set; /* signalled when any flag is set */
} flags = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void make_flags(void) {
#if defined(__linux__) /* a clock that is never set */
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&flags.set, &monotonic);
    pthread_condattr_destroy(&monotonic);
#else
    pthread_cond_init(&flags.set, NULL);
#endif
}

static void lock_flags(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_flags);
    pthread_mutex_lock(&flags.mutex);
}

int32_t l2p_wait_flag(const int32_t *flag, int milliseconds) {
    if (!flag) return 0;
    struct timespec end;
#if defined(__linux__)
    clock_gettime(CLOCK_MONOTONIC, &end);
#else
    clock_gettime(CLOCK_REALTIME, &end);
#endif
    const int64_t nanos = end.tv_nsec + (int64_t)milliseconds % 1000 * 1000000;
    end.tv_sec += milliseconds / 1000 + nanos / 1000000000;
    end.tv_nsec = nanos % 1000000000;
    lock_flags();
    while (*flag == 0 && pthread_cond_timedwait(&flags.set, &flags.mutex, &end) == 0) continue;
    const int32_t value = *flag;
    pthread_mutex_unlock(&flags.mutex);
    return value;
}

void l2p_set_flag(int32_t *flag) {
    if (!flag) return;
    lock_flags();
    *flag = 1;
    pthread_cond_broadcast(&flags.set);
    pthread_mutex_unlock(&flags.mutex);
}

/* ---- fork ---- */

/* fork() copies only the calling thread. It waits until no run is in progress, and the child starts its own workers. */
static void before_fork(void) { pthread_mutex_lock(&pool.turn); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&pool.turn); }
static void after_fork_in_child(void) {
    pool.n_workers = 0;
    pthread_mutex_init(&pool.turn, NULL);
    pthread_mutex_init(&flags.mutex, NULL);
    make_flags();
}

static void watch_fork(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

/* ---- the pool ---- */

static void add_workers(int wanted) {
    /* Workers block all signals: Ctrl-C must interrupt one of the caller's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.n_workers < wanted) {
        Worker *worker = &pool.workers[pool.n_workers];
        atomic_init(&worker->round, 0);
        atomic_init(&worker->asleep, 0);
        pthread_mutex_init(&worker->mutex, NULL);
        pthread_cond_init(&worker->wake, NULL);
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) break; /* the run has fewer threads */
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
    if (n_threads > 1) scheduling_note_core(0, pool.run);
    for (int i = 0; i < n_threads - 1; i++) start_round(&pool.workers[i]);
    work(context, 0, n_threads);
    Wait wait = {0};
    while (atomic_load_explicit(&pool.finished, memory_order_acquire) < n_threads - 1) wait_a_little(&wait);
    end_wait(&wait);
    scheduling_after_run(start ? nanoseconds() - start : 0, atomic_load(&pool.waited), n_threads);
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
    scheduling_forget();
}
