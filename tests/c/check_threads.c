/* `threads`: pool, turns, cancelling and l2p_release, several callers at once. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#if defined(__linux__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.h"
#include "feeding.h"
#include "parts.h"

typedef struct {
    int reached[16]; /* not atomic on purpose: the barriers alone must order these */
    int wrong, n_threads;
    atomic_int started;
} PoolTest;

static void pool_work(void *context, int thread, int n_threads) {
    PoolTest *p = context;
    atomic_fetch_add(&p->started, 1);
    for (int round = 1; round <= 200; round++) {
        p->reached[thread] = round;
        threads_barrier(n_threads);
        for (int i = 0; i < n_threads; i++)
            if (p->reached[i] != round) p->wrong = 1;
        threads_barrier(n_threads);
    }
    if (thread == n_threads - 1) p->n_threads = n_threads;
}

static void check_pool(void) {
    for (int repeat = 0; repeat < 4; repeat++) {
        for (int n_threads = 1; n_threads <= 6; n_threads++) {
            now("the pool with %d threads", n_threads);
            PoolTest p = {0};
            threads_take_turn();
            threads_run(n_threads, pool_work, &p);
            threads_end_turn();
            CHECK(!p.wrong && p.n_threads == n_threads && p.started == n_threads);
        }
        if (repeat == 1) l2p_release();
        if (repeat == 2) pause_us(20000); /* the workers fall asleep */
    }
    now("threads_share"); /* each unit to exactly one thread */
    for (int n = 0; n < 70; n += 3)
        for (int unit = 1; unit <= 2; unit++)
            for (int n_threads = 1, begin, end; n_threads <= 5; n_threads++)
                for (int thread = 0, last = 0; thread < n_threads; thread++, last = end) {
                    threads_share(n, unit, thread, n_threads, &begin, &end);
                    CHECK(begin == last && end >= begin && (begin % unit == 0 || begin == n));
                    CHECK(thread < n_threads - 1 || end == n);
                }
}

typedef struct {
    Run run;
    int repeats;
    atomic_int *ended;
} Caller;

static void *caller_main(void *argument) {
    Caller *caller = argument;
    for (int i = 0; i < caller->repeats; i++) {
        feed_prompts(&caller->run);
        feed_mixed(&caller->run);
        Batch one = {0}; /* a single token, past the batches: position 13 once more */
        add(&one, 0, 13, 14);
        feed(&caller->run, &one, 0, "a token again");
    }
    atomic_fetch_add(caller->ended, 1);
    return NULL;
}

/* Several callers on one model, while another thread keeps taking pool and workspace away */
static void check_callers(void) {
    for (int group = 0; group <= 32; group += 32) {
        const Synthetic s = synthesize(with_weights(SHAPES[2], group));
        Run run = start_run(&s, best_isa(), 2);
        now("several callers at once, group %d", group);
        enum { CALLERS = 4 };
        Caller callers[CALLERS];
        pthread_t threads[CALLERS];
        atomic_int ended = 0;
        for (int i = 0; i < CALLERS; i++) {
            callers[i] = (Caller){run, 3, &ended};
            memset(callers[i].run.sessions, 0, sizeof run.sessions);
            callers[i].run.n_threads = 1 + i;
            if (pthread_create(&threads[i], NULL, caller_main, &callers[i])) fail("no thread for the check");
        }
        while (ended < CALLERS) l2p_release(), pause_us(2000);
        for (int i = 0; i < CALLERS; i++) {
            pthread_join(threads[i], NULL);
            for (int k = 0; k < N_SESSIONS; k++) l2p_session_free(callers[i].run.sessions[k]);
        }
        end_run(&run);
        free_synthetic(s);
    }
}

/* Kernels with an rmsnorm that counts, so that cancelling can be placed and looked at to the very call */
static const FloatKernels *counted_kernels;
static atomic_int norms, cancel_at;
static atomic_uint threads_seen;
static int32_t cancel_flag;
static pthread_t main_thread;

static void counting_rmsnorm(float *out, const float *const *x, int rows, const float *weight, int n, float eps) {
    if (atomic_fetch_add(&norms, 1) + 1 == cancel_at) __atomic_store_n(&cancel_flag, 1, __ATOMIC_RELAXED);
    atomic_fetch_or(&threads_seen, pthread_equal(pthread_self(), main_thread) ? 1u : 2u);
    counted_kernels->rmsnorm(out, x, rows, weight, n, eps);
}

static void check_cancel(void) {
    l2p_config config = BIG;
    config.n_layers = 6;
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, best_isa(), 2);
    FloatKernels counting = *run.model->floats;
    counted_kernels = run.model->floats;
    counting.rmsnorm = counting_rmsnorm;
    run.model->floats = &counting;
    main_thread = pthread_self();
    const int32_t row = 0;
    float *out = malloc((size_t)config.vocab_size * sizeof(float));
    fresh_sessions(&run);
    for (int kind = 0; kind < 4; kind++)
        for (int layer = -1; layer < config.n_layers; layer++) {
            const int n_threads = 1 + kind % 2, draws = kind / 2;
            now("%s cancelled in layer %d, %d threads", draws ? "draws" : "logits", layer,
                n_threads); /* -1: before the call */
            l2p_release();  /* forgets that an earlier run may have had no use for a second thread */
            norms = cancel_flag = 0;
            threads_seen = 0;
            cancel_at = 1 + 2 * layer; /* the first norm of a layer: noticed where the next one begins */
            if (layer < 0) cancel_flag = 1;
            if (n_threads == 2) cancel_at = 0; /* the threads' norms come in any order: just count them */
            const int cancelled = cancel_flag || (cancel_at > 0 && layer < config.n_layers - 1);
            const l2p_draw draw = {.n_tokens = config.vocab_size};
            const int32_t one_draw = 1;
            int32_t drawn = -7, n_drawn;
            const l2p_batch one = {.n_tokens = 1,
                                   .tokens = &s.tokens[0][0],
                                   .sessions = run.sessions,
                                   .positions = &row,
                                   .n_rows = 1,
                                   .rows = &row,
                                   .logits = draws ? NULL : out,
                                   .n_draws = &one_draw,
                                   .draws = &draw,
                                   .drawn = &drawn,
                                   .n_drawn = &n_drawn};
            const int error = l2p_forward(run.model, &one, n_threads, &cancel_flag);
            CHECK(error == (cancelled ? L2P_CANCELLED : L2P_OK));
            CHECK((drawn == -7) == (cancelled || !draws)); /* a cancelled call draws no token */
            /* each thread norms for itself; a cancelled call ends after the first products of its layer */
            const int want = !cancelled ? 2 * config.n_layers + 1 : 2 * (layer + 1) + 1;
            CHECK(norms == n_threads * want);
            CHECK(threads_seen == (n_threads == 1 ? 1u : 3u)); /* a second thread does take part */
        }
    cancel_at = cancel_flag = 0;
    run.model->floats = counted_kernels;
    now("after cancelling");
    run.n_threads = 2;
    Batch all = {0};
    add(&all, 0, 0, LENGTHS[0]);
    feed(&run, &all, 0, "a cancelled session, from its start");

    now("cancelled by another thread");
    pthread_t thread;
    int32_t flag = 0, positions[TOKENS];
    l2p_session *sessions[TOKENS];
    for (int i = 0; i < LENGTHS[0]; i++) positions[i] = i, sessions[i] = run.sessions[0];
    const l2p_batch prompt = {.n_tokens = LENGTHS[0],
                              .tokens = s.tokens[0],
                              .sessions = sessions,
                              .positions = positions,
                              .n_rows = 1,
                              .rows = &row,
                              .logits = out};
    if (pthread_create(&thread, NULL, cancel_soon, &flag)) fail("no thread for the check");
    int error = L2P_OK;
    for (time_t end = time(NULL) + 60; !error && time(NULL) < end;) error = l2p_forward(run.model, &prompt, 2, &flag);
    CHECK(error == L2P_CANCELLED);
    pthread_join(thread, NULL);
    free(out);
    end_run(&run);
    free_synthetic(s);
}

static void wait_for_the_second(void *context, int thread, int n_threads) {
    (void)context;
    if (thread == 1) pause_us(20000); /* as if the system had put it aside */
    threads_barrier(n_threads);
}

static int64_t microseconds_of(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static int64_t microseconds(void) { return microseconds_of(CLOCK_MONOTONIC); }

/* Both work, for 10 ms, and neither waits for the other. */
static void work_well(void *context, int thread, int n_threads) {
    atomic_int *second_has_begun = context;
    (void)n_threads;
    if (thread == 1) atomic_store(second_has_begun, 1);
    for (const int64_t end = microseconds() + 10000; thread == 0 && microseconds() < end;) continue;
    while (!atomic_load(second_has_begun)) sched_yield();
}

/* A run of 20 ms that is all waiting, and the pause after it, in microseconds */
static int64_t pause_after(int64_t *run) {
    CHECK(scheduling_before_run(2) == 2);
    const int64_t start = microseconds();
    threads_run(2, wait_for_the_second, NULL);
    const int64_t end = microseconds();
    *run = end - start;
    CHECK(scheduling_before_run(2) == 1 && scheduling_before_run(1) == 1);
    for (int waited = 0; scheduling_before_run(2) == 1; waited++) {
        CHECK(waited < 1000);
        pause_us(5000);
    }
    return microseconds() - end;
}

/* After a run that was all waiting there is one thread for a while; longer each time it soon happens again. */
static void check_pauses(void) {
    now("one thread after a run that was all waiting");
    l2p_release();
    threads_take_turn();
    int64_t run, pause = 0;
    for (int times = 2; times <= 8; times *= 2) {
        pause = pause_after(&run);
        CHECK(pause >= times * 20000);
    }
    for (int64_t well = 0; well < pause + 20000; well += 10000) { /* as long as the last pause was */
        atomic_int second_has_begun = 0;
        scheduling_before_run(2);
        threads_run(2, work_well, &second_has_begun);
    }
    pause = pause_after(&run);
    CHECK(pause < 12 * run); /* from the start: 2 times, and as long as this thread took to see it */
    CHECK(scheduling_before_run(2) == 2);
    threads_run(2, wait_for_the_second, NULL);
    threads_end_turn();
    l2p_release(); /* which forgets it */
    threads_take_turn();
    threads_run(2, wait_for_the_second, NULL); /* a run that is not judged: no pause */
    CHECK(scheduling_before_run(2) == 2);
    threads_end_turn();
}

/* Not in sanitized builds, which other parts run beside: on busy cores the system moves threads at least as often. */
#if defined(__linux__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
typedef struct {
    cpu_set_t allowed, one;
    clockid_t worker; /* its CPU time */
    atomic_int waits;
    int moved, wrong;
} Meeting;

/* The second thread comes to the core of the first, waits there for it, and should then be on another. */
static void meet(void *context, int thread, int n_threads) {
    Meeting *m = context;
    if (thread == 0) {
        while (!atomic_load(&m->waits)) sched_yield();
        /* Until it has waited for so long, however busy the machine is */
        const int64_t before = microseconds_of(m->worker);
        while (microseconds_of(m->worker) < before + 600) sched_yield();
        threads_barrier(n_threads);
        return;
    }
    cpu_set_t left;
    m->wrong |= pthread_getcpuclockid(pthread_self(), &m->worker) != 0;
    m->wrong |= sched_setaffinity(0, sizeof m->one, &m->one) != 0;
    m->wrong |= sched_setaffinity(0, sizeof m->allowed, &m->allowed) != 0;
    atomic_store(&m->waits, 1);
    threads_barrier(n_threads);
    m->moved += !CPU_ISSET(sched_getcpu(), &m->one);
    m->wrong |= sched_getaffinity(0, sizeof left, &left) != 0 || !CPU_EQUAL(&left, &m->allowed);
}

static void check_cores(void) {
    now("two threads on one core");
    Meeting m = {0};
    if (sched_getaffinity(0, sizeof m.allowed, &m.allowed) != 0 || CPU_COUNT(&m.allowed) < 2) return;
    CPU_SET(sched_getcpu(), &m.one);
    threads_take_turn();
    threads_run(2, pool_work, &(PoolTest){0}); /* the second thread is there, and may go wherever this one may now */
    if (sched_setaffinity(0, sizeof m.one, &m.one) == 0) { /* else the system does not let us place threads */
        for (int i = 0; i < 8; i++) {
            atomic_store(&m.waits, 0);
            threads_run(2, meet, &m);
        }
        CHECK(m.moved >= 4 && !m.wrong); /* the system may move them, too */
        CHECK(sched_setaffinity(0, sizeof m.allowed, &m.allowed) == 0);
    }
    threads_end_turn();
}
#else
static void check_cores(void) {}
#endif

/* What LLAMA2PY_SCHEDULING=off leaves to the caller. The engine reads it once, so this is for a process that has it. */
static void check_off(void) {
    now("LLAMA2PY_SCHEDULING=off");
    const Synthetic s = synthesize(SHAPES[1]);
    l2p_model *small = pack(&s, best_isa(), 1);
    CHECK(scheduling_threads(small, 1, 2) == 2 && scheduling_threads(small, 1, 1) == 1);
    CHECK(scheduling_threads(small, 1, 0) == 1 && scheduling_threads(small, 1, INT32_MAX) == MAX_THREADS);
    threads_take_turn();
    for (int i = 0; i < 3; i++) {
        CHECK(scheduling_before_run(2) == 2); /* a run that was all waiting makes no pause */
        threads_run(2, wait_for_the_second, NULL);
    }
    CHECK(scheduling_before_run(2) == 2);
    threads_end_turn();
    l2p_model_free(small);
    free_synthetic(s);
}

#if defined(__linux__)
void check_unscheduled(void) {
    const char *value = getenv("LLAMA2PY_SCHEDULING");
    if (value && strcmp(value, "off") == 0) {
        check_off();
        return;
    }
    now("the small model's threads"); /* with scheduling, so that what is switched off can be seen */
    const Synthetic s = synthesize(SHAPES[1]);
    l2p_model *small = pack(&s, best_isa(), 1);
    CHECK(scheduling_threads(small, 1, 2) == 1);
    l2p_model_free(small);
    free_synthetic(s);
    now("a process without scheduling");
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        setenv("LLAMA2PY_SCHEDULING", "off", 1);
        execl("/proc/self/exe", "kernel_check", "unscheduled", (char *)NULL);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child) fail("no child process for the check");
    if (status) fail("see above");
    printf("unscheduled\n");
}
#else
void check_unscheduled(void) {}
#endif

void check_threads(void) {
    check_pool();
    check_pauses();
    check_cores();
    check_cancel();
    check_callers();
    check_big(best_isa(), 0);
    check_big(best_isa(), 8);
    draw_big();
    printf("threads\n");
}
