/* `kernels`: each kernel alone against plain scalar loops, at sizes around the vector's width. Here those that work on
 * floats; the products are in check_products.c. */
#include "check.h"
#include "parts.h"

static const int SIZES[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 100, 255, 256, 257};
enum { N_SIZES = sizeof SIZES / sizeof SIZES[0] };

static void check_rmsnorm(const FloatKernels *kernels) {
    for (int s = 0; s < N_SIZES; s++)
        for (int rows = 1; rows <= ROWS; rows++) {
            const int n = SIZES[s];
            const size_t size = (size_t)n;
            Guarded weight = guarded_floats(size), out = guarded_floats(size * (size_t)rows), x[ROWS];
            const float *row[ROWS];
            fill(floats(weight), size);
            for (int r = 0; r < rows; r++) {
                x[r] = guarded_floats(size);
                row[r] = floats(x[r]);
                fill(floats(x[r]), size);
            }
            now("rmsnorm of %d rows of %d", rows, n);
            kernels->rmsnorm(floats(out), row, rows, floats(weight), n, 1e-5f);
            for (int r = 0; r < rows; r++) {
                /* left to right, or 16 partial sums and a tree that adds halves: the numerics contract, bit by bit */
                float partial[LANES] = {0}, sum = 0.0f;
                for (int i = 0; i < n; i++) {
                    const float v = row[r][i];
                    if (kernels->numerics == EXACT)
                        sum += v * v;
                    else
                        partial[i % LANES] = fmaf(v, v, partial[i % LANES]);
                }
                for (int half = LANES / 2; half; half /= 2)
                    for (int i = 0; i < half; i++) partial[i] += partial[i + half];
                if (kernels->numerics == FUSED) sum = partial[0];
                const float scale = 1.0f / sqrtf(sum / (float)n + 1e-5f);
                for (int i = 0; i < n; i++)
                    CHECK(same(floats(out)[(size_t)r * size + (size_t)i], floats(weight)[i] * (scale * row[r][i])));
                unguard(x[r]);
            }
            unguard(weight), unguard(out);
        }
}

/* How far `got` is from `want`, in units of the last place of a float near `want` */
static double ulps(double got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs(got - want) / ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

/* Is got, over sum, softmax(from / divisor)? EXACT: in llama2.c's order, to the bit. Else near the result in doubles:
 * what is exponentiated has been rounded three times. */
static int is_softmax(const FloatKernels *kernels, const float *got, float sum, const float *from, int n,
                      float divisor) {
    float largest = -INFINITY, left_to_right = 0.0f;
    double exact_sum = 0.0;
    for (int i = 0; i < n; i++) largest = fmaxf(largest, from[i]);
    for (int i = 0; i < n; i++) left_to_right += expf(from[i] / divisor - largest / divisor);
    for (int i = 0; i < n; i++) exact_sum += exp(((double)from[i] - (double)largest) / (double)divisor);
    for (int i = 0; i < n; i++) {
        const double below = ((double)from[i] - (double)largest) / (double)divisor, is = (double)got[i] / (double)sum;
        if (kernels->numerics == EXACT ? !same(got[i], expf(from[i] / divisor - largest / divisor) / left_to_right)
                                       : ulps(is, exp(below) / exact_sum) > 8.0 - 3.0 * below)
            return 0;
    }
    return 1;
}

enum { MOST = 300 };

static void fill_scores(float *scores, int n) {
    fill(scores, (size_t)n);
    for (int i = 0; i < n; i++) scores[i] *= 20.0f;
    scores[random_u32() % (uint32_t)n] = 21.0f; /* the maximum, at any place */
}

static void check_softmax(const FloatKernels *kernels) {
    const float divisor = 2.5f;
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        float from[MOST];
        Guarded x = guarded_floats((size_t)n);
        fill_scores(from, n);
        memcpy(floats(x), from, (size_t)n * sizeof(float));
        now("softmax of %d", n);
        kernels->softmax(floats(x), n, divisor);
        CHECK(is_softmax(kernels, floats(x), 1.0f, from, n, divisor));
        unguard(x);
    }
    now("softmax of what is not a number");
    float nan_first[] = {NAN, 1.0f, 2.0f}, nan_later[20] = {[18] = NAN}, infinite[] = {0.0f, -INFINITY};
    kernels->softmax(nan_first, 3, 1.0f);
    kernels->softmax(nan_later, 20, 1.0f);
    kernels->softmax(infinite, 2, 1.0f);
    for (int i = 0; i < 3; i++) CHECK(isnan(nan_first[i]));
    for (int i = 0; i < 20; i++) CHECK(isnan(nan_later[i]));
    CHECK(infinite[0] == 1.0f && infinite[1] == 0.0f);
}

/* Rows of n, n + step, ... scores, each in whole vectors, with `gap` canaries after all but the last. What follows a
 * row's scores must not count. */
static void check_weigh_rows(const FloatKernels *kernels, int rows, int n, int step, int gap) {
    const float divisor = 2.5f;
    const int longest = (int)round_up(n + (rows - 1) * step, LANES);
    const size_t ld = (size_t)(longest + gap);
    Guarded x = guarded_floats(ld * (size_t)rows - (size_t)gap), in = guarded_floats(ld * (size_t)rows);
    Guarded sums = guarded_floats((size_t)rows);
    for (int r = 0; r < rows; r++) {
        const int length = n + r * step, padded = (int)round_up(length, LANES);
        float *from = floats(in) + (size_t)r * ld, *scores = floats(x) + (size_t)r * ld;
        fill_scores(from, length);
        memcpy(scores, from, (size_t)length * sizeof(float));
        for (int i = length; i < padded; i++) scores[i] = i % 2 ? 1e30f : NAN;
    }
    now("weights of %d rows of %d and %d more each", rows, n, step);
    kernels->weigh(floats(x), ld, rows, n, step, divisor, floats(sums));
    for (int r = 0; r < rows; r++) {
        const int length = n + r * step, padded = (int)round_up(length, LANES);
        const float *got = floats(x) + (size_t)r * ld, sum = floats(sums)[r];
        if (kernels->numerics == EXACT) CHECK(sum == 1.0f);
        CHECK(is_softmax(kernels, got, sum, floats(in) + (size_t)r * ld, length, divisor));
        if (r < rows - 1) CHECK(is_canary(got + padded, (ld - (size_t)padded) * sizeof(float)));
    }
    unguard(x), unguard(in), unguard(sums);
}

static void check_weigh(const FloatKernels *kernels) {
    for (int s = 0; s < N_SIZES; s++)
        for (int rows = 1; rows <= 2 * ROWS + 1; rows += 1 + rows / 3)
            for (int step = 0; step <= 2; step++) check_weigh_rows(kernels, rows, SIZES[s], step, step);
    now("weights of what is not a number, of a row beside a good one");
    float x[3][2 * LANES] = {[0] = {NAN, 1.0f}, [2] = {[18] = NAN}}, sums[3];
    kernels->weigh(x[0], 2 * LANES, 3, 20, 0, 1.0f, sums);
    for (int i = 0; i < 20; i++) CHECK(isnan(x[0][i] / sums[0]) && isnan(x[2][i] / sums[2]));
    for (int i = 0; i < 20; i++) CHECK(same(x[1][i] / sums[1], 1.0f / 20.0f));
    now("weights beside scores that are far below");
    float far[LANES] = {0.0f, -INFINITY, -1e38f, 0.0f}, two;
    kernels->weigh(far, LANES, 1, 4, 0, 1e-3f, &two);
    CHECK(far[0] / two == 0.5f && far[1] == 0.0f && far[2] == 0.0f && far[3] / two == 0.5f);
}

/* exp(t) bare: beside a 0 the sum of softmax is 1 + exp(t), which is 1 below -17.4 */
static void check_exp(const FloatKernels *kernels) {
    double worst = 0.0;
    for (int i = 0; i < 200000; i += LANES) {
        float t[LANES], x[2 * LANES];
        for (int lane = 0; lane < LANES; lane++) t[lane] = -87.3f + (float)(i + lane) * (69.0f / 200000);
        for (int lane = 0; lane < LANES; lane++) { /* each alone beside its 0, at every place of a vector in turn */
            if (lane != i / LANES % LANES) continue;
            for (int k = 0; k < 2 * LANES; k++) x[k] = -INFINITY;
            x[0] = 0.0f;
            x[LANES + lane] = t[lane];
            now("exp of %.9g", (double)t[lane]);
            kernels->softmax(x, 2 * LANES, 1.0f);
            CHECK(x[0] == 1.0f);
            worst = fmax(worst, ulps(x[LANES + lane], exp((double)t[lane])));
        }
    }
    now("exp, at worst %.3f units of the last place off", worst);
    CHECK(worst < 1.5);
    now("exp near 0");
    for (float t = -17.5f; t < 0.0f; t += 0.0037f) { /* here the two divisions by the sum round, too */
        float x[] = {0.0f, t};
        kernels->softmax(x, 2, 1.0f);
        const double e = exp((double)t);
        CHECK(ulps(x[1], e / (1.0 + e)) < 3.5);
    }
    now("exp of what is far below");
    float far[] = {0.0f, -88.5f, -104.0f, -1e30f, -INFINITY};
    kernels->softmax(far, 5, 1.0f);
    CHECK(far[0] == 1.0f && far[1] < 1.2e-38f && far[2] == 0.0f && far[3] == 0.0f && far[4] == 0.0f);
}

/* The bits of expf, which llama2.c calls, for one in 1021 of the floats from 0 down; glibc's agree for all of them. */
static void check_exact_exp(const FloatKernels *kernels) {
    enum { N = 1024 };
    const uint32_t zero = 0x80000000u, infinity = 0xff800000u;
    for (uint32_t bits = zero; bits < infinity; bits += (N - 1) * 1021) {
        float in[N] = {0.0f}, x[N];
        for (uint32_t i = 1; i < N; i++) {
            const uint32_t one = bits + (i - 1) * 1021;
            memcpy(in + i, &(uint32_t){one < infinity ? one : infinity}, sizeof one);
        }
        memcpy(x, in, sizeof x);
        kernels->exps(x, N, 1.0f);
        for (int i = 0; i < N; i++) {
            now("expf of %a", (double)in[i]);
            CHECK(same(x[i], expf(in[i])));
        }
    }
}

static void check_swiglu(const FloatKernels *kernels) {
    for (int blocks = 0; blocks <= 5; blocks++) {
        const size_t n = (size_t)blocks * LANES;
        Guarded in = guarded_floats(2 * n), out = guarded_floats(n);
        fill(floats(in), 2 * n);
        for (size_t i = 0; i < 2 * n; i++) floats(in)[i] *= 12.0f;
        now("swiglu of %d blocks", blocks);
        kernels->swiglu(floats(out), floats(in), blocks);
        for (size_t i = 0; i < n; i++) {
            const size_t at = i / LANES * 2 * LANES + i % LANES;
            const float gate = floats(in)[at], up = floats(in)[at + LANES];
            if (kernels->numerics == EXACT)
                CHECK(same(floats(out)[i], gate * (1.0f / (1.0f + expf(-gate))) * up));
            else
                CHECK(ulps(floats(out)[i], gate / (1.0 + exp(-(double)gate)) * up) < 5.0);
        }
        unguard(in), unguard(out);
    }
    now("swiglu of gates that overflow exp");
    float in[2 * LANES] = {-87.0f, -88.4f, -89.0f, -200.0f, 88.0f, 200.0f, NAN, 0.0f}, out[LANES];
    for (int i = 0; i < LANES; i++) in[LANES + i] = 1.0f;
    in[LANES + 7] = NAN;
    kernels->swiglu(out, in, 1);
    CHECK(fabsf(out[0]) < 1.5e-36f && fabsf(out[1]) < 1e-36f && fabsf(out[2]) < 1e-36f && fabsf(out[3]) < 1e-36f);
    CHECK(out[4] == 88.0f && out[5] == 200.0f && isnan(out[6]) && isnan(out[7]) && out[8] == 0.0f);
}

static void check_geglu(const FloatKernels *kernels) {
    for (int blocks = 0; blocks <= 5; blocks++) {
        const size_t n = (size_t)blocks * LANES;
        Guarded in = guarded_floats(2 * n), out = guarded_floats(n);
        fill(floats(in), 2 * n);
        for (size_t i = 0; i < 2 * n; i++) floats(in)[i] *= 6.0f;
        now("geglu of %d blocks", blocks);
        kernels->geglu(floats(out), floats(in), blocks);
        for (size_t i = 0; i < n; i++) {
            const size_t at = i / LANES * 2 * LANES + i % LANES;
            const double gate = (double)floats(in)[at], up = (double)floats(in)[at + LANES];
            const double inner = sqrt(2 / acos(-1.0)) * (gate + 0.044715 * gate * gate * gate);
            const double want = 0.5 * gate * (1 + tanh(inner)) * up;
            CHECK(fabs((double)floats(out)[i] - want) < 1e-6 * (1 + fabs(want)));
        }
        unguard(in), unguard(out);
    }
}

static void check_argmax(const Kernels *kernels) {
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        Guarded g = guarded_floats((size_t)n);
        float *x = floats(g);
        now("%s argmax of %d", kernels->name, n);
        for (int at = 0; at < n; at++) {
            for (int i = 0; i < n; i++) x[i] = -1.0f - (float)(random_u32() >> 8);
            x[at] = -0.5f;
            CHECK(kernels->argmax(x, n) == at);
            for (int i = at; i < n; i += 1 + n / 5) x[i] = -0.5f; /* the first of equals */
            CHECK(kernels->argmax(x, n) == at);
            if (at > 0) x[at - 1] = NAN;                        /* counts as nothing, */
            if (at + LANES < n) x[at + LANES] = NAN;            /* in the lane of the largest, too */
            CHECK(kernels->argmax(x, n) == (at == 1 ? 0 : at)); /* but in front, as in llama2.c */
        }
        for (int i = 0; i < n; i++) x[i] = -INFINITY;
        CHECK(kernels->argmax(x, n) == 0);
        x[n - 1] = INFINITY;
        CHECK(kernels->argmax(x, n) == n - 1);
        x[0] = -0.0f;
        for (int i = 1; i < n; i++) x[i] = 0.0f; /* equals, too */
        CHECK(kernels->argmax(x, n) == 0);
        unguard(g);
    }
}

void check_kernels(void) {
    const char *name;
    const FloatKernels *checked = NULL; /* some sets share them */
    for (int isa = 0; (name = l2p_isa_name(isa)); isa++) {
        const Kernels *kernels = kernels_of_isa(isa);
        if (!kernels) continue;
        lcg_state = 1;
        now("%s", name);
        CHECK(kernels->for_int8->numerics == EXACT);
        CHECK(kernels->for_the_rest->numerics == (strcmp(name, "portable") ? FUSED : EXACT));
        const FloatKernels *sets[] = {kernels->for_the_rest, kernels->for_int8};
        for (int i = 0; i < 2; i++) {
            if ((i && sets[1] == sets[0]) || sets[0] == checked) break;
            check_rmsnorm(sets[i]);
            check_softmax(sets[i]);
            check_weigh(sets[i]);
            check_exp(sets[i]);
            if (sets[i]->numerics == EXACT) check_exact_exp(sets[i]);
            check_swiglu(sets[i]);
            check_geglu(sets[i]);
            check_matmul_bare(sets[i]);
        }
        checked = sets[0];
        check_matmul(kernels);
        check_quantize(kernels);
        check_argmax(kernels);
        printf("%s kernels\n", name);
    }
    check_packing_int4();
}
