/* Checks of the C engine without Python: a stand-alone program linked with the sources of csrc/. The parts:
 *
 *   fork         a child of fork() can compute, whatever the other threads of its parent were doing
 *   errors       wrong arguments come back as error codes, and leave everything usable
 *   kernels      each kernel alone against plain scalar loops, at sizes around the vector's width; packing int4
 *   models       l2p_forward against a naive transformer; the same bits for any batch, thread count and instruction set
 *   steps        the same, for models with optional steps
 *   draws        l2p_forward draws what l2p_argmax or l2p_sample draws from its logits, one token or many in a call, for
 *                one session or many at once, and the sessions are the same afterwards
 *   texts        many tokens in a call: with a workspace that grows, cancelled anywhere, by several callers
 *   threads      pool, turns, cancelling and l2p_release, several callers at once, a model whose steps threads share
 *   unscheduled  LLAMA2PY_SCHEDULING=off: threads as asked, in a process of its own
 *   stories      eight threads tell stories with one model, each the same as a thread alone
 *
 * `kernel_check [part...]` runs some parts, or all. `models` prints a line per instruction set and weight type, with a
 * hash of all logits, so that the outputs of two machines can be compared. The first failure ends the program with one
 * line and exit code 1. */
#define _GNU_SOURCE
#include <signal.h>

#include "check.h"
#include "parts.h"

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*check)(void);
    } parts[] = {{"fork", check_fork}, /* first: see there */
                 {"errors", check_errors},   {"kernels", check_kernels},
                 {"models", check_models},   {"steps", check_steps},
                 {"draws", check_draws},     {"texts", check_texts},
                 {"threads", check_threads}, {"unscheduled", check_unscheduled},
                 {"stories", check_stories}};
    enum { N_PARTS = sizeof parts / sizeof parts[0] };
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL};
    for (int i = 0; i < 3; i++) signal(signals[i], on_signal);

    for (int i = 1; i < argc; i++) {
        int known = 0;
        for (int p = 0; p < N_PARTS; p++) known |= strcmp(argv[i], parts[p].name) == 0;
        now("arguments");
        if (!known) fail("no part %s", argv[i]);
    }
    for (int p = 0; p < N_PARTS; p++) {
        int wanted = argc == 1;
        for (int i = 1; i < argc; i++) wanted |= strcmp(argv[i], parts[p].name) == 0;
        if (wanted) parts[p].check();
    }
    l2p_release();
    return 0;
}
