/* `errors`: wrong arguments come back as error codes, and leave everything usable. */
#include "check.h"
#include "feeding.h"
#include "parts.h"

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

        now("l2p_forward's arguments");
        const int32_t token = 0, position = 0, row = 0, beyond = 1, minus = -1;
        const int32_t vocab = c->vocab_size, seq_len = c->seq_len;
        l2p_session *const mine = run.sessions[0], *const foreign = other.sessions[0], *const none = NULL;
        float out[17];
#define REFUSED(n, token, session, position, n_logits, row) \
    CHECK(l2p_forward(run.model, n, token, session, position, n_logits, row, out, 1, NULL) == L2P_BAD_ARGUMENT)
        REFUSED(0, &token, &mine, &position, 0, &row);
        REFUSED(-1, &token, &mine, &position, 0, &row);
        REFUSED(1, &minus, &mine, &position, 1, &row);
        REFUSED(1, &vocab, &mine, &position, 1, &row);
        REFUSED(1, &token, &none, &position, 1, &row);
        REFUSED(1, &token, &foreign, &position, 1, &row);
        REFUSED(1, &token, &mine, &minus, 1, &row);
        REFUSED(1, &token, &mine, &seq_len, 1, &row);
        REFUSED(1, &token, &mine, &position, -1, &row);
        REFUSED(1, &token, &mine, &position, 1, &minus);
        REFUSED(1, &token, &mine, &position, 1, &beyond);
#undef REFUSED
        now("l2p_next's arguments");
        const l2p_draw fine = {.temperature = 1.0f, .top_p = 0.9f, .coin = 0.5f, .n = 3};
        int32_t drawn[2] = {-7, -7};
        Batch ran = {0};
        add(&ran, 0, 0, LENGTHS[0]);
        feed(&run, &ran, ran.n, "before what is refused");
#define REFUSED(n, token, session, position, n_draws, row, draw) \
    CHECK(l2p_next(run.model, n, token, session, position, n_draws, row, draw, drawn, 1, NULL) == L2P_BAD_ARGUMENT)
        REFUSED(0, &token, &run.sessions[0], &position, 0, &row, &fine);
        REFUSED(1, &minus, &run.sessions[0], &position, 1, &row, &fine);
        REFUSED(1, &vocab, &run.sessions[0], &position, 1, &row, &fine);
        REFUSED(1, &token, &foreign, &position, 1, &row, &fine);
        REFUSED(1, &token, &run.sessions[0], &seq_len, 1, &row, &fine);
        REFUSED(1, &token, &run.sessions[0], &position, -1, &row, &fine);
        REFUSED(1, &token, &run.sessions[0], &position, 1, &minus, &fine);
        REFUSED(1, &token, &run.sessions[0], &position, 1, &beyond, &fine);
        const int32_t bad_numbers[] = {0, -1, INT32_MIN, vocab + 1, INT32_MAX}, rows[] = {0, 0};
        const int32_t unlike = (s.tokens[0][0] + 1) % vocab;
        for (size_t i = 0; i < sizeof bad_numbers / sizeof bad_numbers[0]; i++)
            for (int greedy = 0; greedy <= 1; greedy++) {
                l2p_draw wrong = fine;
                wrong.n = bad_numbers[i];
                if (greedy) wrong.temperature = 0.0f;
                const l2p_draw last[] = {fine, wrong}, first[] = {wrong, fine};
                REFUSED(1, &unlike, &run.sessions[0], &position, 1, &row, &wrong);
                REFUSED(1, &unlike, &run.sessions[0], &position, 2, rows, last);
                REFUSED(1, &unlike, &run.sessions[0], &position, 2, rows, first);
            }
        const int32_t rows_beyond[] = {0, 1}, rows_before[] = {0, -1};
        const l2p_draw both[] = {fine, fine};
        REFUSED(1, &unlike, &run.sessions[0], &position, 2, rows_beyond, both);
        REFUSED(1, &unlike, &run.sessions[0], &position, 2, rows_before, both);
#undef REFUSED
        now("l2p_generate's arguments");
#define REFUSED(session, token, position, n_draws, draws) \
    CHECK(l2p_generate(run.model, session, token, position, n_draws, draws, 0, NULL, drawn, 1, NULL) == \
          -L2P_BAD_ARGUMENT)
        REFUSED(foreign, unlike, position, 1, both);
        REFUSED(run.sessions[0], minus, position, 1, both);
        REFUSED(run.sessions[0], vocab, position, 1, both);
        REFUSED(run.sessions[0], unlike, minus, 1, both);
        REFUSED(run.sessions[0], unlike, INT32_MIN, 2, both);
        REFUSED(run.sessions[0], unlike, seq_len, 1, both);
        REFUSED(run.sessions[0], unlike, seq_len - 1, 2, both);
        REFUSED(run.sessions[0], unlike, INT32_MAX, 2, both);
        REFUSED(run.sessions[0], unlike, position, 0, both);
        REFUSED(run.sessions[0], unlike, position, -1, both);
        REFUSED(run.sessions[0], unlike, position, INT32_MIN, both);
        REFUSED(run.sessions[0], unlike, position, INT32_MAX, both);
        for (size_t i = 0; i < sizeof bad_numbers / sizeof bad_numbers[0]; i++)
            for (int at = 0; at < 2; at++) {
                l2p_draw some[] = {fine, fine};
                some[at].n = bad_numbers[i];
                REFUSED(run.sessions[0], unlike, position, 2, some);
            }
#undef REFUSED
        CHECK(drawn[0] == -7 && drawn[1] == -7);
        Batch end = {0};
        add(&end, 0, LENGTHS[0] - 1, LENGTHS[0]);
        feed(&run, &end, 0, "behind what was refused");
        l2p_draw all = fine; /* the bounds themselves are fine */
        all.n = vocab;
        CHECK(l2p_next(run.model, 1, &token, &run.sessions[0], &position, 1, &row, &all, drawn, 1, NULL) == L2P_OK);
        CHECK(drawn[0] >= 0 && drawn[0] < vocab);
        all.n = 1;
        CHECK(l2p_next(run.model, 1, &token, &run.sessions[0], &position, 1, &row, &all, drawn, 1, NULL) == L2P_OK);
        CHECK(drawn[0] == 0 && drawn[1] == -7);
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
