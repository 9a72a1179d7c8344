/* `generate`: l2p_generate cancelled at any place, by several callers at once, and as rows of scores grow within a call. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "feeding.h"
#include "parts.h"

enum { MOST = TOKENS };

/* A way to draw token i of a text: hot, so that texts differ, but for some draws of the best */
static l2p_draw way(int i, int vocab) {
    const float coin = (float)((unsigned)(i + 1) * 2654435761u >> 8) * 0x1p-24f;
    return (l2p_draw){.temperature = i % 7 == 5 ? 0.0f : 1.5f, .top_p = i % 2 ? 0.9f : 1.0f, .coin = coin, .n = vocab};
}

/* A text of n tokens from position `from` on behind the given ones, by l2p_forward and draws of the logits */
static void tell_apart(const Run *run, l2p_session *session, int from, int n, const l2p_draw *draws, int32_t *told) {
    const int vocab = run->s->config.vocab_size;
    float *logits = malloc((size_t)vocab * sizeof *logits);
    int32_t token = run->s->tokens[0][from];
    const int32_t row = 0;
    if (!logits) fail("no memory for a text");
    for (int32_t i = 0, at = from; i < n; i++, at++) {
        CHECK(l2p_forward(run->model, 1, &token, &session, &at, 1, &row, logits, 1, NULL) == L2P_OK);
        token = told[i] = draw_apart(run, logits, &draws[i]);
    }
    free(logits);
}

static int generate(const Run *run, l2p_session *session, int from, int n, const l2p_draw *draws, int32_t *drawn,
                    const int32_t *cancel) {
    return l2p_generate(run->model, session, run->s->tokens[0][from], from, n, draws, 0, NULL, drawn, run->n_threads,
                        cancel);
}

static l2p_session *behind(const Run *run, int from) { /* of the first session's first tokens */
    l2p_session *session = l2p_session_new(run->model);
    CHECK(session != NULL);
    l2p_session_copy(session, run->sessions[0], from);
    return session;
}

/* ---- a workspace that has never been as big ---- */

/* From each position to the context's end, in one call: the first one of a fresh workspace, so that nothing but this call
 * has made room for its rows of scores. */
static void check_growing(l2p_config config, int isa, int most_threads) {
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, isa, 1);
    now("a text to the end of the context, %s, %d heads", l2p_isa_name(isa), config.n_heads);
    feed_prompts(&run);
    const int most = config.seq_len < MOST ? config.seq_len : MOST;
    for (int from = 0; from < LENGTHS[0] && from < most; from += from < 2 && most_threads == 1 ? 1 : 7 * most_threads)
        for (run.n_threads = 1; run.n_threads <= most_threads; run.n_threads++) {
            l2p_draw draws[MOST];
            int32_t want[MOST], got[MOST + 1];
            const int n = most - from;
            for (int i = 0; i < n; i++) draws[i] = way(i + from, config.vocab_size);
            l2p_session *one = behind(&run, from), *other = behind(&run, from);
            l2p_release();
            got[n] = -7;
            CHECK(generate(&run, one, from, n, draws, got, NULL) == n && got[n] == -7);
            tell_apart(&run, other, from, n, draws, want);
            for (int i = 0; i < n; i++)
                if (got[i] != want[i]) fail("from position %d: token %d is %d, not %d", from, i, got[i], want[i]);
            l2p_session_free(one), l2p_session_free(other);
        }
    end_run(&run);
    free_synthetic(s);
}

/* ---- cancelling ---- */

/* Kernels with an rmsnorm that counts, and cancels at one of its calls */
static const FloatKernels *counted_kernels;
static atomic_int norms, cancel_at;
static int32_t cancel_flag;

static void counting_rmsnorm(float *out, const float *const *x, int rows, const float *weight, int n, float eps) {
    if (atomic_fetch_add(&norms, 1) + 1 == cancel_at) __atomic_store_n(&cancel_flag, 1, __ATOMIC_RELAXED);
    counted_kernels->rmsnorm(out, x, rows, weight, n, eps);
}

/* At each norm of a text of three tokens, with one thread or two: it ends there; what it has drawn stays, what stood before it
 * in the session, too; and the session goes on as if nothing had been. */
static void check_cancel(void) {
    enum { DRAWS = 3, FROM = 14 };
    const Synthetic s = synthesize(BIG);
    Run run = start_run(&s, best_isa(), 1);
    feed_prompts(&run);
    const int pass = 2 * BIG.n_layers + 1; /* norms of a token */
    l2p_draw draws[DRAWS];
    int32_t want[DRAWS];
    for (int i = 0; i < DRAWS; i++) draws[i] = way(i, BIG.vocab_size);
    l2p_session *one = behind(&run, FROM), *other = behind(&run, FROM);
    tell_apart(&run, other, FROM, DRAWS, draws, want);
    FloatKernels counting = *run.model->floats;
    counted_kernels = run.model->floats;
    counting.rmsnorm = counting_rmsnorm;
    for (run.n_threads = 1; run.n_threads <= 2; run.n_threads++)
        for (int at = 0; at <= DRAWS * pass + 1; at++) {
            now("a text cancelled at norm %d, %d threads", at, run.n_threads);
            l2p_release(); /* forgets that an earlier run may have had no use for a second thread */
            run.model->floats = &counting;
            int32_t got[DRAWS] = {-7, -7, -7};
            norms = 0;
            cancel_flag = at == 0;
            cancel_at = at * run.n_threads; /* each thread norms for itself; the last of them may be a little behind */
            const int drawn = generate(&run, one, FROM, DRAWS, draws, got, &cancel_flag);
            run.model->floats = counted_kernels;
            if (run.n_threads == 1) {
                /* looked at where the next layer begins, of this token or the next */
                const int in_pass = at ? (at - 1) % pass : 0, layer = (in_pass + 1) / 2;
                int token = at ? (at - 1) / pass : 0, looked_at = at && in_pass % 2 == 0 ? layer + 1 : layer;
                if (looked_at >= BIG.n_layers) token++, looked_at = 0;
                const int cancelled = token < DRAWS;
                CHECK(drawn == (cancelled ? -L2P_CANCELLED : DRAWS));
                CHECK(norms == (cancelled ? token * pass + 2 * looked_at + 1 : DRAWS * pass));
                for (int i = 0; i < DRAWS; i++) CHECK(got[i] == (i < token ? want[i] : -7));
            } else {
                CHECK(drawn == -L2P_CANCELLED || (drawn == DRAWS && at > DRAWS * pass - 4));
                for (int i = 0; i < DRAWS; i++) CHECK(got[i] == want[i] || (got[i] == -7 && drawn < 0));
            }
            cancel_at = cancel_flag = 0;
            CHECK(generate(&run, one, FROM, DRAWS, draws, got, &cancel_flag) == DRAWS);
            CHECK(memcmp(got, want, sizeof got) == 0);
        }
    l2p_session_free(one), l2p_session_free(other);
    end_run(&run);
    free_synthetic(s);
}

/* By a thread that knows nothing of where it is, as a session is closed */
static void check_cancel_by_another(void) {
    const Synthetic s = synthesize(BIG);
    Run run = start_run(&s, best_isa(), 1);
    now("a text cancelled by another thread");
    run.n_threads = 2;
    l2p_draw draws[MOST];
    int32_t got[MOST];
    for (int i = 0; i < BIG.seq_len; i++) draws[i] = way(i, BIG.vocab_size);
    for (int times = 0; times < 3; times++) {
        int32_t flag = 0;
        pthread_t thread;
        if (pthread_create(&thread, NULL, cancel_soon, &flag)) fail("no thread for the check");
        int drawn = 0;
        for (int calls = 0; drawn >= 0 && calls < 100000; calls++)
            drawn = generate(&run, run.sessions[0], 0, BIG.seq_len, draws, got, &flag);
        CHECK(drawn == -L2P_CANCELLED);
        pthread_join(thread, NULL);
    }
    end_run(&run);
    free_synthetic(s);
}

/* ---- several callers ---- */

enum { CALLERS = 4, TEXTS = 6, TEXT = 13 };

typedef struct {
    const Run *run; /* whose first session has run the beginning; nobody changes it */
    const l2p_draw *draws;
    const int32_t *want; /* (TEXTS, TEXT), text i from position i on */
    int number;
    atomic_int *ended;
} Caller;

static void *caller_main(void *argument) {
    const Caller *caller = argument;
    for (int i = 0; i < TEXTS; i++) {
        const int text = (i + caller->number) % TEXTS, ends_at = (i + 5 * caller->number) % TEXT;
        Run run = *caller->run;
        run.n_threads = 1 + (i + caller->number) % 3;
        const int32_t *want = caller->want + text * TEXT;
        l2p_session *session = behind(&run, text);
        int32_t got[TEXT];
        int until = 0;
        while (want[until] != want[ends_at]) until++;
        CHECK(l2p_generate(run.model, session, run.s->tokens[0][text], text, TEXT, caller->draws, 1, &want[ends_at], got,
                           run.n_threads, NULL) == until + 1);
        CHECK(memcmp(got, want, (size_t)(until + 1) * sizeof *got) == 0);
        if (until + 1 < TEXT) /* it goes on */
            CHECK(l2p_generate(run.model, session, got[until], text + until + 1, TEXT - until - 1,
                               caller->draws + until + 1, 0, NULL, got + until + 1, run.n_threads,
                               NULL) == TEXT - until - 1);
        if (memcmp(got, want, sizeof got) != 0) fail("caller %d gets another text %d", caller->number, text);
        l2p_session_free(session);
    }
    atomic_fetch_add(caller->ended, 1);
    return NULL;
}

/* On one model, while another thread keeps taking pool and workspace away: whoever has the turn keeps it for his text */
static void check_callers(l2p_config config) {
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, best_isa(), 2);
    now("several callers' texts at once, dim %d", config.dim);
    feed_prompts(&run);
    l2p_draw draws[TEXT];
    int32_t want[TEXTS * TEXT];
    for (int i = 0; i < TEXT; i++) draws[i] = way(i, config.vocab_size);
    for (int text = 0; text < TEXTS; text++) {
        l2p_session *session = behind(&run, text);
        tell_apart(&run, session, text, TEXT, draws, want + text * TEXT);
        l2p_session_free(session);
    }
    Caller callers[CALLERS];
    pthread_t threads[CALLERS];
    atomic_int ended = 0;
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (Caller){&run, draws, want, i, &ended};
        if (pthread_create(&threads[i], NULL, caller_main, &callers[i])) fail("no thread for the check");
    }
    while (ended < CALLERS) l2p_release(), pause_us(2000);
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    end_run(&run);
    free_synthetic(s);
}

void check_generate(void) {
    for (int isa = 0; l2p_isa_name(isa); isa++)
        for (int shape = 1; shape < N_SHAPES && draws_in(isa); shape++) {
            l2p_config config = with_weights(SHAPES[shape], shape % 2 ? 0 : 4);
            config.cache_type = shape / 2 % 2 ? L2P_BFLOAT16 : L2P_FLOAT32;
            check_growing(config, isa, 1);
        }
    check_growing(with_weights(BIG, 0), best_isa(), 2); /* a token of it is worth a second thread */
    check_cancel();
    check_cancel_by_another();
    check_callers(with_weights(BIG, 0));
    check_callers(with_weights(SHAPES[3], 4));
    printf("generate\n");
}
