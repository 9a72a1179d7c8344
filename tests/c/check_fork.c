/* `fork`: a child of fork() can compute, whatever the other threads of its parent were doing. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "feeding.h"
#include "parts.h"

static atomic_int calls_beside;

static void *call_forever(void *argument) {
    Run *run = argument;
    for (;;) { /* ends with the process */
        Batch batch = {0};
        add(&batch, 0, 0, LENGTHS[0]);
        feed(run, &batch, LENGTHS[0], "beside forks"); /* no logits: most of the time is the engine's */
        atomic_fetch_add(&calls_beside, 1);
        pause_us(50); /* or fork() would hardly ever get its turn */
    }
    return NULL;
}

static int exit_code_of(pid_t child) { /* or minus the signal that ended it */
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child) fail("no child process for the check");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* fork() while another thread is in l2p_forward, with n_threads of its own */
static void fork_beside(int n_threads) {
    const Synthetic s = synthesize(with_weights(SHAPES[2], 0));
    int isa = 0;
    while (l2p_isa_name(isa + 1)) isa++; /* portable: the longest calls */
    Run run = start_run(&s, isa, 1);
    now("fork() beside l2p_forward with %d threads", n_threads);
    fresh_sessions(&run);
    Run beside = run, child_run = run;
    memset(child_run.sessions, 0, sizeof child_run.sessions);
    beside.n_threads = n_threads;
    pthread_t thread;
    if (pthread_create(&thread, NULL, call_forever, &beside)) fail("no thread for the check");
    while (!calls_beside) pause_us(1000); /* a thread that only starts may hold locks of the sanitizers */
    for (int i = 0; i < 20; i++) {
        for (uint32_t spin = random_u32() >> 14; spin; spin--) __asm__ __volatile__("");
        const pid_t child = fork();
        if (child == 0) {
            alarm(10); /* ends a child that waits forever */
            for (child_run.n_threads = 1; child_run.n_threads <= 3; child_run.n_threads++) feed_prompts(&child_run);
            l2p_release();
            _exit(0);
        }
        const int code = exit_code_of(child);
        if (code == -SIGALRM) fail("the child hangs");
        if (code) fail("the child ended with %d", code);
    }
}

/* Each in a process of its own, which has not used the engine before: a pool that was made earlier could hide
 * what goes wrong without one. */
void check_fork(void) {
    for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            fork_beside(n_threads);
            _exit(0);
        }
        now("fork() beside %d threads", n_threads);
        if (exit_code_of(child)) fail("see above");
    }
    printf("fork\n");
}
