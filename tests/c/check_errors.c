/* `errors`: wrong arguments come back as error codes, and leave everything usable. */
#include "check.h"
#include "feeding.h"
#include "parts.h"

/* A batch of two tokens of one session that gives logits of one, and draws two tokens after the other: fine, for checks to
 * spoil one thing of it each. */
typedef struct {
    int32_t tokens[2], positions[2], rows[3], n_draws[2], stop_tokens[1], drawn[4], n_drawn[2];
    l2p_session *sessions[2];
    l2p_draw draws[4];
    float logits[3 * 17];
    l2p_batch batch;
} Asked;

static Asked *asked_of(const Run *run, int drawing) {
    static Asked a;
    const l2p_draw fine = {.temperature = 1.0f, .top_p = 0.9f, .coin = 0.5f, .n_tokens = 3};
    a = (Asked){.tokens = {1, 2},
                .positions = {0, 1},
                .rows = {0, 1},
                .n_draws = {1, 2},
                .stop_tokens = {-1},
                .drawn = {-7, -7, -7, -7},
                .n_drawn = {-7, -7},
                .sessions = {run->sessions[0], run->sessions[0]},
                .draws = {fine, fine, fine, fine}};
    a.batch = (l2p_batch){.n_tokens = 2,
                          .tokens = a.tokens,
                          .sessions = a.sessions,
                          .positions = a.positions,
                          .n_rows = 2,
                          .rows = a.rows,
                          .logits = drawing ? NULL : a.logits,
                          .n_draws = drawing ? a.n_draws : NULL,
                          .draws = drawing ? a.draws : NULL,
                          .n_stop_tokens = drawing,
                          .stop_tokens = drawing ? a.stop_tokens : NULL,
                          .drawn = drawing ? a.drawn : NULL,
                          .n_drawn = drawing ? a.n_drawn : NULL};
    return &a;
}

/* Spoil one thing of a batch: it is refused, and nothing is written or run. */
#define REFUSED(drawing, SPOIL)                                                    \
    do {                                                                           \
        Asked *a = asked_of(run, drawing);                                         \
        SPOIL;                                                                     \
        CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_BAD_ARGUMENT);     \
        for (int at = 0; at < 4; at++) CHECK(a->drawn[at] == -7);                  \
        for (int at = 0; at < 2; at++) CHECK(a->n_drawn[at] == -7);                \
        for (int at = 0; at < 3 * 17; at++) CHECK(a->logits[at] == 0.0f);          \
    } while (0)

static void check_batches(Run *run, l2p_session *foreign) {
    const l2p_config *c = &run->s->config;
    now("l2p_forward's arguments");
    Batch ran = {0};
    add(&ran, 0, 0, LENGTHS[0]);
    feed(run, &ran, ran.n, "before what is refused");
    for (int drawing = 0; drawing <= 1; drawing++) {
        REFUSED(drawing, a->batch.n_tokens = 0);
        REFUSED(drawing, a->batch.n_tokens = -1);
        REFUSED(drawing, a->batch.n_tokens = INT32_MAX);
        REFUSED(drawing, a->batch.tokens = NULL);
        REFUSED(drawing, a->batch.sessions = NULL);
        REFUSED(drawing, a->batch.positions = NULL);
        REFUSED(drawing, a->batch.rows = NULL);
        REFUSED(drawing, a->batch.n_rows = -1);
        for (int i = 0; i < 2; i++) {
            REFUSED(drawing, a->tokens[i] = -1);
            REFUSED(drawing, a->tokens[i] = c->vocab_size);
            REFUSED(drawing, a->sessions[i] = NULL);
            REFUSED(drawing, a->sessions[i] = foreign);
            REFUSED(drawing, a->positions[i] = -1);
            REFUSED(drawing, a->positions[i] = INT32_MIN);
            REFUSED(drawing, a->positions[i] = c->seq_len);
            REFUSED(drawing, a->positions[i] = INT32_MAX);
            REFUSED(drawing, a->rows[i] = -1);
            REFUSED(drawing, a->rows[i] = 2);
        }
    }
    static const int32_t below[] = {0, -1, INT32_MIN};
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 3; k++) REFUSED(1, a->n_draws[i] = below[k]);
        REFUSED(1, a->n_draws[i] = INT32_MAX);
        REFUSED(1, a->n_draws[i] = c->seq_len - i + 1);
    }
    REFUSED(1, a->positions[1] = c->seq_len - 1); /* the second draw's token is past the end */
    REFUSED(1, a->n_draws[0] = 2);                /* of a token that is not the last of its session */
    REFUSED(1, (a->rows[0] = 1, a->n_draws[0] = 1)); /* stands in the rows twice, and goes on */
    REFUSED(1, (a->rows[0] = 1, a->n_draws[0] = 2, a->n_draws[1] = 1));
    REFUSED(1, a->batch.n_draws = NULL);
    REFUSED(1, a->batch.draws = NULL);
    REFUSED(1, a->batch.drawn = NULL);
    REFUSED(1, a->batch.n_drawn = NULL);
    REFUSED(1, a->batch.stop_tokens = NULL);
    REFUSED(1, a->batch.n_stop_tokens = -1);
    const int32_t bad_counts[] = {0, -1, INT32_MIN, c->vocab_size + 1, INT32_MAX};
    for (size_t i = 0; i < sizeof bad_counts / sizeof bad_counts[0]; i++)
        for (int draw = 0; draw < 3; draw++)
            for (int greedy = 0; greedy <= 1; greedy++)
                REFUSED(1, (a->draws[draw].n_tokens = bad_counts[i], a->draws[draw].temperature = greedy ? 0.0f : 1.0f));
    Batch end = {0};
    add(&end, 0, LENGTHS[0] - 1, LENGTHS[0]);
    feed(run, &end, 0, "after what was refused");

    now("the bounds themselves");
    Asked *a = asked_of(run, 1);
    a->draws[0].n_tokens = 1;
    a->draws[1].n_tokens = c->vocab_size;
    a->positions[1] = c->seq_len - 2;
    CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_OK);
    CHECK(a->drawn[0] == 0 && a->drawn[1] >= 0 && a->drawn[1] < c->vocab_size && a->drawn[2] >= 0 && a->drawn[3] == -7);
    CHECK(a->n_drawn[0] == 1 && a->n_drawn[1] == 2);
    a = asked_of(run, 1); /* the same row twice, one draw each */
    a->rows[0] = 1;
    a->n_draws[1] = 1;
    CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_OK && a->drawn[0] == a->drawn[1] && a->drawn[2] == -7);
    a = asked_of(run, 1); /* no rows: neither logits nor draws */
    a->batch.n_rows = 0;
    a->batch.rows = NULL;
    CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_OK && a->drawn[0] == -7 && a->n_drawn[0] == -7);
}
#undef REFUSED

void check_errors(void) {
    now("the list of instruction sets");
    int count = 0;
    while (l2p_isa_name(count)) count++;
    CHECK(count >= 1 && strcmp(l2p_isa_name(count - 1), "portable") == 0 && l2p_isa_supported(count - 1));
    CHECK(l2p_isa_name(-1) == NULL && l2p_isa_name(count + 5) == NULL);
    CHECK(!l2p_isa_supported(-1) && !l2p_isa_supported(count));
    CHECK(l2p_model_new(&SHAPES[1], -1) == NULL && l2p_model_new(&SHAPES[1], count) == NULL);

    for (int group = 0; group <= 4; group += 4) {
        const Synthetic s = synthesize(with_weights(SHAPES[1], group));
        Run run = start_run(&s, best_isa(), 1), other = start_run(&s, best_isa(), 1);
        const l2p_config *c = &s.config;
        now("l2p_model_set");
        const int type = group ? L2P_INT8 : L2P_FLOAT32;
        const float values[301 * 36] = {[1] = NAN, [5] = INFINITY, [7] = -INFINITY};
        int64_t bad = 10;
        CHECK(l2p_model_bytes(other.model) > 0);
        CHECK(l2p_model_set(other.model, L2P_WQ, -1, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, c->n_layers, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, -1, 0, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, N_TENSORS, 0, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, -1, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, L2P_INT4, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, L2P_FLOAT16 + 1, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, L2P_INT8, values, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_config narrow = *c;
        narrow.weight_type = L2P_INT4;
        l2p_model *int4 = l2p_model_new(&narrow, best_isa());
        CHECK(int4 && l2p_model_set(int4, L2P_WQ, 0, L2P_INT4, values, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_model_free(int4);
        CHECK(bad == 10);
        CHECK(l2p_model_set(other.model, L2P_RMS_FINAL_WEIGHT, 0, L2P_FLOAT32, values, NULL, 1, &bad) == L2P_OK && bad == 13);
        CHECK(l2p_model_set(other.model, L2P_W1, 1, type, values, values, 3, &bad) == L2P_OK);
        /* of int8, the scales are what can be non-finite; group 4: each of the first 8 stands for one group */
        CHECK(bad == 16);
        l2p_config shared = *c;
        shared.shared_classifier = 1;
        l2p_model *small = l2p_model_new(&shared, best_isa());
        CHECK(small && l2p_model_set(small, L2P_WCLS, 0, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_model_free(small);

        check_batches(&run, other.sessions[0]);
        static const int odd_threads[] = {0, -1, INT32_MIN, 300, INT32_MAX};
        for (size_t i = 0; i < sizeof odd_threads / sizeof odd_threads[0]; i++) {
            now("l2p_forward with n_threads = %d", odd_threads[i]);
            run.n_threads = odd_threads[i];
            Batch batch = {0};
            add(&batch, 0, 0, LENGTHS[0]);
            feed(&run, &batch, 30, "an odd number of threads");
        }
        l2p_release(); /* 255 threads would slow down all that follows */
        run.n_threads = 2;
        feed_prompts(&run);
        end_run(&run), end_run(&other);
        free_synthetic(s);
    }
    now("freeing nothing");
    l2p_model_free(NULL);
    l2p_session_free(NULL);
    printf("errors\n");
}
