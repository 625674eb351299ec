// The kernels, compiled once for each kind of processor: with TF_NAME(x) as x_avx512 and so on.
//
// Every function is a pure one of what its pointers lead to; none keeps anything, so threads may call it together.
#include <stddef.h>
#include <float.h>
#include <stdlib.h>

#include "checksums.h"
#include "vectors.h"

#define JOINED(name, variant) name##_##variant
#define NAMED(name, variant) JOINED(name, variant)
#define TF_NAME(name) __attribute__((visibility("default"))) NAMED(name, TF_VARIANT)

static inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
static inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }
static inline int64_t whole(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

#include "rebuilt.h"

// ---- patterns

#define PANEL (LANES * TILE_VECTORS)  // keys that are multiplied at a time

// One head's keys, (key, d), as panels of PANEL keys: (panel, d, key of it), zeros behind the last one.
static void pack_keys(const float *key, int64_t stride, int64_t keys, int64_t d, float *packed) {
    for (int64_t first = 0; first < keys; first += PANEL, packed += d * PANEL) {
        int64_t there = smaller(PANEL, keys - first);
        for (int64_t j = 0; j < there; j++)
            for (int64_t c = 0; c < d; c++) packed[c * PANEL + j] = key[(first + j) * stride + c];
        for (int64_t j = there; j < PANEL; j++)
            for (int64_t c = 0; c < d; c++) packed[c * PANEL + j] = 0;
    }
}

// The scores of TILE_ROWS queries on the keys of one panel.
static inline void tile(const float *const *query, const float *panel, int64_t d, float scale, float *scores,
                        int64_t pitch) {
    V sums[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) sums[r][v] = v_all(0);
    for (int64_t c = 0; c < d; c++) {
        V keys[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) keys[v] = v_load(panel + c * PANEL + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            V x = v_all(query[r][c]);
#pragma GCC unroll 8
            for (int v = 0; v < TILE_VECTORS; v++) sums[r][v] = v_fma(x, keys[v], sums[r][v]);
        }
    }
    V scaled = v_all(scale);
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) v_store(scores + r * pitch + v * LANES, v_mul(sums[r][v], scaled));
}

// Scores to float16 probabilities; `scores` has room for whole vectors, and is written over. Whether they are numbers.
static inline int softmax(float *scores, int64_t n, uint16_t *out) {
    int64_t end = whole(n, LANES);
    for (int64_t j = n; j < end; j++) scores[j] = -INFINITY;
    V largest = v_all(-INFINITY), sum = v_all(0);
    for (int64_t j = 0; j < end; j += LANES) largest = v_max(v_load(scores + j), largest);
    V peak = v_all(v_largest(largest));
    for (int64_t j = 0; j < end; j += LANES) {
        V e = v_exp(v_sub(v_load(scores + j), peak));
        v_store(scores + j, e);
        sum = v_add(sum, e);
    }
    float total = v_sum(sum);
    V share = v_all(1.f / total);
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) v_store_half(out + j, v_mul(v_load(scores + j), share));
    if (j < n) {
        uint16_t last[LANES];
        v_store_half(last, v_mul(v_load(scores + j), share));
        memcpy(out + j, last, (size_t)(n - j) * sizeof *out);
    }
    return total > 0 && total < INFINITY;
}

typedef struct {
    const float *query, *key;          // of one example; numbers of a row lie together, strides are in numbers
    const uint8_t *allowed;            // bytes (0: a query may not look there), or null
    const float *added;                // what is added to scores, or null
    int64_t query_head, query_row;     // strides
    int64_t key_head, key_row;
    int64_t allowed_head, allowed_row;
    int64_t added_head, added_row;
    int64_t queries, keys, d, group;   // `group` heads share the keys of one
    int64_t window;                    // how many keys, its own included, a query sees; 0 for all
    float scale;
    int32_t ahead;                     // whether queries look at later keys
} Patterns;

// The patterns of some heads as float16, queries `first` to before `stop`, head after head `out_head` cells apart.
//
// With a `pitch` rows are so many cells long, with zeros behind the keys; with 0 each has its cells up to the diagonal,
// and the next one follows. `memory` has room for panels of all keys, and TILE_ROWS rows of scores. Returns whether all
// are numbers.
int TF_NAME(patterns)(const Patterns *p, const int64_t *heads, int64_t n_heads, int64_t first, int64_t stop,
                      float *memory, uint16_t *out, int64_t out_head, int64_t pitch) {
    int64_t seen = p->ahead ? p->keys : smaller(p->keys, stop), wide = whole(seen, PANEL), packed_head = -1;
    float *packed = memory, *scores = memory + wide * p->d;
    int fine = 1;
    for (int64_t h = 0; h < n_heads; h++, out += out_head) {
        const float *query = p->query + heads[h] * p->query_head;
        if (heads[h] / p->group != packed_head) {
            packed_head = heads[h] / p->group;
            pack_keys(p->key + packed_head * p->key_head, p->key_row, seen, p->d, packed);
        }
        uint16_t *cells = out;
        for (int64_t above = first; above < stop; above += TILE_ROWS) {
            int64_t rows = smaller(TILE_ROWS, stop - above), end = p->ahead ? seen : smaller(seen, above + rows);
            int64_t start = p->window ? larger(0, above + 1 - p->window) / PANEL * PANEL : 0;
            const float *own_rows[TILE_ROWS];
            for (int r = 0; r < TILE_ROWS; r++) own_rows[r] = query + (above + smaller(r, rows - 1)) * p->query_row;
            for (int64_t j = start; j < end; j += PANEL)
                tile(own_rows, packed + j * p->d, p->d, p->scale, scores + j, wide);
            for (int64_t r = 0; r < rows; r++) {
                int64_t i = above + r, n = p->ahead ? seen : smaller(seen, i + 1);
                int64_t from = p->window ? larger(0, i + 1 - p->window) : 0;
                float *row = scores + r * wide;
                if (p->allowed) {
                    const uint8_t *own = p->allowed + heads[h] * p->allowed_head + i * p->allowed_row;
                    for (int64_t j = from; j < n; j++) row[j] = own[j] ? row[j] : -INFINITY;
                }
                if (p->added) {
                    const float *own = p->added + heads[h] * p->added_head + i * p->added_row;
                    for (int64_t j = from; j < n; j++) row[j] += own[j];
                }
                memset(cells, 0, (size_t)from * sizeof *cells);
                // Those before a window are written over: a row of scores begins with its first one.
                if (from) memmove(row, row + from, (size_t)(n - from) * sizeof *row);
                fine &= softmax(row, n - from, cells + from);
                if (pitch) memset(cells + n, 0, (size_t)(pitch - n) * sizeof *cells);
                cells += pitch ? pitch : n;
            }
        }
    }
    return fine;
}

// How many floats `memory` of `patterns` has room for.
int64_t TF_NAME(patterns_memory)(int64_t keys, int64_t d) { return whole(keys, PANEL) * (d + TILE_ROWS); }

// ---- rows

static inline uint32_t largest_bits(const float *from, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static inline void to_half(const float *from, uint16_t *to, int64_t n) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) v_store_half(to + j, v_load(from + j));
    if (j < n) {
        float last[LANES] = {0};
        uint16_t made[LANES];
        memcpy(last, from + j, (size_t)(n - j) * sizeof *from);
        v_store_half(made, v_load(last));
        memcpy(to + j, made, (size_t)(n - j) * sizeof *to);
    }
}

static inline void to_brain(const float *from, uint16_t *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

// Rows of floats, along three axes with strides in numbers, as float16 (`kind` 0), bfloat16 (1) or as they are (2).
// Returns the bits of the largest magnitude among what was read: those of an infinity or a NaN are larger than those of
// any number.
uint32_t TF_NAME(cast_rows)(const float *from, const int64_t *from_strides, void *to, const int64_t *to_strides,
                            const int64_t *shape, int64_t width, int kind) {
    uint32_t largest = 0;
    for (int64_t a = 0; a < shape[0]; a++)
        for (int64_t b = 0; b < shape[1]; b++)
            for (int64_t c = 0; c < shape[2]; c++) {
                const float *source = from + a * from_strides[0] + b * from_strides[1] + c * from_strides[2];
                int64_t at = a * to_strides[0] + b * to_strides[1] + c * to_strides[2];
                uint32_t bits = largest_bits(source, width);
                largest = bits > largest ? bits : largest;
                if (kind == 2)
                    memcpy((float *)to + at, source, (size_t)width * sizeof *source);
                else
                    (kind ? to_brain : to_half)(source, (uint16_t *)to + at, width);
            }
    return largest;
}

static inline V load_number(const void *from, int half, int64_t at) {
    return half ? v_load_half((const uint16_t *)from + at) : v_load((const float *)from + at);
}

// The products of one row with `n` directions, and with itself if `norm` is not null.
static inline __attribute__((always_inline)) void project_row(const void *row, int half, int64_t width,
                                                              const float *directions, const int n, float *products,
                                                              float *norm) {
    V sums[MOST_DIRECTIONS], square = v_all(0);
    for (int k = 0; k < n; k++) sums[k] = v_all(0);
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) {
        V x = load_number(row, half, j);
        square = v_fma(x, x, square);
        for (int k = 0; k < n; k++) sums[k] = v_fma(x, v_load(directions + k * width + j), sums[k]);
    }
    if (j < width) {
        float x[LANES] = {0}, y[LANES];
        uint16_t halves[LANES] = {0};
        size_t left = (size_t)(width - j);
        if (half)
            memcpy(halves, (const uint16_t *)row + j, left * 2), v_store(x, v_load_half(halves));
        else
            memcpy(x, (const float *)row + j, left * 4);
        square = v_fma(v_load(x), v_load(x), square);
        for (int k = 0; k < n; k++) {
            memset(y, 0, sizeof y);
            memcpy(y, directions + k * width + j, left * 4);
            sums[k] = v_fma(v_load(x), v_load(y), sums[k]);
        }
    }
    for (int k = 0; k < n; k++) products[k] = v_sum(sums[k]);
    if (norm) *norm = sqrtf(v_sum(square));
}

// Rows of float16, or of floats unless `half`, onto directions: their products, (row, direction), and their norms.
void TF_NAME(project)(const void *rows, int half, int64_t n_rows, int64_t stride, int64_t width,
                      const float *directions, int64_t n_directions, float *products, float *norms) {
    for (int64_t i = 0; i < n_rows; i++) {
        const void *row = half ? (const void *)((const uint16_t *)rows + i * stride)
                               : (const void *)((const float *)rows + i * stride);
        float *own = products + i * n_directions, *norm = norms + i;
        int64_t k = 0;
        for (; k + MOST_DIRECTIONS <= n_directions; k += MOST_DIRECTIONS, norm = NULL)
            project_row(row, half, width, directions + k * width, MOST_DIRECTIONS, own + k, norm);
        for (; k + 2 <= n_directions; k += 2, norm = NULL)
            project_row(row, half, width, directions + k * width, 2, own + k, norm);
        if (k < n_directions || norm) {
            int one = k < n_directions;
            if (one)
                project_row(row, half, width, directions + k * width, 1, own + k, norm);
            else
                project_row(row, half, width, directions, 0, own, norm);
        }
    }
}

// ---- triangles

// The cells on and below the diagonal of rows of squares, query `first` being the first; returns whether all others
// are zero. The strides are in bytes, `size` is that of a number.
int TF_NAME(fold)(const uint8_t *block, int64_t head_stride, int64_t row_stride, int64_t heads, int64_t rows,
                  int64_t keys, int64_t first, int64_t size, uint8_t *cells, int64_t cells_stride) {
    uint8_t beyond = 0;
    for (int64_t h = 0; h < heads; h++) {
        uint8_t *to = cells + h * cells_stride;
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t *row = block + h * head_stride + r * row_stride;
            int64_t n = smaller(keys, first + r + 1) * size, missing = (first + r + 1) * size - n;
            memcpy(to, row, (size_t)n);
            memset(to + n, 0, (size_t)missing);
            to += n + missing;
            for (int64_t j = n; j < keys * size; j++) beyond |= row[j];
        }
    }
    return !beyond;
}

// Rows of squares out of their cells, zeros above the diagonal; `square` is (lead, rows, keys) in one piece.
void TF_NAME(unfold)(const uint8_t *cells, int64_t cells_stride, int64_t lead, int64_t first, int64_t rows,
                     int64_t keys, int64_t size, uint8_t *square) {
    for (int64_t h = 0; h < lead; h++) {
        const uint8_t *from = cells + h * cells_stride;
        for (int64_t r = 0; r < rows; r++, square += keys * size) {
            int64_t n = smaller(keys, first + r + 1) * size;
            memcpy(square, from, (size_t)n);
            memset(square + n, 0, (size_t)(keys * size - n));
            from += (first + r + 1) * size;
        }
    }
}

// ---- checksums

// The crc32c of bytes, going on from that of those before them.
uint32_t TF_NAME(crc32c)(uint32_t crc, const uint8_t *data, int64_t size) { return crc32c(crc, data, (size_t)size); }

// Copies chunks, each with its crc32c behind it, one behind the other, to `out`, which has `room` bytes; returns how
// many were written. `at` is the chunk and the byte of it to go on with; `crcs` gets each chunk's.
int64_t TF_NAME(gather)(const uint64_t *chunks, const int64_t *sizes, int64_t n, uint32_t *crcs, int64_t *at,
                        uint8_t *out, int64_t room) {
    const int64_t at_once = 24 << 10;  // that fit into the first cache: copied, then read again
    int64_t used = 0;
    while (at[0] < n && used < room) {
        int64_t i = at[0], begun = at[1], size = sizes[i], take;
        if (begun < size) {
            take = smaller(smaller(size - begun, room - used), at_once);
            memcpy(out + used, (const uint8_t *)(uintptr_t)chunks[i] + begun, (size_t)take);
            crcs[i] = crc32c(begun ? crcs[i] : 0, out + used, (size_t)take);
        } else {
            uint8_t own[4];
            for (int k = 0; k < 4; k++) own[k] = (uint8_t)((size ? crcs[i] : 0) >> 8 * k);
            take = smaller(size + 4 - begun, room - used);
            memcpy(out + used, own + (begun - size), (size_t)take);
        }
        used += take;
        at[1] += take;
        if (at[1] == size + 4) at[0]++, at[1] = 0;
    }
    return used;
}

// ---- heads

typedef struct {
    int64_t queries, keys;      // of the whole example
    int64_t first, rows, seen;  // of this block: its first query, how many there are, and how many keys
    int32_t causal, aligned;
    int64_t reach;  // how far a query sees; -1 for no limit
    float beside_sum, in_logarithm, sparse_weight;
    int32_t divides;
} Geometry;

#define TINY 1e-37f  // in place of 0, whose logarithm is no number
#define NOTHING 1e-20f
#define PROFILE_ROWS 32  // that are added up in floats, before their sum is added to doubles

// What a row's query looks at among the keys of one token: of places `from` and, before and behind them, those that
// `before` and `after` lead to; moved by `by`.
static inline float on_token(const float *row, int64_t query, int64_t from, int64_t by, const int32_t *before,
                             const int32_t *after, const Geometry *g, int64_t n, int *any) {
    int64_t low = g->reach < 0 ? 0 : larger(0, query - g->reach);
    int64_t high = g->reach < 0 ? n : smaller(n, query + g->reach + 1);
    float sum = 0;
    for (int64_t k = before[from]; k >= 0 && k + by >= low; k = before[k])
        if (k + by < high) sum += row[k + by], *any = 1;
    if (!g->causal)
        for (int64_t k = after[from]; k >= 0 && k + by < high; k = after[k])
            if (k + by >= low) sum += row[k + by], *any = 1;
    return sum;
}

// The sums of one head for `head_sums`.
static int sums_of_head(const uint16_t *block, int64_t stride, const Geometry *g, const int32_t *before,
                        const int32_t *after, double *sums, double *profile, int64_t *repeating, float *memory) {
    float *row = memory, *part = memory + whole(g->seen, LANES) + LANES;
    int64_t part_rows = 0, part_width = g->seen + PROFILE_ROWS;
    for (int64_t r = 0; r < g->rows; r++) {
        int64_t q = g->first + r, n = g->causal ? smaller(g->seen, q + 1) : g->seen, end = whole(n, LANES);
        const uint16_t *cells = block + r * stride;
        uint16_t beyond = 0;
        for (int64_t j = n; j < g->seen; j++) beyond |= cells[j];
        if (beyond & 0x7fff) return 2;
        V sum = v_all(0), largest = v_all(0), logs = v_all(0), tiny = v_all(TINY);
        int64_t j = 0;
        for (; j < end; j += LANES) {
            V x;
            if (j + LANES <= g->seen) {  // nothing stands behind the last cell
                x = v_load_half(cells + j);
            } else {
                uint16_t last[LANES] = {0};
                memcpy(last, cells + j, (size_t)(n - j) * sizeof *cells);
                x = v_load_half(last);
            }
            largest = v_max(largest, x);
            sum = v_add(sum, x);
            x = v_max(tiny, x);
            if (g->in_logarithm == 0) logs = v_fma(x, v_log2(x), logs);
            v_store(row + j, x);
        }
        float total = v_sum(sum);
        if (!(total > NOTHING)) return 1;
        float divisor = g->divides ? total + g->beside_sum : 1.f, share = 1.f / divisor, bits;
        float cut = g->sparse_weight * divisor;
        if (g->in_logarithm == 0) {
            // What stands behind the last cell is TINY, and adds nothing to a sum of numbers that are read.
            bits = log2f(divisor) - v_sum(logs) / divisor;
            bits = bits > 0 ? bits : 0;
        } else {
            V shares = v_all(share), beside = v_all(g->in_logarithm);
            for (int64_t i = 0; i < end; i += LANES) {
                V p = v_mul(v_load(row + i), shares);
                logs = v_fma(p, v_log2(v_add(p, beside)), logs);
            }
            bits = -v_sum(logs);
        }
        int32_t sparse = 0;
        for (int64_t i = 0; i < n; i++) sparse += row[i] < cut;
        sums[0] += (double)(bits * 0.69314718055994530942f);
        sums[1] += (double)(sparse + (g->keys - n));
        sums[2] += (double)(v_largest(largest) / divisor);
        sums[3] += (double)(row[0] / divisor);
        if (before) {
            int any[3] = {0, 0, 0};
            sums[4] += (double)(on_token(row, q, q, 0, before, after, g, n, any) / divisor);
            sums[5] += (double)(on_token(row, q, q, 1, before, after, g, n, any + 1) / divisor);
            if (q + 1 < g->keys)
                sums[6] += (double)(on_token(row, q, q + 1, 0, before, after, g, n, any + 2) / divisor);
            if (repeating)
                for (int k = 0; k < 3; k++) repeating[k] += any[k];
        }
        if (profile) {
            // Row r of the part has its key 0 at PROFILE_ROWS - 1 - r: offsets lie below one another.
            if (!part_rows) memset(part, 0, (size_t)(part_width + LANES) * sizeof *part);
            float *own = part + (PROFILE_ROWS - 1 - part_rows);
            for (int64_t i = 0; i < n; i++) own[i] += row[i] * share;
            if (++part_rows == PROFILE_ROWS || r + 1 == g->rows) {
                // Key 0 of the part's first query is offset -(query) of it, number queries - 1 - query.
                int64_t place = g->queries - 1 - (q + 1 - part_rows) - (PROFILE_ROWS - 1);
                for (int64_t i = PROFILE_ROWS - part_rows; i < part_width; i++)
                    if (part[i] != 0) profile[place + i] += (double)part[i];
                part_rows = 0;
            }
        }
    }
    return 0;
}

// The sums of `block_sums` in `analysis/heads.py`: of each head's rows of float16, which are `stride` numbers apart.
// `sums` gets seven of each head, `profile` (null unless aligned) the mass at each of `offsets`, all added to what is
// there; `repeating` three counts. `before` and `after` (null without tokens) are the places of the same token, -1
// where there is none. `memory` has room for seen + keys + rows + 3 vectors floats. Returns 0, 1 if a row adds up to
// nothing, 2 if a causal query looks ahead.
int TF_NAME(head_sums)(const uint16_t *block, int64_t heads, int64_t head_stride, int64_t stride, const Geometry *g,
                       const int32_t *before, const int32_t *after, double *sums, double *profile, int64_t offsets,
                       int64_t *repeating, float *memory) {
    int problem = 0;
    for (int64_t h = 0; h < heads && !problem; h++)
        problem = sums_of_head(block + h * head_stride, stride, g, before, after, sums + h * 7,
                               profile ? profile + h * offsets : NULL, h ? NULL : repeating, memory);
    return problem;
}
