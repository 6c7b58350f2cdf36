/* Convolutions by Winograd's minimal filtering (Lavin & Gray 2015, arXiv 1509.09308), one thread: all in float32, or the
   products at the points in bfloat16, summed in float32.

   Tiles of outputs, TILE x TILE, are made from tiles of inputs, span x span: a tile's rows and columns are carried to
   the points by a table, multiplied there with the filters, channel by channel, and carried back. A block of tiles passes
   all three steps while it lies in a core's cache, which is why this is not three calls of a library: what is between
   the steps would go through memory. filtering.py beside this file makes the tables, checks every size and calls
   `filter_images`.

   With stride 1 a row of a tile has one value at each point. With stride 2 (3x3 alone) the first and the last tap see
   every second row of the inputs, the tap between them the others: two filterings, of two taps at 5 points and of one
   tap at 4 of these, so that what both make at a point is summed before it is carried back.

   GCC's vectors of LANES floats are used; the compiler is told the processor. Instructions are named for bfloat16 alone,
   where the processor has them. Built for AVX-512, ROWS x COLUMNS sums fill 24 of its 32 registers, for AVX2 12 of 16.
   Fewer tiles than ROWS at a block's end are multiplied by thirds. */

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors as arguments: of functions that are all inlined */
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16, THIRD = 4 };
#else
enum { LANES = 8, THIRD = 2 };
#endif
enum { ROWS = 3 * THIRD, COLUMNS = 2 * LANES, TILE = 4, MOST_SPAN = 9, MOST_TAPS = 25, MOST_VALUES = 4 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int mask __attribute__((vector_size(4 * LANES), aligned(4)));
typedef short halves __attribute__((vector_size(2 * LANES), aligned(2)));
/* Two bfloat16, the lower half the first of them: in each lane, and alone. */
typedef mask two_each __attribute__((may_alias, aligned(2)));
typedef int two __attribute__((may_alias, aligned(2)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* As in filtering.py, field by field. */
struct convolution {
    const float *x;          /* [batch, height, width, channels] */
    const void *filters;     /* for each point [wide / COLUMNS, values there, channels, COLUMNS], zeros beyond the
                                outputs; in bfloat16 [wide / COLUMNS, values there, channels / 2, COLUMNS, 2] */
    const float *bias;       /* [outputs] */
    const float *to_points;  /* [span, span] */
    const float *to_outputs; /* [TILE, points] */
    float *scratch;          /* scratch_floats() of them, of any content */
    const float *addend;     /* as y, added to it before it is rectified; or NULL */
    float *y;                /* [batch, height, width, outputs] of the output */
    long size, stride, batch, height, width, channels, outputs, padding, rectifies, bfloat16;
};

/* Where a tile lies: its image, and the place of its first output. */
struct place { long image, top, left; };

INLINE int points_of(int size, int stride) { return stride == 2 ? 5 : TILE + size - 1; }
INLINE int span_of(int size, int stride) { return stride * (TILE - 1) + size; }
/* The values of a tile that are multiplied at a point, by their numbers among span x span; returns how many. With
   stride 2 a row's values 0 to 4 are of the outer taps, at points 0 to 4, and 5 to 8 of the middle one, at all but 3. */
INLINE int values_at(int point, int stride, int *values) {
    values[0] = point;
    if (stride == 1) return 1;
    const int row = point / 5, column = point % 5, second[5] = {5, 6, 7, 0, 8};
    int count = 0;
    for (int i = 0; i < 1 + (row != 3); i++)
        for (int j = 0; j < 1 + (column != 3); j++)
            values[count++] = (i ? second[row] : row) * 9 + (j ? second[column] : column);
    return count;
}

static long output_side(long side, const struct convolution *c) {
    return (side + 2 * c->padding - c->size) / c->stride + 1;
}
static long tiles_along(long outputs) { return (outputs + TILE - 1) / TILE; }
static long wide(const struct convolution *c) { return (c->outputs + COLUMNS - 1) / COLUMNS * COLUMNS; }
static long tiles_of(const struct convolution *c) {
    return c->batch * tiles_along(output_side(c->height, c)) * tiles_along(output_side(c->width, c));
}
/* What lies at the points: for each tile, for each of its groups of channels, a vector's bytes for each value, so that
   the steps before and after the products pass through it from end to end. One more vector a tile, or tiles would share
   a set of the cache. */
static long channels_of_group(const struct convolution *c) { return c->bfloat16 ? 2 * LANES : LANES; }
static long vectors_of_inputs(const struct convolution *c) {
    const long span = span_of(c->size, c->stride);
    return (c->channels + channels_of_group(c) - 1) / channels_of_group(c) * span * span + 1;
}
static long vectors_of_outputs(const struct convolution *c) {
    const long points = points_of(c->size, c->stride);
    return wide(c) / LANES * points * points + 1;
}

/* Tiles at a time, a multiple of THIRD: few, so that they stay in the cache, but more where the filters are large, since
   every block reads those anew; all blocks about alike. */
static long block_of(const struct convolution *c) {
    long tiles = tiles_of(c), most = c->channels / 4 < 24 ? 24 : c->channels / 4, blocks = (tiles + most - 1) / most;
    return blocks ? ((tiles + blocks - 1) / blocks + THIRD - 1) / THIRD * THIRD : THIRD;
}

#ifndef SOURCE_SHA256
#define SOURCE_SHA256 "" /* of this file, told by hatch_build.py: filtering.py refuses a library of another */
#endif
const char *source_sha256(void) { return SOURCE_SHA256; }

long vector_columns(void) { return COLUMNS; }

long scratch_floats(const struct convolution *c) {
    return c->channels + block_of(c) * (vectors_of_inputs(c) + vectors_of_outputs(c)) * LANES;
}

static struct place place_of(long tile, const struct convolution *c) {
    long right = tiles_along(output_side(c->width, c)), down = tiles_along(output_side(c->height, c));
    return (struct place){tile / (down * right), tile / right % down * TILE, tile % right * TILE};
}

/* made[i] = sum over k of table[i, k] * given[k] of stride 2: most of the table is 0. */
INLINE void carry_strided_inputs(const float *table, const vector *given, vector *made) {
    /* The given ones that each sees, the first in the lowest bit. */
    static const int sees[9] = {0x055, 0x054, 0x054, 0x044, 0x154, 0x022, 0x028, 0x028, 0x088};
    UNROLL for (int i = 0; i < 9; i++) {
        made[i] = (vector){0};
        UNROLL for (int k = 0; k < 9; k++)
            if (sees[i] >> k & 1) made[i] += given[k] * table[i * 9 + k];
    }
}

/* The same of stride 1. Points are 0, pairs of a number and its negative, and infinity, so half of the table is the other
   half with signs: what a pair shares is summed once. */
INLINE void carry_inputs(int points, const float *table, const vector *given, vector *made) {
    int last = points - 1;
    made[0] = given[0] * table[0];
    UNROLL for (int k = 2; k < points; k += 2) made[0] += given[k] * table[k];
    made[last] = given[1] * table[last * points + 1];
    UNROLL for (int k = 3; k < points; k += 2) made[last] += given[k] * table[last * points + k];
    UNROLL for (int i = 1; i < last; i += 2) {
        const float *row = table + i * points;
        vector odd = given[1] * row[1], even = given[2] * row[2];
        UNROLL for (int k = 3; k < last; k += 2) odd += given[k] * row[k];
        UNROLL for (int k = 4; k < last; k += 2) even += given[k] * row[k];
        made[i] = even + odd;
        made[i + 1] = even - odd;
    }
}

/* made[i] = sum over k of table[i, k] * given[k], i < TILE: powers i of the points, so a pair's are the same but for the
   sign of odd i. Stride 2 has one more point behind its pair. */
INLINE void carry_outputs(int points, const float *table, const vector *given, vector *made) {
    int last = points - 1;
    vector sums[MOST_SPAN / 2], differences[MOST_SPAN / 2];
    UNROLL for (int k = 1; k + 1 < last; k += 2) {
        sums[k / 2] = given[k] + given[k + 1];
        differences[k / 2] = given[k] - given[k + 1];
    }
    UNROLL for (int i = 0; i < TILE; i++) {
        const vector *pairs = i % 2 ? differences : sums;
        made[i] = pairs[0] * table[i * points + 1];
        UNROLL for (int k = 3; k + 1 < last; k += 2) made[i] += pairs[k / 2] * table[i * points + k];
        if (points % 2) made[i] += given[last - 1] * table[i * points + last - 1];
    }
    made[0] += given[0];
    made[TILE - 1] += given[last];
}

/* bfloat16's nearest, to even in the middle; a NaN stays one. */
INLINE halves rounded(vector value) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)value);
#else
    const mask bits = (mask)value, none = value != value;
    const mask nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return __builtin_convertvector(((nearest & ~none) | (0x7fc00000 & none)) >> 16, halves);
#endif
}

/* sums + the products of both pairs of bfloat16 of each lane. */
INLINE vector summed(vector sums, mask left, mask right) {
#ifdef __AVX512BF16__
    return (vector)_mm512_dpbf16_ps((__m512)sums, (__m512bh)left, (__m512bh)right);
#else
    const int second = (int)0xffff0000;
    return sums + (vector)(left << 16) * (vector)(right << 16) + (vector)(left & second) * (vector)(right & second);
#endif
}

/* A tile of inputs at the points: for each channel table x tile x table transposed. */
INLINE void inputs_to_points(int size, int stride, int bfloat16, const struct convolution *c, struct place at,
                             const float *zeros, char *row) {
    const int span = span_of(size, stride);
    const float *input[MOST_SPAN][MOST_SPAN];
    for (int i = 0; i < span; i++)
        for (int j = 0; j < span; j++) {
            long down = at.top * stride - c->padding + i, right = at.left * stride - c->padding + j;
            int inside = down >= 0 && down < c->height && right >= 0 && right < c->width;
            input[i][j] = inside ? c->x + ((at.image * c->height + down) * c->width + right) * c->channels : zeros;
        }
    const long bytes = bfloat16 ? 2 : 4, group = sizeof(vector) / bytes;
    for (long channel = 0; channel < c->channels; channel += LANES) {
        vector columns[MOST_SPAN][MOST_SPAN], given[MOST_SPAN], made[MOST_SPAN];
        UNROLL for (int j = 0; j < span; j++) {
            UNROLL for (int i = 0; i < span; i++) given[i] = *(const vector *)(input[i][j] + channel);
            if (stride == 2)
                carry_strided_inputs(c->to_points, given, columns[j]);
            else
                carry_inputs(span, c->to_points, given, columns[j]);
        }
        UNROLL for (int i = 0; i < span; i++) {
            UNROLL for (int j = 0; j < span; j++) given[j] = columns[j][i];
            if (stride == 2)
                carry_strided_inputs(c->to_points, given, made);
            else
                carry_inputs(span, c->to_points, given, made);
            UNROLL for (int j = 0; j < span; j++) {
                const long of_group = channel / group * span * span + i * span + j;
                char *to = row + of_group * sizeof(vector) + bytes * (channel % group);
                if (bfloat16)
                    *(halves *)to = rounded(made[j]);
                else
                    *(vector *)to = made[j];
            }
        }
    }
}

/* count x COLUMNS of a matrix product, in registers; tiles of inputs are `row` bytes apart, of what is made `made_row`
   floats. */
INLINE void products(int count, int size, int stride, int bfloat16, long channels, int there, const int *values,
                     const char *inputs, long row, const char *filters, float *made, long made_row) {
    const long points = points_of(size, stride), span = span_of(size, stride), group = span * span * sizeof(vector);
    vector sums[ROWS][2];
    UNROLL for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = (vector){0};
    for (int v = 0; v < there; v++) {
        const char *rows = inputs + values[v] * sizeof(vector);
        for (long left = bfloat16 ? channels / 2 : channels; left > 0; left -= LANES, rows += group)
            for (long k = 0; k < (left < LANES ? left : LANES); k++, filters += 2 * sizeof(vector))
                if (bfloat16) {
                    const mask first = *(const two_each *)filters;
                    const mask second = *(const two_each *)(filters + sizeof(vector));
                    UNROLL for (int r = 0; r < count; r++) {
                        const mask value = *(const two *)(rows + r * row + 4 * k) + (mask){0};
                        sums[r][0] = summed(sums[r][0], first, value);
                        sums[r][1] = summed(sums[r][1], second, value);
                    }
                } else {
                    const vector first = *(const vector *)filters;
                    const vector second = *(const vector *)(filters + sizeof(vector));
                    UNROLL for (int r = 0; r < count; r++) {
                        const float value = *(const float *)(rows + r * row + 4 * k);
                        sums[r][0] += first * value;
                        sums[r][1] += second * value;
                    }
                }
    }
    UNROLL for (int r = 0; r < count; r++) {
        *(vector *)(made + r * made_row) = sums[r][0];
        *(vector *)(made + r * made_row + points * points * LANES) = sums[r][1];
    }
}

/* A tile's products carried to its outputs, with bias, addend and, if wanted, rectified (a NaN stays one). */
INLINE void points_to_outputs(int points, int adds, const struct convolution *c, struct place at, const float *row) {
    long height = output_side(c->height, c), width = output_side(c->width, c);
    for (long output = 0; output < c->outputs; output += LANES) {
        vector columns[MOST_SPAN][TILE], given[MOST_SPAN], made[TILE];
        UNROLL for (int j = 0; j < points; j++) {
            const float *from = row + output * points * points + j * LANES;
            UNROLL for (int i = 0; i < points; i++) given[i] = *(const vector *)(from + i * points * LANES);
            carry_outputs(points, c->to_outputs, given, columns[j]);
        }
        const vector bias = *(const vector *)(c->bias + output);
        UNROLL for (int i = 0; i < TILE; i++) {
            UNROLL for (int j = 0; j < points; j++) given[j] = columns[j][i];
            carry_outputs(points, c->to_outputs, given, made);
            UNROLL for (int j = 0; j < TILE; j++) {
                long pixel = (at.image * height + at.top + i) * width + at.left + j;
                int inside = at.top + i < height && at.left + j < width;
                vector value = made[j] + bias;
                if (adds && inside) value += *(const vector *)(c->addend + pixel * c->outputs + output);
                if (c->rectifies) value = (vector)((mask)value & ~(value < 0));
                if (inside) *(vector *)(c->y + pixel * c->outputs + output) = value;
            }
        }
    }
}

INLINE void filter_with(int size, int stride, int bfloat16, const struct convolution *c) {
    const int points = points_of(size, stride);
    long tiles = tiles_of(c), block = block_of(c), channels = c->channels, bytes = bfloat16 ? 2 : 4;
    long inputs_row = vectors_of_inputs(c) * sizeof(vector), outputs_row = vectors_of_outputs(c) * LANES;
    float *zeros = c->scratch, *outputs = zeros + c->channels;
    char *inputs = (char *)(outputs + block * outputs_row);
    memset(zeros, 0, c->channels * sizeof(float));
    for (long first = 0; first < tiles; first += block) {
        long count = tiles - first < block ? tiles - first : block;
        for (long tile = 0; tile < count; tile++)
            inputs_to_points(size, stride, bfloat16, c, place_of(first + tile, c), zeros, inputs + tile * inputs_row);
        /* Rows beyond the last tile are multiplied too, whatever they hold: nothing reads what comes of it. */
        const char *filters = c->filters;
        for (int point = 0; point < points * points; point++) {
            int values[MOST_VALUES];
            const int there = values_at(point, stride, values);
            const long of_columns = bytes * there * channels * COLUMNS;
            for (long output = 0; output < wide(c); output += COLUMNS, filters += of_columns)
                for (long tile = 0; tile < count; tile += ROWS) {
                    const char *rows = inputs + tile * inputs_row;
                    float *made = outputs + tile * outputs_row + output * points * points + point * LANES;
                    if (count - tile > 2 * THIRD)
                        products(ROWS, size, stride, bfloat16, channels, there, values, rows, inputs_row, filters,
                                 made, outputs_row);
                    else if (count - tile > THIRD)
                        products(2 * THIRD, size, stride, bfloat16, channels, there, values, rows, inputs_row,
                                 filters, made, outputs_row);
                    else
                        products(THIRD, size, stride, bfloat16, channels, there, values, rows, inputs_row, filters,
                                 made, outputs_row);
                }
        }
        for (long tile = 0; tile < count; tile++)
            if (c->addend)
                points_to_outputs(points, 1, c, place_of(first + tile, c), outputs + tile * outputs_row);
            else
                points_to_outputs(points, 0, c, place_of(first + tile, c), outputs + tile * outputs_row);
    }
}

/* Filters carried to the points, as `convolution.filters` has them: `weight` [outputs, channels, taps] by `table`
   [span * span, taps]. */
INLINE void carry(int size, int stride, int bfloat16, long channels, long outputs, const float *weight,
                  const float *table, char *filters) {
    const int taps = size * size, points = points_of(size, stride);
    const long together = bfloat16 ? 2 : 1, blocks = (outputs + COLUMNS - 1) / COLUMNS;
    /* Both vectors of a row of filters one after the other: written apart, each of its lines would be fetched twice. */
    for (long column = 0; column < blocks * COLUMNS; column += COLUMNS)
        for (long channel = 0; channel < channels; channel += together)
            for (long output = column; output < column + COLUMNS; output += LANES) {
                vector given[2][MOST_TAPS];
                for (int k = 0; k < taps; k++)
                    UNROLL for (int lane = 0; lane < LANES; lane++) {
                        const float *from = weight + ((output + lane) * channels + channel) * taps + k;
                        UNROLL for (int i = 0; i < together; i++)
                            given[i][k][lane] = output + lane < outputs ? from[i * taps] : 0;
                    }
                long before = 0; /* blocks of rows of the points before */
                for (int point = 0; point < points * points; point++) {
                    int values[MOST_VALUES];
                    const int there = values_at(point, stride, values);
                    for (int v = 0; v < there; v++) {
                        const float *factors = table + values[v] * taps;
                        vector made[2];
                        UNROLL for (int i = 0; i < together; i++) {
                            made[i] = given[i][0] * factors[0];
                            UNROLL for (int k = 1; k < taps; k++) made[i] += given[i][k] * factors[k];
                        }
                        const long block = before + output / COLUMNS * there + v;
                        const long row = block * (channels / together) + channel / together;
                        char *to = filters + 4 * (row * COLUMNS + output % COLUMNS);
                        if (bfloat16) {
                            const mask first = __builtin_convertvector(rounded(made[0]), mask);
                            const mask second = __builtin_convertvector(rounded(made[1]), mask);
                            *(two_each *)to = (first & 0xffff) | (second << 16);
                        } else
                            *(vector *)to = made[0];
                    }
                    before += blocks * there;
                }
            }
}

void carry_filters(long size, long stride, long bfloat16, long channels, long outputs, const float *weight,
                   const float *table, char *filters) {
    if (stride == 2 && bfloat16)
        carry(3, 2, 1, channels, outputs, weight, table, filters);
    else if (stride == 2)
        carry(3, 2, 0, channels, outputs, weight, table, filters);
    else if (bfloat16)
        carry(3, 1, 1, channels, outputs, weight, table, filters);
    else if (size == 3)
        carry(3, 1, 0, channels, outputs, weight, table, filters);
    else
        carry(5, 1, 0, channels, outputs, weight, table, filters);
}

/* The convolution of a batch; bfloat16 and stride 2 are of filters of 3x3. */
void filter_images(const struct convolution *c) {
    if (c->stride == 2 && c->bfloat16)
        filter_with(3, 2, 1, c);
    else if (c->stride == 2)
        filter_with(3, 2, 0, c);
    else if (c->bfloat16)
        filter_with(3, 1, 1, c);
    else if (c->size == 3)
        filter_with(3, 1, 0, c);
    else
        filter_with(5, 1, 0, c);
}
