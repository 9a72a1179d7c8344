/* `models`: l2p_forward against a naive transformer; the same bits for any batch, thread count and instruction set. */
#include "check.h"
#include "feeding.h"
#include "parts.h"

/* The engine's logits are the naive transformer's: to the bit where numerics are EXACT, else nearly */
static void compare_naive(const Run *run, float *const *naive) {
    const int exact = run->model->floats->numerics == EXACT, vocab = run->s->config.vocab_size;
    /* a last bit of float32 can be one of bfloat16's, where keys and values are rounded to it */
    const float near = run->s->config.cache_type == L2P_BFLOAT16 ? 2e-2f : 2e-4f;
    for (int i = 0; i < N_SESSIONS; i++)
        for (int k = 0; k < LENGTHS[i] * vocab; k++) {
            const float got = run->want[i][k], want = naive[i][k];
            if (exact ? !same(got, want) : !(fabsf(got - want) <= near * (1.0f + fabsf(want))))
                fail("session %d, token %d, logit %d: %.9g, but the naive transformer says %.9g", i, k / vocab,
                     k % vocab, (double)got, (double)want);
        }
}

static void check_shape(const Synthetic *s, int isa, float *const *naive, uint64_t *h) {
    Run run = start_run(s, isa, 1 + s->config.dim % 3);
    for (int i = 0; i < N_SESSIONS; i++) hash(h, run.want[i], (size_t)(LENGTHS[i] * s->config.vocab_size));
    compare_naive(&run, naive);
    feed_interleaved(&run);
    run.n_threads = 2;
    feed_pieces(&run);
    feed_mixed(&run);
    run.n_threads = 3;
    feed_prompts(&run);
    feed_rewound(&run);
    end_run(&run);
}

/* Some models of one weight type, all instruction sets: `group` as in with_weights */
static void check_shapes_with_steps(int group, int bfloat16_cache, uint64_t *hashes) {
    for (int shape = 0; shape < N_STEPS; shape++) {
        l2p_config config = with_weights(STEPS[shape], group);
        config.cache_type = bfloat16_cache ? L2P_BFLOAT16 : L2P_FLOAT32;
        const Synthetic s = synthesize(config);
        float *naive[N_SESSIONS];
        for (int i = 0; i < N_SESSIONS; i++) {
            naive[i] = malloc((size_t)(LENGTHS[i] * s.config.vocab_size) * sizeof(float));
            naive_forward(&s, s.tokens[i], LENGTHS[i], naive[i]);
        }
        for (int isa = 0; l2p_isa_name(isa); isa++)
            if (l2p_isa_supported(isa)) check_shape(&s, isa, naive, &hashes[isa]);
        for (int i = 0; i < N_SESSIONS; i++) free(naive[i]);
        free_synthetic(s);
    }
}

void check_steps(void) {
    enum { MAX_ISAS = 16 };
    for (int group = 0; group <= 4; group += 4) {
        uint64_t hashes[MAX_ISAS], simd = 0;
        for (int isa = 0; isa < MAX_ISAS; isa++) hashes[isa] = 0xcbf29ce484222325u;
        check_shapes_with_steps(group, 0, hashes);
        if (!group) check_shapes_with_steps(group, 1, hashes);
        for (int isa = 0; l2p_isa_name(isa); isa++) {
            if (!l2p_isa_supported(isa)) continue;
            now("%s", l2p_isa_name(isa));
            printf("%s %s %016llx\n", doing, group ? "steps_int8" : "steps", (unsigned long long)hashes[isa]);
            if (!group && strcmp(doing, "portable") == 0) continue; /* its own numerics */
            if (!simd) simd = hashes[isa];
            if (hashes[isa] != simd) fail("other logits than another set's");
        }
    }
}

/* The big one, in each thread count: token by token too */
void check_big(int isa, int group) {
    const Synthetic s = synthesize(with_weights(BIG, group));
    Run run = start_run(&s, isa, 2);
    for (run.n_threads = 2; run.n_threads <= 3; run.n_threads++) {
        feed_token_by_token(&run);
        feed_prompts(&run);
        feed_pieces(&run);
        feed_mixed(&run);
    }
    end_run(&run);
    free_synthetic(s);
}

void check_models(void) {
    static const int groups[] = {0, 1, 4, 32, 64}; /* 64 divides dim 64 but not its hidden_dim 172 */
    enum { MAX_ISAS = 16 };
    uint64_t hashes[MAX_ISAS][2], simd = 0;
    for (int isa = 0; isa < MAX_ISAS; isa++) hashes[isa][0] = hashes[isa][1] = 0xcbf29ce484222325u;
    for (int g = 0; g < 5; g++)
        for (int kind = 0; kind < 2 * N_SHAPES; kind++) {
            const int shape = kind / 2;
            if (g > 0 && (g + shape) % 2) continue; /* enough, and half the time */
            l2p_config config = with_weights(SHAPES[shape], groups[g]);
            config.cache_type = kind % 2 ? L2P_BFLOAT16 : L2P_FLOAT32;
            if (kind % 2 && (g > 1 || shape % 2)) continue; /* enough of these, too */
            const Synthetic s = synthesize(config);
            float *naive[N_SESSIONS];
            for (int i = 0; i < N_SESSIONS; i++) {
                naive[i] = malloc((size_t)(LENGTHS[i] * s.config.vocab_size) * sizeof(float));
                naive_forward(&s, s.tokens[i], LENGTHS[i], naive[i]);
            }
            for (int isa = 0; l2p_isa_name(isa); isa++)
                if (l2p_isa_supported(isa)) check_shape(&s, isa, naive, &hashes[isa][g > 0]);
            for (int i = 0; i < N_SESSIONS; i++) free(naive[i]);
            free_synthetic(s);
        }
    for (int isa = 0; l2p_isa_name(isa); isa++) {
        if (!l2p_isa_supported(isa)) continue;
        now("%s", l2p_isa_name(isa));
        printf("%s float32 %016llx\n", doing, (unsigned long long)hashes[isa][0]);
        printf("%s int8 %016llx\n", doing, (unsigned long long)hashes[isa][1]);
        if (strcmp(doing, "portable") != 0) {
            if (!simd) simd = hashes[isa][0];
            if (hashes[isa][0] != simd) fail("other float32 logits than another SIMD set's");
        }
        for (int other = 0; other < isa; other++)
            if (l2p_isa_supported(other) && hashes[other][1] != hashes[isa][1])
                fail("other int8 logits than %s", l2p_isa_name(other));
    }
}
