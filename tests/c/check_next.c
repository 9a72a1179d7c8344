/* `next`: l2p_next draws what l2p_forward and then l2p_argmax or l2p_sample draw, and leaves the same sessions behind;
 * l2p_generate draws what l2p_next draws token by token. */
#include "check.h"
#include "feeding.h"
#include "parts.h"

static int drawn_in_all, repeated; /* how many draws there were, and gave the token of the draw before */

/* One of many ways to draw: 5 temperatures, 3 cuts and 4 numbers of tokens, in all combinations after 60 draws */
static l2p_draw some_draw(int i, int vocab) {
    static const float temperatures[] = {1.0f, 0.0f, 1.7f, 0.6f, 3.0f}, cuts[] = {0.9f, 1.0f, 0.5f};
    const int ns[] = {vocab, vocab - vocab / 3, vocab, 1 + vocab / 16};
    const float coin = i % 11 == 3 ? 0.0f : (float)(i % 11 == 7 ? 0xffffff : random_u32() >> 8) * 0x1p-24f;
    return (l2p_draw){.temperature = temperatures[i % 5], .top_p = cuts[i % 3], .coin = coin, .n = ns[i % 4]};
}

/* Run a batch with draws from every `step`th of its tokens from the last one down to `first`, the last one once more at
 * the end; none, if `first` is behind the batch. */
static void feed_next(Run *run, const Batch *batch, int first, int step, const char *how) {
    const int vocab = run->s->config.vocab_size, n = batch->n;
    int32_t rows[TOKENS + 1];
    Inputs in = inputs_of(run, batch);
    int n_draws = 0;
    for (int row = n - 1; row >= first; row -= step) rows[n_draws++] = row;
    if (n_draws) rows[n_draws++] = n - 1;
    const size_t count = (size_t)n_draws;
    Guarded draws = guarded(count * sizeof(l2p_draw)), drawn = guarded(count * sizeof(int32_t));
    l2p_draw *const ways = (l2p_draw *)(void *)draws.array, before[TOKENS + 1];
    const int32_t *const got = (int32_t *)(void *)drawn.array;
    for (int i = 0; i < n_draws; i++) before[i] = ways[i] = some_draw(drawn_in_all + i, vocab);
    CHECK(l2p_next(run->model, n, in.tokens, in.sessions, in.positions, n_draws, n_draws ? rows : NULL, ways,
                   n_draws ? (int32_t *)(void *)drawn.array : NULL, run->n_threads, NULL) == L2P_OK);
    CHECK(memcmp(ways, before, count * sizeof(l2p_draw)) == 0);
    for (int i = 0; i < n_draws; i++) {
        const int session = batch->session[rows[i]], position = batch->position[rows[i]];
        const float *logits = run->want[session] + (size_t)position * (size_t)vocab;
        const int32_t want = draw_apart(run, logits, &ways[i]);
        if (got[i] != want)
            fail("%s, %d threads: draw %d from token %d of a batch of %d is %d, not %d (temperature %g, top-p %g, coin "
                 "%.9g, of %d tokens)",
                 how, run->n_threads, i, rows[i], n, got[i], want, (double)ways[i].temperature, (double)ways[i].top_p,
                 (double)ways[i].coin, ways[i].n);
        repeated += i > 0 && got[i] == got[i - 1];
    }
    drawn_in_all += n_draws;
    unguard(draws), unguard(drawn);
}

/* Some positions once more by l2p_forward, with what stands before them in the sessions */
static void look_back(Run *run, const char *how) {
    for (int i = 0; i < N_SESSIONS; i++)
        for (int t = LENGTHS[i] - 1; t >= 0; t -= 7) {
            Batch one = {0};
            add(&one, i, t, t + 1);
            feed(run, &one, 0, how);
        }
}

static void next_prompts(Run *run) {
    fresh_sessions(run);
    Batch all = {0};
    for (int i = 0; i < N_SESSIONS; i++) add(&all, i, 0, LENGTHS[i]);
    feed_next(run, &all, 0, 1, "draws from all of three prompts");
    look_back(run, "behind draws from all of three prompts");
    fresh_sessions(run);
    feed_next(run, &all, all.n / 3, 3, "draws from some of three prompts");
    look_back(run, "behind draws from some of three prompts");
    fresh_sessions(run);
    feed_next(run, &all, all.n, 1, "three prompts without draws");
    look_back(run, "behind three prompts without draws");
}

static void next_pieces(Run *run) {
    fresh_sessions(run);
    static const int cuts[] = {0, 5, 6, 16, 33, 37};
    for (int cut = 0; cut < 5; cut++) {
        Batch piece = {0};
        add(&piece, 0, cuts[cut], cuts[cut + 1]);
        feed_next(run, &piece, cut == 2 ? piece.n : piece.n - 1, 1, "a prompt in pieces"); /* the third without draws */
    }
    Batch again = {0};
    add(&again, 0, 3, 4), add(&again, 0, 20, 22), add(&again, 0, 36, 37);
    feed_next(run, &again, 0, 1, "positions with gaps");
    feed(run, &again, 0, "logits behind draws");
}

/* Prompts beside single tokens, then a token of each, in turns with calls that give logits */
static void next_mixed(Run *run) {
    fresh_sessions(run);
    Batch first = {0}, second = {0};
    add(&first, 0, 0, 13), add(&first, 1, 0, 3);
    add(&second, 0, 13, 14), add(&second, 2, 0, 10), add(&second, 1, 3, 4);
    feed_next(run, &first, 12, 3, "a mixed batch");
    feed_next(run, &second, 0, 4, "a mixed batch");
    int at[N_SESSIONS] = {14, 4, 10};
    for (int turn = 0;; turn++) {
        Batch step = {0};
        for (int i = N_SESSIONS - 1; i >= 0; i--)
            if (at[i] < LENGTHS[i]) add(&step, i, at[i], at[i] + 1), at[i]++;
        if (!step.n) return;
        if (turn % 3 == 2)
            feed(run, &step, 0, "logits between draws");
        else
            feed_next(run, &step, 0, 1, "one token of each session");
    }
}

enum { TEXT = 12, FROM = 5 };

/* A text of TEXT tokens behind FROM given ones, drawn by l2p_next */
static void tell(Run *run, const l2p_draw *draws, int32_t *told) {
    fresh_sessions(run);
    Batch prompt = {0};
    add(&prompt, 0, 0, FROM);
    feed(run, &prompt, FROM, "what a text begins with");
    int32_t token = run->s->tokens[0][FROM];
    const int32_t row = 0;
    for (int32_t i = 0, position = FROM; i < TEXT; i++, position++) {
        CHECK(l2p_next(run->model, 1, &token, &run->sessions[0], &position, 1, &row, &draws[i], &told[i],
                       run->n_threads, NULL) == L2P_OK);
        token = told[i];
    }
}

/* The same, some tokens in a call; a call that ends early ends behind the first token that is one of `ends`. */
static void next_texts(Run *run) {
    const int vocab = run->s->config.vocab_size;
    for (int first = 0; first < 2 * TEXT; first += TEXT) {
        l2p_draw draws[TEXT];
        int32_t told[TEXT], got[TEXT + 1];
        for (int i = 0; i < TEXT; i++) draws[i] = some_draw(first + i, vocab);
        tell(run, draws, told);
        static const int cuts[][5] = {{TEXT}, {1, 1, 3, 6, 1}, {7, 5}};
        for (int way = 0; way < 3; way++) {
            int done = 0;
            for (int i = 0; done < TEXT; done += cuts[way][i++]) {
                got[cuts[way][i]] = -7;
                CHECK(l2p_generate(run->model, run->sessions[0], done ? told[done - 1] : run->s->tokens[0][FROM],
                                   FROM + done, cuts[way][i], draws + done, 0, NULL, got, run->n_threads,
                                   NULL) == cuts[way][i]);
                CHECK(memcmp(got, told + done, (size_t)cuts[way][i] * sizeof(int32_t)) == 0 && got[cuts[way][i]] == -7);
            }
        }
        for (int last = 0; last < TEXT; last += 5) {
            const int32_t ends[] = {vocab, told[last]};
            int n = 1;
            while (told[n - 1] != told[last]) n++;
            memset(got, -1, sizeof got);
            CHECK(l2p_generate(run->model, run->sessions[0], run->s->tokens[0][FROM], FROM, TEXT, draws, 2, ends, got,
                               run->n_threads, NULL) == n);
            CHECK(memcmp(got, told, (size_t)n * sizeof(int32_t)) == 0 && got[n] == -1);
            CHECK(l2p_generate(run->model, run->sessions[0], run->s->tokens[0][FROM], FROM, TEXT, draws, 1, ends, got,
                               run->n_threads, NULL) == TEXT);
        }
        Batch behind = {0};
        add(&behind, 0, FROM, LENGTHS[0]);
        feed(run, &behind, 0, "behind a text that was taken back");
    }
}

static void next_any_way(Run *run, int most_threads) {
    for (run->n_threads = 1; run->n_threads <= most_threads; run->n_threads++) {
        l2p_release(); /* forgets that an earlier run may have had no use for a second thread */
        next_prompts(run);
        next_pieces(run);
        next_mixed(run);
        if (run->n_threads <= 2) next_texts(run); /* more of them share two cores in the checks, which takes long */
    }
}

static void check_one(l2p_config config, int isa, int most_threads) {
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, isa, 1);
    drawn_in_all = repeated = 0;
    next_any_way(&run, most_threads);
    CHECK(drawn_in_all > 100 && (config.vocab_size < 10 || repeated < drawn_in_all / 3)); /* or rows look alike */
    end_run(&run);
    free_synthetic(s);
}

/* A step of one token of it is split over threads, too */
void draw_big(void) {
    check_one(with_weights(BIG, 0), best_isa(), 4);
    check_one(with_weights(BIG, 8), best_isa(), 3);
}

void check_next(void) {
    for (int isa = 0; l2p_isa_name(isa); isa++)
        for (int group = 0; group <= 4 && draws_in(isa); group += 4)
            for (int shape = 0; shape < 4; shape++) {
                l2p_config config = with_weights(SHAPES[shape], group);
                config.cache_type = shape % 2 ? L2P_BFLOAT16 : L2P_FLOAT32;
                check_one(config, isa, 2);
            }
    printf("next\n");
}
