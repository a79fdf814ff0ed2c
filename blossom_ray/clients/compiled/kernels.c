/* Optimizer steps of one client on a CPU, in one call: forward, loss, backward, step, batch after batch.

   A model is a list of operations on buffers, which program.py makes; kinds and fields are numbered alike there. A
   client's parameters stay in the processor's caches while it trains. Weights lie transposed, (inputs, outputs), with
   outputs filled up with zeros to whole PADs, as the rows of all buffers are: products run along outputs, and what
   fills up stays zero in values and in slopes. Sums have one order, so that the same batch gives the same bits. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define MAX_VECTORS 4
#elif defined(__AVX__)
#define LANES 8
#define MAX_VECTORS 2
#else
#define LANES 4
#define MAX_VECTORS 4
#endif
#define PAD 16 /* of rows, in floats, whatever the processor: layouts are the same everywhere */
#define ROWS_AT_ONCE 64 /* of products over rows: what they read twice stays in the first cache */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(4 * LANES)));
typedef const float *const *Rows;

#define LOAD(from) (*(const vec *)(from))
#define STORE(to) (*(vec *)(to))
static inline vec all(float value) { return value - (vec){0}; }

enum { LINEAR, CONVOLUTION, GRU, RELU, SIGMOID, TANH, DROPOUT, HALVE, MEAN, COPY, SOFTMAX, ADD, SCALED, GATED };
enum { CROSS_ENTROPY, BINARY_CROSS_ENTROPY, SQUARED_ERROR };

/* Values of a buffer are (samples, pad + steps + pad, width), from `place` on; where that is below 0 they are the
   client's samples of input -1 - place. What is given has no slopes. */
typedef struct { int64_t place, steps, width, pad, is_given; } Buffer;

typedef struct {
    int64_t kind, in, out, other, block, weights, bias, size, extra;
    double factor;
} Op;

/* Where a block's parameters begin and end, and how it is stepped. */
typedef struct {
    int64_t begin, end, is_trained, is_adam, is_decoupled, is_nesterov, has_offset, num_steps;
    double rate, momentum, decay, mu, beta1, beta2, eps;
} Block;

typedef struct {
    const Op *ops;
    int64_t num_ops;
    const Buffer *buffers;
    int64_t num_buffers;
    Block *blocks;
    int64_t num_blocks, loss, output, num_outputs;
    float *values, *slopes;             /* of buffers */
    float *parameters, *gradients;      /* of all blocks; gradients are zero between steps */
    float *first_moments, *second_moments, *anchors, *offsets; /* like parameters */
    float *turned;                      /* room for the largest weights */
    const float *zeros;                 /* as many as the widest row */
    const float **sources;              /* room for pointers to rows */
    float **targets;
    const float *const *samples;        /* by input */
    const void *labels;
    const float *masks;                 /* of dropout, one draw after the other: 0 and 1 */
} Client;

const char *compiler(void) { return __VERSION__; }

/* Products: out[r] (+)= bias + in[r] weights, for R rows and C vectors of columns. */
#define PRODUCT(R, C)                                                                                                  \
    static void product_##R##_##C(Rows in, int64_t num_in, const float *weights, int64_t width, const float *bias,     \
                                  float *const *out, int64_t column) {                                                 \
        vec sums[R][C];                                                                                                \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int c = 0; c < C; c++) sums[r][c] = LOAD((bias ? bias : out[r]) + column + c * LANES);                \
        for (int64_t i = 0; i < num_in; i++) {                                                                         \
            vec row[C];                                                                                                \
            for (int c = 0; c < C; c++) row[c] = LOAD(weights + i * width + column + c * LANES);                       \
            for (int r = 0; r < R; r++) {                                                                              \
                vec value = all(in[r][i]);                                                                             \
                for (int c = 0; c < C; c++) sums[r][c] += value * row[c];                                              \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int c = 0; c < C; c++) STORE(out[r] + column + c * LANES) = sums[r][c];                               \
    }
/* Gradients of weights: weights[f] += scale sum_r in[r][f] slopes[r], for F inputs and C vectors of columns. */
#define OUTER(F, C)                                                                                                    \
    static void outer_##F##_##C(Rows in, Rows slopes, int64_t num_rows, int64_t first, float scale, float *weights,    \
                                int64_t width, int64_t column) {                                                       \
        vec sums[F][C];                                                                                                \
        memset(sums, 0, sizeof sums);                                                                                  \
        for (int64_t r = 0; r < num_rows; r++) {                                                                       \
            vec row[C];                                                                                                \
            for (int c = 0; c < C; c++) row[c] = LOAD(slopes[r] + column + c * LANES);                                 \
            for (int f = 0; f < F; f++) {                                                                              \
                vec value = all(in[r][first + f]);                                                                     \
                for (int c = 0; c < C; c++) sums[f][c] += value * row[c];                                              \
            }                                                                                                          \
        }                                                                                                              \
        for (int f = 0; f < F; f++)                                                                                    \
            for (int c = 0; c < C; c++) {                                                                              \
                float *to = weights + (first + f) * width + column + c * LANES;                                        \
                STORE(to) = LOAD(to) + scale * sums[f][c];                                                             \
            }                                                                                                          \
    }
#define OF_ALL_SIZES(MAKE)                                                                                             \
    MAKE(8, 1) MAKE(8, 2) MAKE(4, 1) MAKE(4, 2) MAKE(4, 3) MAKE(4, 4) MAKE(1, 1) MAKE(1, 2) MAKE(1, 3) MAKE(1, 4)
OF_ALL_SIZES(PRODUCT)
OF_ALL_SIZES(OUTER)

typedef void (*Product)(Rows, int64_t, const float *, int64_t, const float *, float *const *, int64_t);
typedef void (*Outer)(Rows, Rows, int64_t, int64_t, float, float *, int64_t, int64_t);
static const Product products[][5] = {{0, product_8_1, product_8_2, 0, 0},
                                      {0, product_4_1, product_4_2, product_4_3, product_4_4},
                                      {0, product_1_1, product_1_2, product_1_3, product_1_4}};
static const Outer outers[][5] = {{0, outer_8_1, outer_8_2, 0, 0},
                                  {0, outer_4_1, outer_4_2, outer_4_3, outer_4_4},
                                  {0, outer_1_1, outer_1_2, outer_1_3, outer_1_4}};
static const int heights[] = {8, 4, 1};

static inline int vectors_at(int64_t column, int64_t width) {
    int64_t left = (width - column) / LANES;
    return left < MAX_VECTORS ? (int)left : MAX_VECTORS;
}

static void product(Rows in, int64_t num_rows, int64_t num_in, const float *weights, int64_t width, const float *bias,
                    float *const *out) {
    for (int64_t column = 0, count; column < width; column += count * LANES) {
        count = vectors_at(column, width);
        for (int64_t tall = 0, r = 0; tall < 3; tall++)
            for (; products[tall][count] && r + heights[tall] <= num_rows; r += heights[tall])
                products[tall][count](in + r, num_in, weights, width, bias, out + r, column);
    }
}

static void outer(Rows in, Rows slopes, int64_t num_rows, int64_t num_in, float scale, float *weights, int64_t width) {
    for (int64_t begin = 0; begin < num_rows; begin += ROWS_AT_ONCE) {
        int64_t rows = num_rows - begin < ROWS_AT_ONCE ? num_rows - begin : ROWS_AT_ONCE;
        for (int64_t column = 0, count; column < width; column += count * LANES) {
            count = vectors_at(column, width);
            for (int64_t tall = 0, f = 0; tall < 3; tall++)
                for (; outers[tall][count] && f + heights[tall] <= num_in; f += heights[tall])
                    outers[tall][count](in + begin, slopes + begin, rows, f, scale, weights, width, column);
        }
    }
}

static void sum_rows(Rows rows, int64_t num_rows, int64_t width, float scale, float *to) {
    for (int64_t column = 0; column < width; column += LANES) {
        vec sum = {0};
        for (int64_t r = 0; r < num_rows; r++) sum += LOAD(rows[r] + column);
        STORE(to + column) = LOAD(to + column) + scale * sum;
    }
}

static float dot(const float *one, const float *other, int64_t width) {
    vec sums = {0};
    float sum = 0;
    for (int64_t i = 0; i < width; i += LANES) sums += LOAD(one + i) * LOAD(other + i);
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return sum;
}

/* to (width, num_in) = from (num_in, width), both multiples of LANES: squares of LANES, by halves, quarters, ... */
static void turn(const float *from, int64_t num_in, int64_t width, float *to) {
    for (int64_t i = 0; i < num_in; i += LANES)
        for (int64_t j = 0; j < width; j += LANES) {
            vec rows[LANES], mixed[LANES];
            for (int k = 0; k < LANES; k++) rows[k] = LOAD(from + (i + k) * width + j);
#define EXCHANGE(size)                                                                                                 \
    if (size < LANES) {                                                                                                \
        places low, high;                                                                                              \
        for (int k = 0; k < LANES; k++) {                                                                              \
            low[k] = k & size ? LANES + (k ^ size) : k;                                                                \
            high[k] = k & size ? LANES + k : k ^ size;                                                                 \
        }                                                                                                              \
        for (int k = 0; k < LANES; k++)                                                                                \
            if (!(k & size)) {                                                                                         \
                mixed[k] = __builtin_shuffle(rows[k], rows[k + size], low);                                            \
                mixed[k + size] = __builtin_shuffle(rows[k], rows[k + size], high);                                    \
            }                                                                                                          \
        memcpy(rows, mixed, sizeof rows);                                                                              \
    }
            EXCHANGE(8) EXCHANGE(4) EXCHANGE(2) EXCHANGE(1)
            for (int k = 0; k < LANES; k++) STORE(to + (j + k) * num_in + i) = rows[k];
        }
}

/* exp(x) within 2 units in the last place, for x in -87..88; below and above that of the bound (Cephes' polynomial). */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float power = x * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number in the lowest bits */
    int32_t bits;
    memcpy(&bits, &power, 4);
    power -= 12582912.0f;
    float rest = x - power * 0.693359375f - power * -2.12194440e-4f;
    float value = 1.9875691500e-4f;
    value = value * rest + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = value * rest * rest + rest + 1.0f;
    bits = (int32_t)(((uint32_t)bits - 0x4B400000u + 127u) << 23);
    float scale;
    memcpy(&scale, &bits, 4);
    return value * scale;
}
static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
/* Near 0 its series, where the difference would cancel. */
static inline float tangent(float x) {
    float square = x * x;
    float series = x * (1.0f + square * (-1.0f / 3 + square * (2.0f / 15 + square * (-17.0f / 315))));
    float whole = 2.0f * sigmoid(2.0f * x) - 1.0f;
    return square < 0.0225f ? series : whole;
}

/* Pointers to the rows of some steps of a buffer: sample by sample, within each step by step. */
static float *row_of(const Client *c, int64_t buffer, float *area, int64_t sample, int64_t step) {
    const Buffer *b = c->buffers + buffer;
    return area + b->place + (sample * (b->steps + 2 * b->pad) + b->pad + step) * b->width;
}
static const float *const *inputs_of(const Client *c, const int64_t *order, int64_t buffer, int64_t samples,
                                     int64_t first, int64_t steps) {
    const Buffer *b = c->buffers + buffer;
    for (int64_t s = 0, at = 0; s < samples; s++)
        for (int64_t t = first; t < first + steps; t++)
            c->sources[at++] = b->place < 0 ? c->samples[-1 - b->place] + (order[s] * b->steps + t) * b->width
                                            : row_of(c, buffer, c->values, s, t);
    return c->sources;
}
static float *const *rows_of(const Client *c, int64_t buffer, float *area, int64_t samples, int64_t first,
                             int64_t steps) {
    for (int64_t s = 0, at = 0; s < samples; s++)
        for (int64_t t = first; t < first + steps; t++) c->targets[at++] = row_of(c, buffer, area, s, t);
    return c->targets;
}

/* The way there. */

static void gru_forward(const Client *c, const Op *op, const int64_t *order, int64_t samples) {
    const Buffer *states = c->buffers + op->out, *gates = c->buffers + op->other;
    int64_t width = states->width, steps = states->steps;
    Rows in = inputs_of(c, order, op->in, samples, 0, steps);
    product(in, samples * steps, op->size, c->parameters + op->weights, gates->width, c->parameters + op->bias,
            rows_of(c, op->other, c->values, samples, 0, steps));
    const float *weights = c->parameters + op->extra, *bias = weights + width * gates->width;
    for (int64_t t = 0; t < steps; t++) {
        for (int64_t s = 0; s < samples; s++)
            c->sources[s] = t ? row_of(c, op->out, c->values, s, t - 1) : c->zeros;
        float *const *given = rows_of(c, op->other + 1, c->values, samples, t, 1);
        product(c->sources, samples, width, weights, gates->width, bias, given);
        for (int64_t s = 0; s < samples; s++) {
            float *restrict gate = row_of(c, op->other, c->values, s, t);
            float *restrict state = row_of(c, op->out, c->values, s, t);
            const float *restrict recurrent = given[s], *restrict before = c->sources[s];
            for (int64_t i = 0; i < 2 * width; i++) gate[i] = sigmoid(gate[i] + recurrent[i]);
            for (int64_t i = 0; i < width; i++) {
                float candidate = tangent(gate[2 * width + i] + gate[i] * recurrent[2 * width + i]);
                gate[2 * width + i] = candidate;
                state[i] = (before[i] - candidate) * gate[width + i] + candidate;
            }
        }
    }
}

static void softmax(float *row, int64_t width, int64_t kept) {
    float largest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < width; i++)
        if (kept >> i & 1) largest = row[i] > largest ? row[i] : largest;
    for (int64_t i = 0; i < width; i++) sum += row[i] = kept >> i & 1 ? exponential(row[i] - largest) : 0;
    for (int64_t i = 0; i < width; i++) row[i] /= sum;
}

/* What a linear layer or a convolution multiplies its weights with: of the latter a step and those around it. */
static Rows factors_of(const Client *c, const Op *op, const int64_t *order, int64_t samples, int64_t *num_in) {
    const Buffer *in = c->buffers + op->in;
    *num_in = op->kind == CONVOLUTION ? op->size * in->width : op->size;
    return inputs_of(c, order, op->in, samples, op->kind == CONVOLUTION ? -in->pad : 0, c->buffers[op->out].steps);
}

static void linear_forward(const Client *c, const Op *op, const int64_t *order, int64_t samples) {
    const Buffer *out = c->buffers + op->out;
    int64_t num_in;
    Rows rows = factors_of(c, op, order, samples, &num_in);
    product(rows, samples * out->steps, num_in, c->parameters + op->weights, out->width, c->parameters + op->bias,
            rows_of(c, op->out, c->values, samples, 0, out->steps));
}

/* Returns the masks that are left. */
static const float *forward(const Client *c, const Op *op, const int64_t *order, int64_t samples, const float *masks) {
    const Buffer *in = c->buffers + op->in, *out = c->buffers + op->out;
    int64_t steps = out->steps, width = out->width;
    float factor = (float)op->factor;
    if (op->kind == LINEAR || op->kind == CONVOLUTION) {
        linear_forward(c, op, order, samples);
        return masks;
    }
    if (op->kind == GRU) {
        gru_forward(c, op, order, samples);
        return masks;
    }
    for (int64_t s = 0; s < samples; s++) {
        float *restrict to = row_of(c, op->out, c->values, s, 0);
        const float *restrict from = in->place < 0 ? c->samples[-1 - in->place] + order[s] * in->steps * in->width
                                                   : row_of(c, op->in, c->values, s, 0);
        int64_t size = steps * width;
        switch (op->kind) {
        case RELU: for (int64_t i = 0; i < size; i++) to[i] = to[i] < 0 ? 0 : to[i]; break; /* NaN stays */
        case SIGMOID: for (int64_t i = 0; i < size; i++) to[i] = sigmoid(to[i]); break;
        case TANH: for (int64_t i = 0; i < size; i++) to[i] = tangent(to[i]); break;
        case DROPOUT: /* masks are (channels, steps), or (channels,) */
            for (int64_t t = 0; t < steps; t++)
                for (int64_t i = 0; i < op->size; i++) to[t * width + i] *= masks[i * steps + t] * factor;
            masks += op->size * steps;
            break;
        case HALVE: /* the larger of two steps */
            for (int64_t t = 0; t < steps; t++)
                for (int64_t i = 0; i < width; i++) {
                    float one = from[2 * t * width + i], two = from[(2 * t + 1) * width + i];
                    to[t * width + i] = two > one || two != two ? two : one;
                }
            break;
        case MEAN:
            memset(to, 0, 4 * width);
            for (int64_t t = 0; t < in->steps; t++)
                for (int64_t i = 0; i < width; i++) to[i] += from[t * width + i];
            for (int64_t i = 0; i < width; i++) to[i] /= (float)in->steps;
            break;
        case COPY: /* `size` values of each step, from column `extra` on */
            for (int64_t t = 0; t < steps; t++) memcpy(to + t * width + op->extra, from + t * in->width, 4 * op->size);
            break;
        case SOFTMAX: softmax(to, op->size, op->extra); break;
        default: { /* of several terms the first, which has no `extra`, takes the place of what was there */
            const float *other = op->other < 0 ? from : row_of(c, op->other, c->values, s, 0);
            float scale = op->kind == SCALED ? other[op->size] : factor;
            if (!op->extra) memset(to, 0, 4 * width);
            if (op->kind == GATED) for (int64_t i = 0; i < width; i++) to[i] += from[i] * other[i];
            else for (int64_t i = 0; i < width; i++) to[i] += scale * from[i];
        }
        }
    }
    return masks;
}

/* The way back: from the slopes of `out` to those of `in`, and to gradients, or steps of a block that needs no more. */

static int is_plain(const Block *b) { /* plain SGD, which steps at once */
    return !b->is_adam && !b->momentum && !b->decay && !b->mu && !b->has_offset;
}

static float *destination(const Client *c, const Op *op, float *scale) {
    const Block *b = c->blocks + op->block;
    *scale = is_plain(b) ? (float)-b->rate : 1;
    return is_plain(b) ? c->parameters : c->gradients;
}

static void gru_backward(const Client *c, const Op *op, const int64_t *order, int64_t samples) {
    const Buffer *states = c->buffers + op->out, *gates = c->buffers + op->other;
    int64_t width = states->width, steps = states->steps, wide = gates->width;
    const float *weights = c->parameters + op->extra;
    turn(weights, width, wide, c->turned);
    for (int64_t t = steps - 1; t >= 0; t--) {
        for (int64_t s = 0; s < samples; s++) {
            const float *restrict gate = row_of(c, op->other, c->values, s, t);
            const float *restrict before = t ? row_of(c, op->out, c->values, s, t - 1) : c->zeros;
            const float *restrict candidate = row_of(c, op->other + 1, c->values, s, t) + 2 * width;
            const float *restrict slope = row_of(c, op->out, c->slopes, s, t);
            float *restrict given = row_of(c, op->other, c->slopes, s, t);
            float *restrict recurrent = row_of(c, op->other + 1, c->slopes, s, t);
            for (int64_t i = 0; i < width; i++) {
                float reset = gate[i], update = gate[width + i], value = gate[2 * width + i];
                float at_candidate = slope[i] * (1 - update) * (1 - value * value);
                float at_reset = at_candidate * candidate[i] * reset * (1 - reset);
                float at_update = slope[i] * (before[i] - value) * update * (1 - update);
                given[i] = recurrent[i] = at_reset;
                given[width + i] = recurrent[width + i] = at_update;
                given[2 * width + i] = at_candidate;
                recurrent[2 * width + i] = at_candidate * reset;
            }
            if (t) {
                float *restrict earlier = row_of(c, op->out, c->slopes, s, t - 1);
                for (int64_t i = 0; i < width; i++) earlier[i] += slope[i] * gate[width + i];
            }
        }
        if (t) {
            for (int64_t s = 0; s < samples; s++) c->sources[s] = row_of(c, op->other + 1, c->slopes, s, t);
            product(c->sources, samples, wide, c->turned, width, 0, rows_of(c, op->out, c->slopes, samples, t - 1, 1));
        }
    }
    float scale, *to = destination(c, op, &scale);
    int64_t num_rows = samples * steps;
    if (!c->buffers[op->in].is_given) {
        int64_t width_in = c->buffers[op->in].width;
        turn(c->parameters + op->weights, width_in, wide, c->turned);
        Rows given = (Rows)rows_of(c, op->other, c->slopes, samples, 0, steps);
        memcpy(c->sources, given, sizeof *given * num_rows);
        product(c->sources, num_rows, wide, c->turned, width_in, 0, rows_of(c, op->in, c->slopes, samples, 0, steps));
    }
    if (!c->blocks[op->block].is_trained) return;
    Rows rows = inputs_of(c, order, op->in, samples, 0, steps);
    Rows slopes = (Rows)rows_of(c, op->other, c->slopes, samples, 0, steps);
    outer(rows, slopes, num_rows, op->size, scale, to + op->weights, wide);
    sum_rows(slopes, num_rows, wide, scale, to + op->bias);
    for (int64_t s = 0, at = 0; s < samples; s++)
        for (int64_t t = 0; t < steps; t++) c->sources[at++] = t ? row_of(c, op->out, c->values, s, t - 1) : c->zeros;
    slopes = (Rows)rows_of(c, op->other + 1, c->slopes, samples, 0, steps);
    outer(c->sources, slopes, num_rows, width, scale, to + op->extra, wide);
    sum_rows(slopes, num_rows, wide, scale, to + op->extra + width * wide);
}

static void linear_backward(const Client *c, const Op *op, const int64_t *order, int64_t samples) {
    const Buffer *in = c->buffers + op->in, *out = c->buffers + op->out;
    int64_t steps = out->steps, width = out->width, num_rows = samples * steps, num_in;
    int64_t taps = op->kind == CONVOLUTION ? op->size : 1;
    if (!in->is_given) { /* a step in got its slope from the steps out around it, through the taps in turn */
        for (int64_t k = 0; k < taps; k++)
            turn(c->parameters + op->weights + k * in->width * width, in->width, width,
                 c->turned + (taps - 1 - k) * in->width * width);
        int64_t first = op->kind == CONVOLUTION ? in->pad - taps + 1 : 0;
        for (int64_t s = 0, at = 0; s < samples; s++)
            for (int64_t t = 0; t < in->steps; t++) c->sources[at++] = row_of(c, op->out, c->slopes, s, first + t);
        product(c->sources, samples * in->steps, taps * width, c->turned, in->width, 0,
                rows_of(c, op->in, c->slopes, samples, 0, in->steps));
    }
    if (!c->blocks[op->block].is_trained) return;
    float scale, *to = destination(c, op, &scale);
    Rows rows = factors_of(c, op, order, samples, &num_in);
    Rows slopes = (Rows)rows_of(c, op->out, c->slopes, samples, 0, steps);
    outer(rows, slopes, num_rows, num_in, scale, to + op->weights, width);
    sum_rows(slopes, num_rows, width, scale, to + op->bias);
}

static const float *backward(const Client *c, const Op *op, const int64_t *order, int64_t samples, const float *masks) {
    const Buffer *in = c->buffers + op->in, *out = c->buffers + op->out;
    int64_t steps = out->steps, width = out->width, size = steps * width;
    float factor = (float)op->factor;
    if (op->kind == LINEAR || op->kind == CONVOLUTION) {
        linear_backward(c, op, order, samples);
        return masks;
    }
    if (op->kind == GRU) {
        gru_backward(c, op, order, samples);
        return masks;
    }
    if (op->kind == DROPOUT) masks -= samples * op->size * steps;
    for (int64_t s = 0; s < samples && !in->is_given; s++) {
        const float *values = row_of(c, op->out, c->values, s, 0), *from = row_of(c, op->in, c->values, s, 0);
        float *slopes = row_of(c, op->out, c->slopes, s, 0), *to = row_of(c, op->in, c->slopes, s, 0);
        switch (op->kind) {
        case RELU: for (int64_t i = 0; i < size; i++) slopes[i] = values[i] > 0 ? slopes[i] : 0; break;
        case SIGMOID: for (int64_t i = 0; i < size; i++) slopes[i] *= values[i] * (1 - values[i]); break;
        case TANH: for (int64_t i = 0; i < size; i++) slopes[i] *= 1 - values[i] * values[i]; break;
        case DROPOUT: {
            const float *own = masks + s * op->size * steps;
            for (int64_t t = 0; t < steps; t++)
                for (int64_t i = 0; i < op->size; i++) slopes[t * width + i] *= own[i * steps + t] * factor;
            break;
        }
        case HALVE:
            for (int64_t t = 0; t < steps; t++)
                for (int64_t i = 0; i < width; i++) {
                    float one = from[2 * t * width + i], two = from[(2 * t + 1) * width + i];
                    float slope = slopes[t * width + i];
                    to[2 * t * width + i] = two > one ? 0 : slope;
                    to[(2 * t + 1) * width + i] = two > one ? slope : 0;
                }
            break;
        case MEAN:
            for (int64_t t = 0; t < in->steps; t++)
                for (int64_t i = 0; i < width; i++) to[t * width + i] += slopes[i] / (float)in->steps;
            break;
        case COPY:
            for (int64_t t = 0; t < steps; t++)
                for (int64_t i = 0; i < op->size; i++) to[t * in->width + i] += slopes[t * width + op->extra + i];
            break;
        case SOFTMAX: {
            float sum = dot(slopes, values, width);
            for (int64_t i = 0; i < width; i++) slopes[i] = values[i] * (slopes[i] - sum);
            break;
        }
        case ADD: for (int64_t i = 0; i < width; i++) to[i] += factor * slopes[i]; break;
        case SCALED: {
            float scale = row_of(c, op->other, c->values, s, 0)[op->size];
            row_of(c, op->other, c->slopes, s, 0)[op->size] += dot(from, slopes, width);
            for (int64_t i = 0; i < width; i++) to[i] += scale * slopes[i];
            break;
        }
        case GATED: {
            const float *gate = row_of(c, op->other, c->values, s, 0);
            float *at_gate = row_of(c, op->other, c->slopes, s, 0);
            for (int64_t i = 0; i < width; i++) {
                to[i] += gate[i] * slopes[i];
                at_gate[i] += from[i] * slopes[i];
            }
        }
        }
    }
    return masks;
}

/* The mean loss of a batch; its slopes. A label that no output has makes both NaN. */
static double losses(const Client *c, const int64_t *order, int64_t samples) {
    int64_t number = c->num_outputs;
    double total = 0;
    for (int64_t s = 0; s < samples; s++) {
        const float *restrict values = row_of(c, c->output, c->values, s, 0);
        float *restrict slopes = row_of(c, c->output, c->slopes, s, 0);
        if (c->loss == CROSS_ENTROPY) {
            int64_t label = ((const int64_t *)c->labels)[order[s]];
            float largest = values[0], sum = 0;
            if (label < 0 || label >= number) {
                total = slopes[0] = NAN;
                continue;
            }
            for (int64_t i = 1; i < number; i++) largest = values[i] > largest ? values[i] : largest;
            for (int64_t i = 0; i < number; i++) slopes[i] = exponential(values[i] - largest);
            for (int64_t i = 0; i < number; i++) sum += slopes[i];
            float scale = 1 / (sum * (float)samples);
            for (int64_t i = 0; i < number; i++) slopes[i] *= scale;
            slopes[label] -= 1 / (float)samples;
            total += logf(sum) + largest - values[label];
            continue;
        }
        const float *label = (const float *)c->labels + order[s] * number;
        double sum = 0;
        for (int64_t i = 0; i < number; i++) {
            float value = values[i], difference = value - label[i];
            float rest = exponential(value > 0 ? -value : value); /* of -|value|, which cannot overflow */
            if (c->loss == BINARY_CROSS_ENTROPY) {
                sum += (value > 0 ? value : 0) - value * label[i] + log1pf(rest);
                difference = (value > 0 ? 1 : rest) / (1 + rest) - label[i];
            } else {
                sum += difference * difference;
                difference *= 2;
            }
            slopes[i] = difference / (float)(samples * number);
        }
        total += sum / (double)number;
    }
    return total / (double)samples;
}

/* As torch.optim has them; what is stepped already has no gradient. */
static void step(const Client *c, Block *b) {
    int64_t size = b->end - b->begin;
    float *restrict values = c->parameters + b->begin, *restrict slopes = c->gradients + b->begin;
    b->num_steps++;
    if (b->mu) {
        const float *restrict anchor = c->anchors + b->begin, mu = (float)b->mu;
        for (int64_t i = 0; i < size; i++) slopes[i] += mu * (values[i] - anchor[i]);
    }
    if (b->has_offset) {
        const float *restrict offset = c->offsets + b->begin;
        for (int64_t i = 0; i < size; i++) slopes[i] += offset[i];
    }
    float rate = (float)b->rate, decay = b->is_decoupled ? 0 : (float)b->decay;
    float *restrict moments = c->first_moments + b->begin;
    if (b->is_adam) {
        float *restrict squares = c->second_moments + b->begin;
        float corrected = (float)(b->rate / (1 - pow(b->beta1, (double)b->num_steps)));
        float root = (float)sqrt(1 - pow(b->beta2, (double)b->num_steps)), eps = (float)b->eps;
        float old1 = (float)b->beta1, new1 = (float)(1 - b->beta1);
        float old2 = (float)b->beta2, new2 = (float)(1 - b->beta2);
        float shrink = b->is_decoupled ? (float)(1 - b->rate * b->decay) : 1;
        for (int64_t i = 0; i < size; i++) {
            float slope = slopes[i] + decay * values[i];
            moments[i] = old1 * moments[i] + new1 * slope;
            squares[i] = old2 * squares[i] + new2 * slope * slope;
            values[i] = shrink * values[i] - corrected * moments[i] / (sqrtf(squares[i]) / root + eps);
        }
    } else if (b->momentum) {
        float momentum = (float)b->momentum, own = b->is_nesterov ? 1 : 0, kept = b->is_nesterov ? momentum : 1;
        for (int64_t i = 0; i < size; i++) {
            float slope = slopes[i] + decay * values[i];
            moments[i] = momentum * moments[i] + slope;
            values[i] -= rate * (own * slope + kept * moments[i]);
        }
    } else {
        for (int64_t i = 0; i < size; i++) values[i] -= rate * (slopes[i] + decay * values[i]);
    }
    memset(slopes, 0, sizeof *slopes * size);
}

/* Steps on `num_samples` samples in the order given, a batch each. Returns the sum of losses, each before its step. */
double train(Client *c, const int64_t *order, int64_t num_samples, int64_t batch_size) {
    double total = 0;
    const float *masks = c->masks;
    for (int64_t begin = 0; begin < num_samples; begin += batch_size) {
        int64_t samples = num_samples - begin < batch_size ? num_samples - begin : batch_size;
        const int64_t *batch = order + begin;
        for (int64_t i = 0; i < c->num_ops; i++) masks = forward(c, c->ops + i, batch, samples, masks);
        for (const Buffer *b = c->buffers; b < c->buffers + c->num_buffers; b++)
            if (!b->is_given) memset(c->slopes + b->place, 0, 4 * samples * (b->steps + 2 * b->pad) * b->width);
        total += losses(c, batch, samples) * (double)samples;
        const float *back = masks;
        for (int64_t i = c->num_ops - 1; i >= 0; i--) back = backward(c, c->ops + i, batch, samples, back);
        for (int64_t i = 0; i < c->num_blocks; i++)
            if (c->blocks[i].is_trained && !is_plain(c->blocks + i)) step(c, c->blocks + i);
    }
    return total;
}

/* Between a block's vector and its place among the parameters, where `places[i]` is that of value i. */
void scatter(const float *restrict vector, const int32_t *restrict places, int64_t size, float *restrict parameters) {
    for (int64_t i = 0; i < size; i++) parameters[places[i]] = vector[i];
}

/* Returns the squared distance from `received`, another such vector. */
double gather(const float *restrict parameters, const int32_t *restrict places, int64_t size,
              const float *restrict received, float *restrict vector) {
    double sums[16] = {0}, total = 0;
    for (int64_t i = 0; i < size; i++) vector[i] = parameters[places[i]];
    for (int64_t i = 0; i + 16 <= size; i += 16)
        for (int k = 0; k < 16; k++) {
            double difference = (double)(vector[i + k] - received[i + k]);
            sums[k] += difference * difference;
        }
    for (int64_t i = size - size % 16; i < size; i++) {
        double difference = (double)(vector[i] - received[i]);
        total += difference * difference;
    }
    for (int k = 0; k < 16; k++) total += sums[k];
    return total;
}
