/* Checks of the C engine without Python: a stand-alone program linked with csrc/*.c. Each part asks for one thing:
 *
 *   fork     a child of fork() can compute, whatever the other threads of its parent were doing
 *   errors   wrong arguments come back as error codes, and leave everything usable
 *   kernels  each kernel alone against plain scalar loops, at sizes around the vector's width
 *   models   l2p_forward against a naive transformer; the same bits for any batch, thread count and instruction set
 *   threads  pool, turns, cancelling and l2p_release, several callers at once
 *
 * `kernel_check [part...]` runs some parts, or all. `models` prints a line per instruction set and weight type, with a
 * hash of all logits, so that the outputs of two machines can be compared. The first failure ends the program with
 * one line and exit code 1. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels.h"

/* ---- failing ---- */

static char doing[256]; /* what a failure is blamed on */

static void now(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(doing, sizeof doing, format, arguments);
    va_end(arguments);
}

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "kernel_check: %s: ", doing);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1); /* other threads may be running */
}

#define CHECK(condition) ((condition) ? (void)0 : fail("line %d: expected %s", __LINE__, #condition))

static void on_signal(int number) { /* guard pages end here; only what a signal handler may call */
    const char *what = number == SIGILL ? "an illegal instruction\n" : "it touched memory outside of its arrays\n";
    if (write(2, "kernel_check: ", 14) < 0 || write(2, doing, strlen(doing)) < 0 || write(2, ": ", 2) < 0 ||
        write(2, what, strlen(what)) < 0)
        _exit(2);
    _exit(1);
}

static void pause_ms(long milliseconds) {
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

/* ---- numbers ---- */

static uint64_t lcg_state;

static uint32_t random_u32(void) { /* Knuth's MMIX generator; its high bits are the good ones */
    lcg_state = lcg_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(lcg_state >> 32);
}

static float random_float(void) { /* in [-1, 1), a multiple of 2^-23: the same on every machine */
    return (float)(random_u32() >> 8) * 0x1p-23f - 1.0f;
}

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = random_float();
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The same bits, or both NaN: which NaN an operation gives is the machine's affair. */
static int same(float a, float b) { return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b)); }

/* FNV-1a over the bits, low byte first */
static void hash(uint64_t *h, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (int byte = 0; byte < 4; byte++) *h = (*h ^ (bits_of(x[i]) >> (8 * byte) & 0xff)) * 0x100000001b3u;
}

static int greatest_common_divisor(int a, int b) { return b ? greatest_common_divisor(b, a % b) : a; }

/* ---- guarded arrays: flush with a page that must not be touched, canaries before ---- */

enum { CANARY = 0xfe }; /* as a float -1.7e38: no kernel gives it, and it ruins every sum it gets into */

typedef struct {
    unsigned char *pages, *array;
    size_t bytes, mapped, page;
} Guarded;

static Guarded guarded(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    Guarded g = {.bytes = bytes, .page = page, .mapped = (size_t)round_up((int64_t)bytes + 64, (int64_t)page) + page};
    g.pages = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.pages == MAP_FAILED || mprotect(g.pages + g.mapped - page, page, PROT_NONE)) fail("no memory for the check");
    memset(g.pages, CANARY, g.mapped - page);
    g.array = g.pages + g.mapped - page - bytes;
    return g;
}

static Guarded guarded_floats(size_t n) { return guarded(n * sizeof(float)); }
static float *floats(Guarded g) { return (float *)(void *)g.array; }

static int is_canary(const void *memory, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)memory)[i] != CANARY) return 0;
    return 1;
}

static void unguard(Guarded g) {
    if (!is_canary(g.pages, (size_t)(g.array - g.pages))) fail("wrote in front of an array");
    munmap(g.pages, g.mapped);
}

/* ---- kernels alone ---- */

static const int SIZES[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 100, 255, 256, 257};
enum { N_SIZES = sizeof SIZES / sizeof SIZES[0] };

static float multiply_add(int numerics, float a, float b, float c) {
    return numerics == FUSED ? fmaf(a, b, c) : c + a * b;
}

static void check_rmsnorm(const FloatKernels *kernels) {
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        Guarded x = guarded_floats((size_t)n), weight = guarded_floats((size_t)n), out = guarded_floats((size_t)n);
        fill(floats(x), (size_t)n);
        fill(floats(weight), (size_t)n);
        now("rmsnorm of %d", n);
        /* left to right, or 16 partial sums and a tree that adds halves: the numerics contract, bit by bit */
        float partial[LANES] = {0}, sum = 0.0f;
        for (int i = 0; i < n; i++) {
            const float v = floats(x)[i];
            if (kernels->numerics == EXACT)
                sum += v * v;
            else
                partial[i % LANES] = fmaf(v, v, partial[i % LANES]);
        }
        for (int half = LANES / 2; half; half /= 2)
            for (int i = 0; i < half; i++) partial[i] += partial[i + half];
        if (kernels->numerics == FUSED) sum = partial[0];
        const float scale = 1.0f / sqrtf(sum / (float)n + 1e-5f);
        kernels->rmsnorm(floats(out), floats(x), floats(weight), n, 1e-5f);
        for (int i = 0; i < n; i++) CHECK(same(floats(out)[i], floats(weight)[i] * (scale * floats(x)[i])));
        unguard(x), unguard(weight), unguard(out);
    }
}

/* How far `got` is from `want`, in units of the last place of a float near `want` */
static double ulps(double got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs(got - want) / ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

static void check_softmax(const FloatKernels *kernels) {
    const float divisor = 2.5f;
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        float in[257], want[257], max = -INFINITY, sum = 0.0f;
        double exact[257], exact_sum = 0.0;
        Guarded x = guarded_floats((size_t)n);
        fill(in, (size_t)n);
        for (int i = 0; i < n; i++) in[i] *= 20.0f;
        in[random_u32() % (uint32_t)n] = 21.0f; /* the maximum, at any place */
        memcpy(floats(x), in, (size_t)n * sizeof(float));
        for (int i = 0; i < n; i++) max = fmaxf(max, in[i] / divisor);
        for (int i = 0; i < n; i++) {
            sum += want[i] = expf(in[i] / divisor - max);
            exact_sum += exact[i] = exp((double)(in[i] / divisor - max));
        }
        now("softmax of %d", n);
        kernels->softmax(floats(x), n, divisor);
        for (int i = 0; i < n; i++)
            if (kernels->numerics == EXACT)
                CHECK(same(floats(x)[i], want[i] / sum));
            else
                CHECK(ulps(floats(x)[i], exact[i] / exact_sum) < 8.0);
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

/* A random matrix (rows, cols), row by row, and the same packed by the layout that engine.h describes */
typedef struct {
    Matrix m;
    Guarded packed;
    float *values; /* float32: (rows, cols) */
    int8_t *q;     /* int8: (rows, cols) */
    float *scales; /* int8: (rows, groups) */
} TestMatrix;

static TestMatrix test_matrix(int type, int rows, int cols, int group, int offset) {
    TestMatrix t = {.m = {.type = type, .rows = rows, .cols = cols, .blocks = (rows + LANES - 1) / LANES}};
    Matrix *m = &t.m;
    const size_t size = (size_t)rows * (size_t)cols;
    if (type == L2P_FLOAT32) {
        m->block_bytes = (size_t)cols * LANES * sizeof(float);
        t.packed = guarded(m->block_bytes * (size_t)m->blocks);
        memset(t.packed.array, 0, t.packed.bytes);
        t.values = malloc(size * sizeof(float));
        fill(t.values, size);
        float *packed = floats(t.packed);
        for (int row = 0; row < rows; row++)
            for (int k = 0; k < cols; k++)
                packed[((size_t)(row / LANES) * (size_t)cols + (size_t)k) * LANES + (size_t)(row % LANES)] =
                    t.values[(size_t)row * (size_t)cols + (size_t)k];
    } else {
        m->group = group;
        m->groups = cols / group;
        m->group_quads = (group + 3) / 4;
        const size_t quads_bytes = (size_t)m->group_quads * 4 * LANES, group_bytes = quads_bytes + 4 * LANES;
        m->block_bytes = (size_t)m->groups * group_bytes;
        t.packed = guarded(m->block_bytes * (size_t)m->blocks);
        memset(t.packed.array, 0, t.packed.bytes);
        t.q = malloc(size);
        t.scales = malloc((size_t)rows * (size_t)m->groups * sizeof(float));
        for (int row = 0; row < m->blocks * LANES; row++)
            for (int g = 0; g < m->groups; g++) {
                unsigned char *to = t.packed.array + (size_t)(row / LANES) * m->block_bytes + (size_t)g * group_bytes;
                for (int k = 0; k < m->group_quads * 4; k++) {
                    /* the extremes often: pairs of them saturate 16 bits where the arithmetic is careless */
                    const uint32_t r = random_u32() >> 8;
                    int8_t value = (int8_t)(r % 4 == 0 ? -128 : r % 4 == 1 ? 127 : (int)(r / 4 % 256) - 128);
                    if (row >= rows || k >= group) value = 0;
                    if (row < rows && k < group) t.q[(size_t)row * (size_t)cols + (size_t)(g * group + k)] = value;
                    to[k / 4 * 4 * LANES + row % LANES * 4 + k % 4] = (unsigned char)(value + offset);
                }
                const float scale = row < rows ? (random_float() + 1.5f) / 512.0f : 0.0f;
                if (row < rows) t.scales[(size_t)row * (size_t)m->groups + (size_t)g] = scale;
                memcpy(to + quads_bytes + (size_t)(row % LANES) * 4, &scale, 4);
            }
    }
    m->data = t.packed.array;
    return t;
}

static void free_test_matrix(TestMatrix t) {
    unguard(t.packed);
    free(t.values), free(t.q), free(t.scales);
}

/* One row times one vector, as the numerics contract has it */
static float dot(const TestMatrix *t, int numerics, int row, const float *x, const int8_t *q, const float *scales,
                 float start) {
    float sum = start;
    const Matrix *m = &t->m;
    if (m->type == L2P_FLOAT32) {
        for (int k = 0; k < m->cols; k++) sum = multiply_add(numerics, t->values[(size_t)row * (size_t)m->cols + (size_t)k], x[k], sum);
        return sum;
    }
    for (int g = 0; g < m->groups; g++) {
        int32_t whole = 0;
        for (int k = 0; k < m->group; k++)
            whole += t->q[(size_t)row * (size_t)m->cols + (size_t)(g * m->group + k)] * q[g * m->group_quads * 4 + k];
        sum += (float)whole * t->scales[(size_t)row * (size_t)m->groups + (size_t)g] * scales[g];
    }
    return sum;
}

/* matmul of n vectors with the blocks [begin, end) of a matrix, both modes; the gap between rows of out is canaries */
static void check_product(const Kernels *kernels, const TestMatrix *t, int begin, int end, int n, int gap) {
    const Matrix *m = &t->m;
    const int rows = m->rows < end * LANES ? m->rows : end * LANES, cols = m->cols;
    const size_t ld_x = (size_t)(cols + gap), ld_out = (size_t)(m->rows + gap);
    const size_t ld_q = (size_t)(m->groups * m->group_quads * 4), groups = (size_t)m->groups, vectors = (size_t)n;
    Guarded x = guarded_floats(ld_x * vectors - (size_t)gap), out = guarded_floats(ld_out * vectors - (size_t)gap);
    Guarded q = guarded(vectors * ld_q), scale = guarded_floats(vectors * groups), bias = guarded_floats(vectors * groups);
    Vectors in = {floats(x), ld_x, (int8_t *)q.array, floats(scale), (int32_t *)(void *)bias.array};
    memset(x.array, 0xff, x.bytes); /* NaN in the gaps */
    for (int i = 0; i < n; i++) {
        fill(floats(x) + (size_t)i * ld_x, (size_t)cols);
        if (m->type == L2P_INT8) {
            if (i % 2) /* the largest activations */
                for (int k = 0; k < cols; k++) floats(x)[(size_t)i * ld_x + (size_t)k] = k % 3 ? 1.0f : -1.0f;
            kernels->quantize(&in, i, floats(x) + (size_t)i * ld_x, m);
        }
    }
    const int numerics = kernels->for_float32->numerics;
    for (int mode = MATMUL_STORE; mode <= MATMUL_ADD; mode++) {
        for (int i = 0; i < n; i++)
            for (int row = begin * LANES; row < rows; row++)
                floats(out)[(size_t)i * ld_out + (size_t)row] = mode == MATMUL_ADD ? (float)(row - i) : NAN;
        now("%s matmul (%d, %d), group %d, blocks %d to %d, %d vectors, mode %d", kernels->name, m->rows, cols,
            m->group, begin, end, n, mode);
        kernels->matmul(m, begin, end, &in, n, floats(out), ld_out, mode);
        for (int i = 0; i < n; i++) {
            const float *o = floats(out) + (size_t)i * ld_out;
            for (int row = begin * LANES; row < rows; row++) {
                const float want = dot(t, numerics, row, in.f + (size_t)i * ld_x, in.q + (size_t)i * ld_q,
                                       in.scale + (size_t)i * groups, 0.0f);
                CHECK(same(o[row], mode == MATMUL_ADD ? (float)(row - i) + want : want));
            }
            CHECK(is_canary(o, (size_t)begin * LANES * sizeof(float)));
            if (i < n - 1) CHECK(is_canary(o + rows, (ld_out - (size_t)rows) * sizeof(float)));
        }
    }
    unguard(x), unguard(out), unguard(q), unguard(scale), unguard(bias);
}

static void check_matmul(const Kernels *kernels) {
    static const int rows[] = {1, 15, 16, 17, 33, 128, 239}; /* 239: more than a panel of 8 blocks, the last one short */
    static const int counts[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25};
    static const struct {
        int type, cols, group;
    } kinds[] = {{L2P_FLOAT32, 1, 0}, {L2P_FLOAT32, 15, 0}, {L2P_FLOAT32, 16, 0}, {L2P_FLOAT32, 33, 0},
                 {L2P_INT8, 5, 1},    {L2P_INT8, 6, 3},     {L2P_INT8, 12, 4},    {L2P_INT8, 15, 5},
                 {L2P_INT8, 96, 32},  {L2P_INT8, 130, 65}};
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++)
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            TestMatrix t =
                test_matrix(kinds[kind].type, rows[r], kinds[kind].cols, kinds[kind].group, kernels->int8_offset);
            const int blocks = t.m.blocks;
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                check_product(kernels, &t, 0, blocks, counts[c], (int)c % 3);
                if (blocks > 1) check_product(kernels, &t, 1, blocks, counts[c], 1); /* a second thread's share */
                if (blocks > 9) check_product(kernels, &t, 2, 9, counts[c], 2);
            }
            check_product(kernels, &t, 0, 0, 1, 0); /* a thread without a share */
            free_test_matrix(t);
        }
}

/* The bare product of attention: blocks further apart than they are long, and sums computed in two parts */
static void check_matmul_f32(const FloatKernels *kernels) {
    static const int counts[] = {1, 2, 3, 5, 8, 13};
    for (int blocks = 1; blocks <= 9; blocks += blocks == 3 ? 5 : 1)
        for (int cols = 1; cols <= 17; cols += cols == 1 ? 14 : 1)
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                const int n = counts[c], rows = blocks * LANES;
                const size_t stride = (size_t)(cols + 1) * LANES, ld_x = (size_t)cols + 2, ld_out = (size_t)rows + 1;
                Guarded w = guarded_floats(stride * (size_t)blocks - LANES), x = guarded_floats(ld_x * (size_t)n - 2);
                Guarded out = guarded_floats(ld_out * (size_t)n - 1);
                memset(w.array, 0xff, w.bytes);
                memset(x.array, 0xff, x.bytes);
                for (int b = 0; b < blocks; b++) fill(floats(w) + (size_t)b * stride, (size_t)cols * LANES);
                for (int i = 0; i < n; i++) fill(floats(x) + (size_t)i * ld_x, (size_t)cols);
                for (int mode = MATMUL_STORE; mode <= MATMUL_CONTINUE; mode++) {
                    now("matmul_f32 of %d blocks, %d columns, %d vectors, mode %d", blocks, cols, n, mode);
                    for (int i = 0; i < n; i++)
                        for (int row = 0; row < rows; row++)
                            floats(out)[(size_t)i * ld_out + (size_t)row] = mode == MATMUL_STORE ? NAN : 0.75f;
                    kernels->matmul_f32(floats(w), stride, blocks, cols, floats(x), ld_x, n, floats(out), ld_out, mode);
                    for (int i = 0; i < n; i++) {
                        for (int row = 0; row < rows; row++) {
                            float sum = mode == MATMUL_CONTINUE ? 0.75f : 0.0f;
                            for (int k = 0; k < cols; k++)
                                sum = multiply_add(kernels->numerics,
                                                   floats(w)[(size_t)(row / LANES) * stride + (size_t)(k * LANES + row % LANES)],
                                                   floats(x)[(size_t)i * ld_x + (size_t)k], sum);
                            if (mode == MATMUL_ADD) sum = 0.75f + sum;
                            CHECK(same(floats(out)[(size_t)i * ld_out + (size_t)row], sum));
                        }
                        if (i < n - 1) CHECK(is_canary(floats(out) + (size_t)i * ld_out + rows, sizeof(float)));
                    }
                }
                unguard(w), unguard(x), unguard(out);
            }
}

/* Quantize as the second of three vectors; q, scale and bias must be these, padding 0, the neighbours untouched */
static void check_group(const Kernels *kernels, const float *values, int group, int groups) {
    const Matrix m = {.type = L2P_INT8, .cols = group * groups, .group = group, .groups = groups,
                      .group_quads = (group + 3) / 4};
    const size_t padded = (size_t)m.group_quads * 4, ld_q = padded * (size_t)groups, count = (size_t)groups;
    Guarded x = guarded_floats((size_t)m.cols), q = guarded(2 * ld_q), scale = guarded_floats(2 * count);
    Guarded bias = guarded_floats(2 * count);
    memcpy(x.array, values, x.bytes);
    const Vectors out = {NULL, 0, (int8_t *)q.array, floats(scale), (int32_t *)(void *)bias.array};
    kernels->quantize(&out, 1, floats(x), &m);
    for (int g = 0; g < groups; g++) {
        const float *group_of = values + g * group;
        float max = 0.0f;
        int finite = 1;
        for (int i = 0; i < group; i++) {
            max = fmaxf(max, fabsf(group_of[i]));
            finite &= isfinite(group_of[i]) != 0;
        }
        const float want_scale = finite ? max / 127.0f : NAN;
        int32_t sum = 0;
        for (int i = 0; i < (int)padded; i++) {
            /* roundf rounds halves away from zero; a scale below the normal numbers cannot be divided by */
            const int want = i < group && want_scale >= 0x1p-126f ? (int)roundf(group_of[i] / want_scale) : 0;
            CHECK(out.q[ld_q + (size_t)g * padded + (size_t)i] == want);
            sum += want;
        }
        CHECK(same(out.scale[count + (size_t)g], want_scale));
        CHECK(out.bias[count + (size_t)g] == -kernels->int8_offset * sum);
    }
    CHECK(is_canary(q.array, ld_q) && is_canary(scale.array, count * 4) && is_canary(bias.array, count * 4));
    unguard(x), unguard(q), unguard(scale), unguard(bias);
}

static void check_quantize(const Kernels *kernels) {
    float x[260];
    static const int groups[] = {1, 2, 3, 4, 5, 15, 16, 17, 32, 33, 64, 65};
    for (size_t s = 0; s < sizeof groups / sizeof groups[0]; s++) {
        now("%s quantize in groups of %d", kernels->name, groups[s]);
        fill(x, sizeof x / sizeof x[0]);
        for (int count = 1; count <= 4; count++) check_group(kernels, x, groups[s], count);
        memset(x, 0, sizeof x);
        check_group(kernels, x, groups[s], 3);
        x[0] = -0.0f;
        check_group(kernels, x, groups[s], 1);
        static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 1e-45f, -1e-40f, 1.1754944e-38f, 1.4e-36f,
                                    1.5e-36f, 3.4028235e38f, -3.4028235e38f};
        for (size_t k = 0; k < sizeof odd / sizeof odd[0]; k++) /* at the last place of the second of three groups */
            for (int rest = 0; rest < 2; rest++) {
                for (int i = 0; i < 260; i++) x[i] = rest ? random_float() * fminf(fabsf(odd[k]), 1.0f) : 0.0f;
                if (isnan(odd[k]))
                    for (int i = 0; i < 260; i++) x[i] = rest ? random_float() : 0.0f;
                x[2 * groups[s] - 1] = odd[k];
                check_group(kernels, x, groups[s], 3);
            }
    }
    for (int power = -100; power <= 100; power += 25) { /* the scale is this power of two, so that halves are exact */
        now("%s quantize ties at 2^%d", kernels->name, power);
        x[0] = ldexpf(127.0f, power);
        for (int i = 1; i < 260; i++) x[i] = ldexpf((float)(i % 254 - 127) + 0.5f, power);
        check_group(kernels, x, 260, 1);
        for (int i = 1; i < 260; i++) x[i] = nextafterf(x[i], i % 2 ? 0.0f : x[i] * 2); /* just below, just above */
        for (int i = 0; i < 260; i++) x[i] = fabsf(x[i]) > x[0] ? 0.0f : x[i];
        check_group(kernels, x, 260, 1);
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
            if (at > 0) x[at - 1] = NAN; /* counts as nothing */
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

static void check_kernels(void) {
    const char *name;
    for (int isa = 0; (name = l2p_isa_name(isa)); isa++) {
        const Kernels *kernels = kernels_of_isa(isa);
        if (!kernels) continue;
        lcg_state = 1;
        now("%s", name);
        CHECK(kernels->for_int8->numerics == EXACT);
        CHECK(kernels->for_float32->numerics == (strcmp(name, "portable") ? FUSED : EXACT));
        const FloatKernels *sets[] = {kernels->for_float32, kernels->for_int8};
        for (int i = 0; i < 2; i++) {
            if (i && sets[1] == sets[0]) break;
            check_rmsnorm(sets[i]);
            check_softmax(sets[i]);
            check_exp(sets[i]);
            check_swiglu(sets[i]);
            check_matmul_f32(sets[i]);
        }
        check_matmul(kernels);
        check_quantize(kernels);
        check_argmax(kernels);
        printf("%s kernels\n", name);
    }
}
