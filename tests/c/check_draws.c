/* `draws`: l2p_forward draws what l2p_argmax or l2p_sample draws from the logits that l2p_forward returns, one token a
 * row or many, and the sessions are the same afterwards. Here: any batch; texts drawn ahead, of one session and of
 * many; a workspace that grows; cancelling; several callers. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "feeding.h"
#include "parts.h"

static int drawn_in_all, repeated; /* how many draws there were, and gave the token of the draw before */

/* One of many ways to draw: 5 temperatures, 3 cuts and 4 numbers of tokens, in all combinations after 60 draws */
static l2p_draw some_draw(int i, int vocab) {
    static const float temperatures[] = {1.0f, 0.0f, 1.7f, 0.6f, 3.0f}, cuts[] = {0.9f, 1.0f, 0.5f};
    const int counts[] = {vocab, vocab - vocab / 3, vocab, 1 + vocab / 16};
    const float coin = i % 11 == 3 ? 0.0f : (float)(i % 11 == 7 ? 0xffffff : random_u32() >> 8) * 0x1p-24f;
    return (l2p_draw){
        .temperature = temperatures[i % 5], .top_p = cuts[i % 3], .coin = coin, .n_tokens = counts[i % 4]};
}

/* ---- one token a row, of any batch ---- */

/* Run a batch with draws from every `step`th of its tokens from the last one down to `first`, the last one once more at
 * the end; without draws if `first` is past the batch. */
static void feed_draws(Run *run, const Batch *batch, int first, int step, const char *how) {
    const int vocab = run->s->config.vocab_size, n = batch->n;
    int32_t rows[TOKENS + 1], ones[TOKENS + 1], n_drawn[TOKENS + 1];
    Inputs in = inputs_of(run, batch);
    int n_rows = 0;
    for (int row = n - 1; row >= first; row -= step) rows[n_rows++] = row;
    if (n_rows) rows[n_rows++] = n - 1;
    const size_t count = (size_t)n_rows;
    Guarded draws = guarded(count * sizeof(l2p_draw)), drawn = guarded(count * sizeof(int32_t));
    l2p_draw *const ways = (l2p_draw *)(void *)draws.array, before[TOKENS + 1];
    int32_t *const got = (int32_t *)(void *)drawn.array;
    for (int i = 0; i < n_rows; i++) {
        before[i] = ways[i] = some_draw(drawn_in_all + i, vocab);
        ones[i] = 1;
        n_drawn[i] = -7;
    }
    l2p_batch asked = batch_of(&in, n, n_rows, n_rows ? rows : NULL);
    asked.n_draws = n_rows ? ones : NULL;
    asked.draws = n_rows ? ways : NULL;
    asked.drawn = n_rows ? got : NULL;
    asked.n_drawn = n_rows ? n_drawn : NULL;
    CHECK(l2p_forward(run->model, &asked, run->n_threads, NULL) == L2P_OK);
    CHECK(memcmp(ways, before, count * sizeof(l2p_draw)) == 0);
    for (int i = 0; i < n_rows; i++) {
        const int session = batch->session[rows[i]], position = batch->position[rows[i]];
        const float *logits = run->want[session] + (size_t)position * (size_t)vocab;
        const int32_t want = draw_apart(run, logits, &ways[i]);
        if (got[i] != want)
            fail(
                "%s, %d threads: draw %d from token %d of a batch of %d is %d, not %d (temperature %g, top-p %g, coin "
                "%.9g, of %d tokens)",
                how, run->n_threads, i, rows[i], n, got[i], want, (double)ways[i].temperature, (double)ways[i].top_p,
                (double)ways[i].coin, ways[i].n_tokens);
        CHECK(n_drawn[i] == 1);
        repeated += i > 0 && got[i] == got[i - 1];
    }
    drawn_in_all += n_rows;
    unguard(draws), unguard(drawn);
}

/* Some positions once more for their logits, with what stands before them in the sessions */
static void look_back(Run *run, const char *how) {
    for (int i = 0; i < N_SESSIONS; i++)
        for (int t = LENGTHS[i] - 1; t >= 0; t -= 7) {
            Batch one = {0};
            add(&one, i, t, t + 1);
            feed(run, &one, 0, how);
        }
}

static void draw_from_prompts(Run *run) {
    fresh_sessions(run);
    Batch all = {0};
    for (int i = 0; i < N_SESSIONS; i++) add(&all, i, 0, LENGTHS[i]);
    feed_draws(run, &all, 0, 1, "draws from all of three prompts");
    look_back(run, "after draws from all of three prompts");
    fresh_sessions(run);
    feed_draws(run, &all, all.n / 3, 3, "draws from some of three prompts");
    look_back(run, "after draws from some of three prompts");
    fresh_sessions(run);
    feed_draws(run, &all, all.n, 1, "three prompts without draws");
    look_back(run, "after three prompts without draws");
}

static void draw_from_pieces(Run *run) {
    fresh_sessions(run);
    static const int cuts[] = {0, 5, 6, 16, 33, 37};
    for (int cut = 0; cut < 5; cut++) {
        Batch piece = {0};
        add(&piece, 0, cuts[cut], cuts[cut + 1]);
        feed_draws(run, &piece, cut == 2 ? piece.n : piece.n - 1, 1,
                   "a prompt in pieces"); /* the third without draws */
    }
    Batch again = {0};
    add(&again, 0, 3, 4), add(&again, 0, 20, 22), add(&again, 0, 36, 37);
    feed_draws(run, &again, 0, 1, "positions with gaps");
    feed(run, &again, 0, "logits after draws");
}

/* Prompts beside single tokens, then a token of each, in turns with calls that return logits */
static void draw_from_mixed(Run *run) {
    fresh_sessions(run);
    Batch first = {0}, second = {0};
    add(&first, 0, 0, 13), add(&first, 1, 0, 3);
    add(&second, 0, 13, 14), add(&second, 2, 0, 10), add(&second, 1, 3, 4);
    feed_draws(run, &first, 12, 3, "a mixed batch");
    feed_draws(run, &second, 0, 4, "a mixed batch");
    int at[N_SESSIONS] = {14, 4, 10};
    for (int turn = 0;; turn++) {
        Batch step = {0};
        for (int i = N_SESSIONS - 1; i >= 0; i--)
            if (at[i] < LENGTHS[i]) add(&step, i, at[i], at[i] + 1), at[i]++;
        if (!step.n) return;
        if (turn % 3 == 2)
            feed(run, &step, 0, "logits between draws");
        else
            feed_draws(run, &step, 0, 1, "one token of each session");
    }
}

/* ---- many tokens a row ---- */

/* A text of n tokens that continues with `token` at position `from`: each call returns logits to draw one token */
static void tell_apart(const Run *run, l2p_session *session, int32_t token, int from, int n, const l2p_draw *draws,
                       int32_t *told) {
    Run one_thread = *run;
    one_thread.n_threads = 1;
    float *logits = malloc((size_t)run->s->config.vocab_size * sizeof *logits);
    if (!logits) fail("no memory for a text");
    for (int i = 0; i < n; i++) {
        CHECK(forward_one(&one_thread, session, token, from + i, logits) == L2P_OK);
        token = told[i] = draw_apart(run, logits, &draws[i]);
    }
    free(logits);
}

/* The same text, n tokens or fewer in one call. Returns how many; below 0: an error code times -1 */
static int tell_ahead(const Run *run, l2p_session *session, int32_t token, int from, int n, const l2p_draw *draws,
                      int n_stop_tokens, const int32_t *stop_tokens, int32_t *told, const int32_t *cancel) {
    const int32_t row = 0, position = from, n_draws = n;
    int32_t n_drawn = -7;
    const l2p_batch text = {.n_tokens = 1,
                            .tokens = &token,
                            .sessions = &session,
                            .positions = &position,
                            .n_rows = 1,
                            .rows = &row,
                            .n_draws = &n_draws,
                            .draws = draws,
                            .n_stop_tokens = n_stop_tokens,
                            .stop_tokens = stop_tokens,
                            .drawn = told,
                            .n_drawn = &n_drawn};
    const int error = l2p_forward(run->model, &text, run->n_threads, cancel);
    if (error == L2P_CANCELLED) CHECK(n_drawn >= 0 && n_drawn < n);
    return error ? -error : n_drawn;
}

static l2p_session *copy_of(const Run *run, const l2p_session *session, int n) {
    l2p_session *made = l2p_session_new(run->model);
    CHECK(made != NULL);
    l2p_session_copy(made, session, n);
    return made;
}

enum { TEXT = 12, FROM = 5 };

/* A text some tokens in a call; a call that ends early ends with the first token that is a stop token. */
static void draw_ahead(Run *run) {
    const int vocab = run->s->config.vocab_size;
    const int32_t given = run->s->tokens[0][FROM];
    for (int first = 0; first < 2 * TEXT; first += TEXT) {
        l2p_draw draws[TEXT];
        int32_t told[TEXT], got[TEXT + 1];
        for (int i = 0; i < TEXT; i++) draws[i] = some_draw(first + i, vocab);
        fresh_sessions(run);
        Batch prompt = {0};
        add(&prompt, 0, 0, FROM);
        feed(run, &prompt, FROM, "what a text begins with");
        tell_apart(run, run->sessions[0], given, FROM, TEXT, draws, told);
        static const int cuts[][5] = {{TEXT}, {1, 1, 3, 6, 1}, {7, 5}};
        for (int way = 0; way < 3; way++) {
            int done = 0;
            for (int i = 0; done < TEXT; done += cuts[way][i++]) {
                const int some = cuts[way][i];
                got[some] = -7;
                CHECK(tell_ahead(run, run->sessions[0], done ? told[done - 1] : given, FROM + done, some, draws + done,
                                 0, NULL, got, NULL) == some);
                CHECK(memcmp(got, told + done, (size_t)some * sizeof(int32_t)) == 0 && got[some] == -7);
            }
        }
        for (int last = 0; last < TEXT; last += 5) {
            const int32_t stop_tokens[] = {vocab, told[last]};
            int n = 1;
            while (told[n - 1] != told[last]) n++;
            memset(got, -1, sizeof got);
            CHECK(tell_ahead(run, run->sessions[0], given, FROM, TEXT, draws, 2, stop_tokens, got, NULL) == n);
            CHECK(memcmp(got, told, (size_t)n * sizeof(int32_t)) == 0 && got[n] == -1);
            CHECK(tell_ahead(run, run->sessions[0], given, FROM, TEXT, draws, 1, stop_tokens, got, NULL) == TEXT);
        }
        Batch rest = {0};
        add(&rest, 0, FROM, LENGTHS[0]);
        feed(run, &rest, 0, "after a text that was taken back");
    }
}

/* Texts of all sessions in one call, right after their prompts, of different lengths, beside a prompt that only runs:
 * rows drop out at different draws, by their number and by a stop token. More rows than the few that are laid out in
 * another way: copies of the sessions go along. */
static void draw_ahead_together(Run *run, int copies) {
    enum { MOST_ROWS = 12 };
    const int vocab = run->s->config.vocab_size, n_texts = 2 * copies;
    static const int begins[] = {3, 8}; /* positions of the two sessions' last given tokens */
    fresh_sessions(run);
    for (int given = 1; given <= 4; given += 3) { /* tokens that each text gives to the batch */
        Inputs in = {0};
        l2p_session *sessions[MOST_ROWS], *alone[MOST_ROWS];
        int32_t rows[MOST_ROWS], n_draws[MOST_ROWS], n_drawn[MOST_ROWS + 1];
        int32_t want[MOST_ROWS][TEXT] = {{0}}, stop_token = -1;
        l2p_draw draws[MOST_ROWS * TEXT];
        int n = 0, n_all = 0;
        for (int i = 0; i < n_texts; i++) {
            const int text = i % 2, begin = begins[text] - given + 1;
            Batch prompt = {0};
            add(&prompt, text, 0, begin);
            if (begin) feed(run, &prompt, begin, "what a text begins with");
            sessions[i] = copy_of(run, run->sessions[text], begin);
            for (int t = begin; t <= begins[text]; t++, n++) {
                in.tokens[n] = run->s->tokens[text][t];
                in.positions[n] = t;
                in.sessions[n] = sessions[i];
            }
            rows[n_texts - 1 - i] = n - 1; /* in another order than the batch */
            add(&prompt, text, begin, begins[text]);
            feed(run, &prompt, prompt.n, "what a text begins with");
            alone[i] = copy_of(run, run->sessions[text], begins[text]);
        }
        for (int t = 0; t < 3; t++, n++) { /* a prompt without a row */
            in.tokens[n] = run->s->tokens[2][t];
            in.positions[n] = t;
            in.sessions[n] = run->sessions[2];
        }
        for (int row = 0; row < n_texts; row++) {
            const int i = n_texts - 1 - row, text = i % 2;
            n_draws[row] = row == 1 ? 1 : TEXT - 2 * (row % 4);
            for (int k = 0; k < n_draws[row]; k++) draws[n_all + k] = some_draw(7 * row + k, vocab);
            tell_apart(run, alone[i], run->s->tokens[text][begins[text]], begins[text], n_draws[row], draws + n_all,
                       want[row]);
            n_all += n_draws[row];
        }
        stop_token = want[0][TEXT / 2];
        Guarded drawn = guarded((size_t)n_all * sizeof(int32_t));
        int32_t *const got = (int32_t *)(void *)drawn.array;
        for (int i = 0; i < n_all; i++) got[i] = -7;
        n_drawn[n_texts] = -7;
        l2p_batch batch = batch_of(&in, n, n_texts, rows);
        batch.n_draws = n_draws, batch.draws = draws, batch.drawn = got, batch.n_drawn = n_drawn;
        batch.n_stop_tokens = 1, batch.stop_tokens = &stop_token;
        l2p_release(); /* a fresh workspace: this call alone makes its room */
        CHECK(l2p_forward(run->model, &batch, run->n_threads, NULL) == L2P_OK);
        CHECK(n_drawn[n_texts] == -7);
        for (int row = 0, at = 0; row < n_texts; at += n_draws[row++]) {
            int until = 1;
            while (until < n_draws[row] && want[row][until - 1] != stop_token) until++;
            if (n_drawn[row] != until) fail("row %d of %d draws %d, not %d", row, n_texts, n_drawn[row], until);
            if (memcmp(got + at, want[row], (size_t)until * sizeof *got) != 0)
                fail("row %d of %d draws another text than alone, %d threads", row, n_texts, run->n_threads);
            for (int k = until; k < n_draws[row]; k++) CHECK(got[at + k] == -7);
        }
        /* The sessions hold what they would hold alone: the texts go on alike. */
        for (int row = 0; row < n_texts; row++) {
            const int i = n_texts - 1 - row, at = begins[i % 2] + n_drawn[row];
            const l2p_draw next[] = {some_draw(row, vocab), some_draw(row + 1, vocab)};
            const int32_t last = want[row][n_drawn[row] - 1];
            int32_t one[2], other[2];
            tell_apart(run, sessions[i], last, at, 2, next, one);
            tell_apart(run, alone[i], last, at, 2, next, other);
            CHECK(memcmp(one, other, sizeof one) == 0);
        }
        unguard(drawn);
        for (int i = 0; i < n_texts; i++) l2p_session_free(sessions[i]), l2p_session_free(alone[i]);
        Batch rest = {0};
        add(&rest, 2, 3, LENGTHS[2]);
        feed(run, &rest, 0, "after a prompt beside texts");
    }
}

static void draw_any_way(Run *run, int most_threads) {
    for (run->n_threads = 1; run->n_threads <= most_threads; run->n_threads++) {
        l2p_release(); /* forgets that an earlier run may have had no use for a second thread */
        draw_from_prompts(run);
        draw_from_pieces(run);
        draw_from_mixed(run);
        if (run->n_threads > 2) continue; /* more of them share two cores in the checks, which takes long */
        draw_ahead(run);
        draw_ahead_together(run, 1);
        draw_ahead_together(run, 5);
    }
}

static void check_one(l2p_config config, int isa, int most_threads) {
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, isa, 1);
    drawn_in_all = repeated = 0;
    draw_any_way(&run, most_threads);
    CHECK(drawn_in_all > 100 && (config.vocab_size < 10 || repeated < drawn_in_all / 3)); /* or rows look alike */
    end_run(&run);
    free_synthetic(s);
}

/* The threads share even a step of one token of it. */
void draw_big(void) {
    check_one(with_weights(BIG, 0), best_isa(), 4);
    check_one(with_weights(BIG, 8), best_isa(), 3);
}

/* ---- a workspace that has never been as big ---- */

enum { MOST = TOKENS };

/* A way to draw token i of a text: hot, so that texts differ, but for some draws of the best */
static l2p_draw hot_draw(int i, int vocab) {
    const float coin = (float)((unsigned)(i + 1) * 2654435761u >> 8) * 0x1p-24f;
    return (l2p_draw){
        .temperature = i % 7 == 5 ? 0.0f : 1.5f, .top_p = i % 2 ? 0.9f : 1.0f, .coin = coin, .n_tokens = vocab};
}

/* From each position to the context's end, in one call: the first one of a fresh workspace, so that nothing but this
 * call has made room for its rows of scores. */
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
            const int32_t given = s.tokens[0][from];
            for (int i = 0; i < n; i++) draws[i] = hot_draw(i + from, config.vocab_size);
            l2p_session *one = copy_of(&run, run.sessions[0], from), *other = copy_of(&run, run.sessions[0], from);
            l2p_release();
            got[n] = -7;
            CHECK(tell_ahead(&run, one, given, from, n, draws, 0, NULL, got, NULL) == n && got[n] == -7);
            tell_apart(&run, other, given, from, n, draws, want);
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

/* Cancel a text of three tokens at each of its norms, with one thread and with two. The call ends there. The tokens
 * that it has drawn stay, and so do the earlier positions of the session: its next call is as if nothing had happened.
 */
static void check_cancel(void) {
    enum { DRAWS = 3, BEGIN = 14 };
    const Synthetic s = synthesize(BIG);
    Run run = start_run(&s, best_isa(), 1);
    feed_prompts(&run);
    const int pass = 2 * BIG.n_layers + 1; /* norms of a token */
    const int32_t given = s.tokens[0][BEGIN];
    l2p_draw draws[DRAWS];
    int32_t want[DRAWS];
    for (int i = 0; i < DRAWS; i++) draws[i] = hot_draw(i, BIG.vocab_size);
    l2p_session *one = copy_of(&run, run.sessions[0], BEGIN), *other = copy_of(&run, run.sessions[0], BEGIN);
    tell_apart(&run, other, given, BEGIN, DRAWS, draws, want);
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
            cancel_at = at * run.n_threads; /* each thread computes every norm; the last one may be a little late */
            const int drawn = tell_ahead(&run, one, given, BEGIN, DRAWS, draws, 0, NULL, got, &cancel_flag);
            run.model->floats = counted_kernels;
            if (run.n_threads == 1) {
                /* read where the next layer begins, of this token or the next */
                const int in_pass = at ? (at - 1) % pass : 0, layer = (in_pass + 1) / 2;
                int token = at ? (at - 1) / pass : 0, looked_at = at && in_pass % 2 == 0 ? layer + 1 : layer;
                if (looked_at >= BIG.n_layers) token++, looked_at = 0;
                const int cancelled = token < DRAWS;
                CHECK(drawn == (cancelled ? -L2P_CANCELLED : DRAWS));
                CHECK(norms == (cancelled ? token * pass + 2 * looked_at + 1 : DRAWS * pass));
                for (int i = 0; i < DRAWS; i++) CHECK(got[i] == (i < token ? want[i] : -7));
            } else {
                /* after a pass that one thread would have run faster, the next ones have one: fewer norms in all */
                const int late = at > DRAWS * pass - 4 || norms < 2 * DRAWS * pass;
                CHECK(drawn == -L2P_CANCELLED || (drawn == DRAWS && late));
                for (int i = 0; i < DRAWS; i++) CHECK(got[i] == want[i] || (got[i] == -7 && drawn < 0));
            }
            cancel_at = cancel_flag = 0;
            CHECK(tell_ahead(&run, one, given, BEGIN, DRAWS, draws, 0, NULL, got, &cancel_flag) == DRAWS);
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
    for (int i = 0; i < BIG.seq_len; i++) draws[i] = hot_draw(i, BIG.vocab_size);
    for (int times = 0; times < 3; times++) {
        int32_t flag = 0;
        pthread_t thread;
        if (pthread_create(&thread, NULL, cancel_soon, &flag)) fail("no thread for the check");
        int drawn = 0;
        for (int calls = 0; drawn >= 0 && calls < 100000; calls++)
            drawn = tell_ahead(&run, run.sessions[0], s.tokens[0][0], 0, BIG.seq_len, draws, 0, NULL, got, &flag);
        CHECK(drawn == -L2P_CANCELLED);
        pthread_join(thread, NULL);
    }
    end_run(&run);
    free_synthetic(s);
}

/* ---- several callers ---- */

enum { CALLERS = 4, TEXTS = 6, CALLERS_TEXT = 13 };

typedef struct {
    const Run *run; /* whose first session has run the beginning; it does not change */
    const l2p_draw *draws;
    const int32_t *want; /* (TEXTS, CALLERS_TEXT), text i from position i on */
    int number;
    atomic_int *ended;
} Caller;

static void *caller_main(void *argument) {
    const Caller *caller = argument;
    for (int i = 0; i < TEXTS; i++) {
        const int text = (i + caller->number) % TEXTS, stop_at = (i + 5 * caller->number) % CALLERS_TEXT;
        Run run = *caller->run;
        run.n_threads = 1 + (i + caller->number) % 3;
        const int32_t *want = caller->want + text * CALLERS_TEXT;
        l2p_session *session = copy_of(&run, run.sessions[0], text);
        int32_t got[CALLERS_TEXT];
        int until = 0;
        while (want[until] != want[stop_at]) until++;
        const int done = until + 1;
        CHECK(tell_ahead(&run, session, run.s->tokens[0][text], text, CALLERS_TEXT, caller->draws, 1, &want[stop_at],
                         got, NULL) == done);
        CHECK(memcmp(got, want, (size_t)done * sizeof *got) == 0);
        if (done < CALLERS_TEXT) /* it continues */
            CHECK(tell_ahead(&run, session, got[until], text + done, CALLERS_TEXT - done, caller->draws + done, 0, NULL,
                             got + done, NULL) == CALLERS_TEXT - done);
        if (memcmp(got, want, sizeof got) != 0) fail("caller %d gets another text %d", caller->number, text);
        l2p_session_free(session);
    }
    atomic_fetch_add(caller->ended, 1);
    return NULL;
}

/* On one model, while another thread keeps taking pool and workspace away: a caller keeps the turn for its whole
 * text */
static void check_callers(l2p_config config) {
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, best_isa(), 2);
    now("several callers' texts at once, dim %d", config.dim);
    feed_prompts(&run);
    l2p_draw draws[CALLERS_TEXT];
    int32_t want[TEXTS * CALLERS_TEXT];
    for (int i = 0; i < CALLERS_TEXT; i++) draws[i] = hot_draw(i, config.vocab_size);
    for (int text = 0; text < TEXTS; text++) {
        l2p_session *session = copy_of(&run, run.sessions[0], text);
        tell_apart(&run, session, s.tokens[0][text], text, CALLERS_TEXT, draws, want + text * CALLERS_TEXT);
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

void check_draws(void) {
    for (int isa = 0; l2p_isa_name(isa); isa++)
        for (int group = 0; group <= 4 && draws_in(isa); group += 4)
            for (int shape = 0; shape < 4; shape++) {
                l2p_config config = with_weights(SHAPES[shape], group);
                config.cache_type = shape % 2 ? L2P_BFLOAT16 : L2P_FLOAT32;
                check_one(config, isa, 2);
            }
    printf("draws\n");
}

void check_texts(void) {
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
    printf("texts\n");
}
