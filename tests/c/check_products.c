/* The kernels of matrix products, each alone: matmul of each type, attention's bare matmul, and quantizing; and packing
 * int4, for it has the same layout. */
#include "check.h"
#include "feeding.h"
#include "parts.h"

static float multiply_add(int numerics, float a, float b, float c) {
    return numerics == FUSED ? fmaf(a, b, c) : c + a * b;
}

/* A random matrix (rows, cols), row by row, and the same packed by the layout that engine.h describes */
typedef struct {
    Matrix m;
    Guarded packed;
    float *values; /* float32, bfloat16: (rows, cols) */
    int8_t *q;     /* int8, int4: (rows, cols) */
    float *scales; /* int8, int4: (rows, groups) */
} TestMatrix;

static TestMatrix test_matrix(int type, int rows, int cols, int group, int offset) {
    TestMatrix t = {.m = {.type = type, .rows = rows, .cols = cols, .blocks = (rows + LANES - 1) / LANES}};
    Matrix *m = &t.m;
    const size_t size = (size_t)rows * (size_t)cols;
    if (type == L2P_FLOAT32 || type == L2P_BFLOAT16) {
        const size_t width = type == L2P_FLOAT32 ? 4 : 2;
        m->block_bytes = (size_t)cols * LANES * width;
        t.packed = guarded(m->block_bytes * (size_t)m->blocks);
        memset(t.packed.array, 0, t.packed.bytes);
        t.values = malloc(size * sizeof(float));
        fill(t.values, size);
        for (int row = 0; row < rows; row++)
            for (int k = 0; k < cols; k++) {
                unsigned char bytes[4], *value = (unsigned char *)&t.values[(size_t)row * (size_t)cols + (size_t)k];
                if (width == 2) value[0] = value[1] = 0; /* the lower half; the machines we test are little-endian */
                memcpy(bytes, value, 4);
                const size_t at = ((size_t)(row / LANES) * (size_t)cols + (size_t)k) * LANES + (size_t)(row % LANES);
                memcpy(t.packed.array + at * width, bytes + 4 - width, width);
            }
    } else if (type == L2P_INT4) {
        m->group = INT4_GROUP;
        m->groups = (cols + INT4_GROUP - 1) / INT4_GROUP;
        m->group_quads = INT4_GROUP / 4;
        m->group_bytes = INT4_GROUP / 2 * LANES + 2 * LANES;
        m->block_bytes = (size_t)m->groups * m->group_bytes + 64; /* as if rounded up */
        t.packed = guarded(m->block_bytes * (size_t)m->blocks);
        memset(t.packed.array, 0x88, t.packed.bytes);
        t.q = malloc(size);
        t.scales = malloc((size_t)rows * (size_t)m->groups * sizeof(float));
        for (int row = 0; row < m->blocks * LANES; row++)
            for (int k = 0; k < m->groups * INT4_GROUP; k++) {
                unsigned char *to =
                    t.packed.array + (size_t)(row / LANES) * m->block_bytes + (size_t)(k / INT4_GROUP) * m->group_bytes;
                const int in = k % INT4_GROUP, inside = row < rows && k < cols;
                const int value = inside ? (int)(random_u32() >> 28) - 8 : 0;
                if (inside) t.q[(size_t)row * (size_t)cols + (size_t)k] = (int8_t)value;
                unsigned char *both = to + in / 8 * 64 + row % LANES * 4 + in % 4;
                *both = (unsigned char)(in / 4 % 2 ? (*both & 15) | (value + 8) * 16 : (*both & 240) | (value + 8));
                if (in == 0) { /* 1 to 2 by 1024ths, times 2^-10: float16 has just these bits for it */
                    const uint16_t half = (uint16_t)(5 << 10 | random_u32() >> 22);
                    const float scale = (1.0f + (float)(half & 1023) / 1024.0f) / 1024.0f;
                    memcpy(to + INT4_GROUP / 2 * LANES + row % LANES * 2, &half, 2);
                    if (row < rows) t.scales[(size_t)row * (size_t)m->groups + (size_t)(k / INT4_GROUP)] = scale;
                }
            }
    } else {
        m->group = group;
        m->groups = cols / group;
        m->group_quads = (group + 3) / 4;
        const size_t quads_bytes = (size_t)m->group_quads * 4 * LANES, group_bytes = quads_bytes + 4 * LANES;
        m->group_bytes = group_bytes;
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
    if (!is_quantized(m)) {
        const float *w = t->values + (size_t)row * (size_t)m->cols;
        for (int k = 0; k < m->cols; k++) sum = multiply_add(numerics, w[k], x[k], sum);
        return sum;
    }
    for (int g = 0; g < m->groups; g++) {
        int32_t whole = 0;
        for (int k = 0; k < m->group && g * m->group + k < m->cols; k++)
            whole += t->q[(size_t)row * (size_t)m->cols + (size_t)(g * m->group + k)] * q[g * m->group_quads * 4 + k];
        const float scaled = (float)whole * t->scales[(size_t)row * (size_t)m->groups + (size_t)g];
        sum = multiply_add(m->type == L2P_INT8 ? EXACT : numerics, scaled, scales[g], sum);
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
    Guarded q = guarded(vectors * ld_q), scale = guarded_floats(vectors * groups);
    Guarded bias = guarded_floats(vectors * groups);
    Vectors in = {floats(x), ld_x, (int8_t *)q.array, floats(scale), (int32_t *)(void *)bias.array};
    memset(x.array, 0xff, x.bytes); /* NaN in the gaps */
    for (int i = 0; i < n; i++) {
        fill(floats(x) + (size_t)i * ld_x, (size_t)cols);
        if (is_quantized(m)) {
            if (i % 2) /* the largest activations */
                for (int k = 0; k < cols; k++) floats(x)[(size_t)i * ld_x + (size_t)k] = k % 3 ? 1.0f : -1.0f;
            kernels->quantize(&in, i, floats(x) + (size_t)i * ld_x, m);
        }
    }
    const int numerics = kernels->for_the_rest->numerics;
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

void check_matmul(const Kernels *kernels) {
    static const int rows[] = {1, 15, 16, 17, 239};          /* 239: more than a panel of blocks */
    static const int counts[] = {1, 2, 3, 5, 7, 12, 23, 27}; /* each size of tile, alone and in sums */
    static const struct {
        int type, cols, group;
    } kinds[] = {{L2P_FLOAT32, 1, 0},   {L2P_FLOAT32, 15, 0}, {L2P_FLOAT32, 16, 0}, {L2P_FLOAT32, 33, 0},
                 {L2P_INT8, 5, 1},      {L2P_INT8, 6, 3},     {L2P_INT8, 12, 4},    {L2P_INT8, 15, 5},
                 {L2P_INT8, 96, 32},    {L2P_INT8, 128, 64},  {L2P_INT8, 130, 65},  {L2P_BFLOAT16, 1, 0},
                 {L2P_BFLOAT16, 33, 0}, {L2P_INT4, 1, 0},     {L2P_INT4, 32, 0},    {L2P_INT4, 100, 0}};
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

static void check_bare(const FloatKernels *kernels, int type, int blocks, int cols, int n) {
    const int rows = blocks * LANES;
    const size_t stride = (size_t)(cols + 1) * LANES, ld_x = (size_t)cols + 2, ld_out = (size_t)rows + 1;
    const size_t width = type == L2P_BFLOAT16 ? 2 : 4, values = stride * (size_t)blocks - LANES;
    Guarded w = guarded(values * width), x = guarded_floats(ld_x * (size_t)n - 2);
    Guarded out = guarded_floats(ld_out * (size_t)n - 1);
    float *wide = malloc(values * sizeof(float));
    memset(w.array, 0xff, w.bytes);
    memset(x.array, 0xff, x.bytes);
    for (int b = 0; b < blocks; b++) {
        float *block = wide + (size_t)b * stride;
        fill(block, (size_t)cols * LANES);
        for (size_t at = 0; at < (size_t)cols * LANES; at++) {
            unsigned char *bytes = (unsigned char *)(block + at);
            if (width == 2) bytes[0] = bytes[1] = 0; /* the lower half */
            memcpy(w.array + ((size_t)b * stride + at) * width, bytes + 4 - width, width);
        }
    }
    for (int i = 0; i < n; i++) fill(floats(x) + (size_t)i * ld_x, (size_t)cols);
    for (int mode = MATMUL_STORE; mode <= MATMUL_CONTINUE; mode++) {
        now("matmul_bare of type %d, %d blocks, %d columns, %d vectors, mode %d", type, blocks, cols, n, mode);
        for (int i = 0; i < n; i++)
            for (int row = 0; row < rows; row++)
                floats(out)[(size_t)i * ld_out + (size_t)row] = mode == MATMUL_STORE ? NAN : 0.75f;
        const Blocks bare = {type, w.array, stride * width, blocks, cols};
        kernels->matmul_bare(&bare, floats(x), ld_x, n, floats(out), ld_out, mode);
        for (int i = 0; i < n; i++) {
            for (int row = 0; row < rows; row++) {
                const float *wr = wide + (size_t)(row / LANES) * stride + row % LANES;
                const float *xi = floats(x) + (size_t)i * ld_x;
                float sum = mode == MATMUL_CONTINUE ? 0.75f : 0.0f;
                for (int k = 0; k < cols; k++) sum = multiply_add(kernels->numerics, wr[k * LANES], xi[k], sum);
                if (mode == MATMUL_ADD) sum = 0.75f + sum;
                CHECK(same(floats(out)[(size_t)i * ld_out + (size_t)row], sum));
            }
            if (i < n - 1) CHECK(is_canary(floats(out) + (size_t)i * ld_out + rows, sizeof(float)));
        }
    }
    unguard(w), unguard(x), unguard(out);
    free(wide);
}

/* The bare product of attention: blocks further apart than they are long, and sums computed in two parts */
void check_matmul_bare(const FloatKernels *kernels) {
    static const int counts[] = {1, 2, 3, 5, 8, 13};
    for (int blocks = 1; blocks <= 9; blocks += blocks == 3 ? 5 : 1)
        for (int cols = 1; cols <= 17; cols += cols == 1 ? 14 : 1)
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                check_bare(kernels, L2P_FLOAT32, blocks, cols, counts[c]);
                check_bare(kernels, L2P_BFLOAT16, blocks, cols, counts[c]);
            }
}

/* Quantize as the second of three vectors; q, scale and bias must be these, padding 0, the neighbours untouched */
static void check_groups(const Kernels *kernels, int type, const float *values, int group, int groups, int short_by) {
    const Matrix m = {.type = type,
                      .cols = group * groups - short_by,
                      .group = group,
                      .groups = groups,
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
        const int n = g < groups - 1 ? group : group - short_by;
        for (int i = 0; i < n; i++) {
            max = fmaxf(max, fabsf(group_of[i]));
            finite &= isfinite(group_of[i]) != 0;
        }
        const float want_scale = finite ? max / 127.0f : NAN;
        int32_t sum = 0;
        for (int i = 0; i < (int)padded; i++) {
            /* roundf rounds halves away from zero; a scale below the normal numbers cannot be divided by */
            const int want = i < n && want_scale >= 0x1p-126f ? (int)roundf(group_of[i] / want_scale) : 0;
            CHECK(out.q[ld_q + (size_t)g * padded + (size_t)i] == want);
            sum += want;
        }
        CHECK(same(out.scale[count + (size_t)g], want_scale));
        CHECK(out.bias[count + (size_t)g] == -(type == L2P_INT4 ? INT4_OFFSET : kernels->int8_offset) * sum);
    }
    CHECK(is_canary(q.array, ld_q) && is_canary(scale.array, count * 4) && is_canary(bias.array, count * 4));
    unguard(x), unguard(q), unguard(scale), unguard(bias);
}

static void check_group(const Kernels *kernels, const float *values, int group, int groups) {
    check_groups(kernels, L2P_INT8, values, group, groups, 0);
}

void check_quantize(const Kernels *kernels) {
    float x[260];
    fill(x, sizeof x / sizeof x[0]);
    for (int short_by = 0; short_by < INT4_GROUP; short_by += 1 + short_by * 2) {
        now("%s quantize for int4, the last group short by %d", kernels->name, short_by);
        for (int count = 1; count <= 4; count++) check_groups(kernels, L2P_INT4, x, INT4_GROUP, count, short_by);
    }
    static const int groups[] = {1, 2, 3, 4, 5, 15, 16, 17, 32, 33, 64, 65};
    for (size_t s = 0; s < sizeof groups / sizeof groups[0]; s++) {
        now("%s quantize in groups of %d", kernels->name, groups[s]);
        fill(x, sizeof x / sizeof x[0]);
        for (int count = 1; count <= 4; count++) check_group(kernels, x, groups[s], count);
        memset(x, 0, sizeof x);
        check_group(kernels, x, groups[s], 3);
        x[0] = -0.0f;
        check_group(kernels, x, groups[s], 1);
        static const float odd[] = {NAN,      -NAN,     INFINITY,      -INFINITY,     1e-45f, -1e-40f, 1.1754944e-38f,
                                    1.4e-36f, 1.5e-36f, 3.4028235e38f, -3.4028235e38f};
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

/* Values and scales that are int4 already: each comes to its place as it is, and no quantizer has a say */
void check_packing_int4(void) {
    for (int shape = 0; shape < N_SHAPES; shape++) {
        l2p_config c = SHAPES[shape];
        c.weight_type = L2P_INT4;
        now("packing int4 of dim %d", c.dim);
        l2p_model *model;
        CHECK(l2p_model_new(&c, best_isa(), &model) == L2P_OK);
        TestMatrix t = test_matrix(L2P_INT4, c.vocab_size, c.dim, 0, 0);
        const Matrix *want = &t.m, *got = &model->embedding;
        const size_t n_scales = (size_t)c.vocab_size * (size_t)want->groups;
        Guarded values = guarded((size_t)c.vocab_size * (size_t)c.dim), scales = guarded(n_scales * 2);
        memcpy(values.array, t.q, values.bytes);
        for (size_t i = 0; i < n_scales; i++) {
            const uint16_t half = float_to_float16(t.scales[i]);
            memcpy(scales.array + 2 * i, &half, 2);
        }
        int64_t non_finite = 5;
        CHECK(l2p_model_set(model, L2P_TOKEN_EMBEDDING_TABLE, 0, L2P_INT4, values.array, scales.array, 1 + shape,
                            &non_finite) == L2P_OK);
        CHECK(non_finite == 5);
        CHECK(got->groups == want->groups && got->group_bytes == want->group_bytes && got->blocks == want->blocks);
        for (int group = 0; group < want->blocks * want->groups; group++) {
            const int b = group / want->groups, g = group % want->groups;
            const size_t at = (size_t)g * want->group_bytes, nibbles = INT4_GROUP / 2 * LANES;
            const unsigned char *a = got->data + (size_t)b * got->block_bytes + at;
            const unsigned char *e = want->data + (size_t)b * want->block_bytes + at;
            const int height = c.vocab_size - b * LANES < LANES ? c.vocab_size - b * LANES : LANES;
            if (memcmp(a, e, nibbles + 2 * (size_t)height) != 0) fail("group %d of block %d differs", g, b);
        }
        static const uint16_t odd[] = {0x7c00, 0xfc00, 0x7e01, 0x0000, 0x8000, 0x0001}; /* infinities and a NaN first */
        for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
            memcpy(scales.array + scales.bytes - 2, &odd[i], 2);
            non_finite = 0;
            CHECK(l2p_model_set(model, L2P_TOKEN_EMBEDDING_TABLE, 0, L2P_INT4, values.array, scales.array, 2,
                                &non_finite) == L2P_OK);
            CHECK(non_finite == (i < 3));
            const unsigned char *last = got->data + (size_t)(got->blocks - 1) * got->block_bytes +
                                        (size_t)got->groups * got->group_bytes - 2 * LANES;
            CHECK(memcmp(last + 2 * ((c.vocab_size - 1) % LANES), &odd[i], 2) == 0);
        }
        unguard(values), unguard(scales);
        free_test_matrix(t);
        l2p_model_free(model);
    }
}
