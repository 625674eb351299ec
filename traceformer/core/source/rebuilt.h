// Patterns made anew of queries and keys: to the bit what `store/rebuilding.py` says, whatever the processor.
//
// All of it is multiplications, additions, one division a row and comparisons of doubles, in an order that is laid down
// there. A product of two floats is exact in a double, so that a fused multiply-add of one is that multiplication and
// that addition; nothing else may be fused (-ffp-contract=off).
#ifndef TF_REBUILT_H
#define TF_REBUILT_H

#include "vectors.h"

#define SUMS 8  // lanes in which weights are added up
#if defined(TF_AVX512)
#define WIDE 8
#define REBUILT_ROWS 5
#define REBUILT_VECTORS 4
#elif defined(TF_AVX2)
#define WIDE 4
#define REBUILT_ROWS 3
#define REBUILT_VECTORS 4
#else
#define WIDE 2
#define REBUILT_ROWS 3
#define REBUILT_VECTORS 4
#endif
#define REBUILT_PANEL (WIDE * REBUILT_VECTORS)
#define REBUILT_STEP (REBUILT_PANEL < LANES ? LANES : REBUILT_PANEL)  // what rows of scores are multiples of

typedef double D __attribute__((vector_size(8 * WIDE)));
typedef int64_t I __attribute__((vector_size(8 * WIDE)));
typedef float F __attribute__((vector_size(4 * WIDE)));
#define INLINE static inline __attribute__((always_inline))

INLINE D d_load(const double *p) {
    D x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void d_store(double *p, D x) { memcpy(p, &x, sizeof x); }
#if WIDE == 8
INLINE D d_all(double x) { return (D){x, x, x, x, x, x, x, x}; }
#elif WIDE == 4
INLINE D d_all(double x) { return (D){x, x, x, x}; }
#else
INLINE D d_all(double x) { return (D){x, x}; }
#endif
INLINE D d_of_floats(const float *p) {
    F x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, D);
}
// What is chosen by bits that are all set or none: x where they are.
INLINE D d_where(I which, D x, D y) { return (D)(((I)x & which) | ((I)y & ~which)); }
INLINE D d_max(D x, D y) { return d_where(x > y, x, y); }
// x * y + z, where x * y is exact.
INLINE D d_sum(D x, D y, D z) {
#if defined(TF_AVX512)
    return (D)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
#elif defined(TF_AVX2)
    return (D)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
#else
    return x * y + z;
#endif
}

// e^x of x <= 0; of what is below -700 that of -700.
INLINE D d_exp(D x) {
    x = d_max(x, d_all(-700));
    D shifted = x * d_all(0x1.71547652b82fep0) + d_all(0x1.8p52);  // the whole number is in its last digits
    D n = shifted - d_all(0x1.8p52);
    D r = (x - n * d_all(0x1.62e42feep-1)) - n * d_all(0x1.a39ef35793c76p-33);
    D p = d_all(1.0 / 6227020800);
    p = p * r + d_all(1.0 / 479001600);
    p = p * r + d_all(1.0 / 39916800);
    p = p * r + d_all(1.0 / 3628800);
    p = p * r + d_all(1.0 / 362880);
    p = p * r + d_all(1.0 / 40320);
    p = p * r + d_all(1.0 / 5040);
    p = p * r + d_all(1.0 / 720);
    p = p * r + d_all(1.0 / 120);
    p = p * r + d_all(1.0 / 24);
    p = p * r + d_all(1.0 / 6);
    p = p * r + d_all(0.5);
    p = p * r + d_all(1);
    p = p * r + d_all(1);
    I power = (((I)shifted + 1023) << 52);
    return p * (D)power;
}

INLINE D d_tanh(D x) {
    I sign = (I)x & INT64_MIN;
    D small = d_exp(d_all(-2) * (D)((I)x & INT64_MAX));
    D t = (d_all(1) - small) / (d_all(1) + small);
    return (D)((I)t | sign);
}

// As a float that has its last digit set if it is not exact, so that rounding it once more is rounding once.
INLINE F odd(D x) {
    I bits = (I)x, kept = bits & ~(int64_t)0x1fffffff;
    I lost = bits != kept;
    return __builtin_convertvector((D)(kept | (lost & 0x20000000)), F);
}

// Writes 16 probabilities as they are stored: 0 is float32, 1 float16, 2 bfloat16.
INLINE void d_put(const double *from, void *to, int stored) {
    float numbers[LANES];
#pragma GCC unroll 8
    for (int v = 0; v < LANES; v += WIDE) {
        D x = d_load(from + v);
        F made = stored ? odd(x) : __builtin_convertvector(x, F);
        memcpy(numbers + v, &made, sizeof made);
    }
    if (stored == 0) {
        memcpy(to, numbers, sizeof numbers);
    } else if (stored == 1) {
        v_store_half((uint16_t *)to, v_load(numbers));
    } else {
        uint32_t bits[LANES];
        memcpy(bits, numbers, sizeof bits);
        for (int i = 0; i < LANES; i++)
            ((uint16_t *)to)[i] = (uint16_t)((bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16);
    }
}

typedef struct {
    const float *query, *key;       // of the first query, and of key 0; numbers of a row lie together
    const uint8_t *allowed;         // (query, key), bytes: 0 where a query may not look; or null
    const float *bias;              // what is added to the first query's score on key 0; or null
    int64_t query_row, key_row;     // strides in numbers
    int64_t bias_row;               // how much further the next query's is
    int64_t first, rows, keys, d;   // queries `first` to before `first + rows`
    int64_t before, behind;         // how many keys before and behind its own place a query sees
    double scale, softcap, sink;    // a softcap of 0 is none
    int32_t sinks;                  // whether there is a sink
    int32_t stored;                 // as of `d_put`
} Rebuilt;

static void rebuilt_keys(const Rebuilt *p, int64_t keys, float *packed) {
    for (int64_t first = 0; first < keys; first += REBUILT_PANEL, packed += p->d * REBUILT_PANEL) {
        int64_t there = keys - first < REBUILT_PANEL ? keys - first : REBUILT_PANEL;
        for (int64_t j = 0; j < REBUILT_PANEL; j++)
            for (int64_t c = 0; c < p->d; c++)
                packed[c * REBUILT_PANEL + j] = j < there ? p->key[(first + j) * p->key_row + c] : 0;
    }
}

INLINE void rebuilt_tile(const double *query, const float *panel, int64_t d, double scale, double *scores,
                         int64_t pitch) {
    D sums[REBUILT_ROWS][REBUILT_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < REBUILT_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < REBUILT_VECTORS; v++) sums[r][v] = d_all(0);
    for (int64_t c = 0; c < d; c++) {
        D keys[REBUILT_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < REBUILT_VECTORS; v++) keys[v] = d_of_floats(panel + c * REBUILT_PANEL + v * WIDE);
#pragma GCC unroll 8
        for (int r = 0; r < REBUILT_ROWS; r++) {
            D x = d_all(query[r * d + c]);
#pragma GCC unroll 8
            for (int v = 0; v < REBUILT_VECTORS; v++) sums[r][v] = d_sum(x, keys[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < REBUILT_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < REBUILT_VECTORS; v++) d_store(scores + r * pitch + v * WIDE, sums[r][v] * d_all(scale));
}

// A row's scores on keys `from` to before `n` to its weights, which are 0 elsewhere; `row` has room for whole vectors.
static void rebuilt_row(const Rebuilt *p, double *row, int64_t number, int64_t from, int64_t n, uint8_t *out,
                        int64_t size) {
    int64_t start = from / LANES * LANES, end = whole(n, LANES);
    if (p->softcap != 0) {
        D cap = d_all(p->softcap);
        for (int64_t j = start; j < end; j += WIDE) d_store(row + j, cap * d_tanh(d_load(row + j) / cap));
    }
    if (p->bias) {
        const float *bias = p->bias + number * p->bias_row;
        for (int64_t j = from; j < n; j++) row[j] += (double)bias[j];
    }
    for (int64_t j = start; j < from; j++) row[j] = -INFINITY;
    for (int64_t j = n; j < end; j++) row[j] = -INFINITY;
    if (p->allowed) {
        const uint8_t *allowed = p->allowed + number * p->keys;
        for (int64_t j = from; j < n; j++) row[j] = allowed[j] ? row[j] : -INFINITY;
    }
    D largest = d_all(-INFINITY), sums[SUMS / WIDE];
    for (int64_t j = start; j < end; j += WIDE) largest = d_max(d_load(row + j), largest);
    double lanes[SUMS], peak = p->sinks ? p->sink : -INFINITY;
    d_store(lanes, largest);
    for (int i = 0; i < WIDE; i++) peak = lanes[i] > peak ? lanes[i] : peak;
    for (int v = 0; v < SUMS / WIDE; v++) sums[v] = d_all(0);
    for (int64_t j = start; j < end; j += SUMS)
#pragma GCC unroll 4
        for (int v = 0; v < SUMS / WIDE; v++) {
            D x = d_load(row + j + v * WIDE);
            D e = (D)((I)d_exp(x - d_all(peak)) & (x > d_all(-INFINITY)));
            d_store(row + j + v * WIDE, e);
            sums[v] = sums[v] + e;
        }
    for (int v = 0; v < SUMS / WIDE; v++) d_store(lanes + v * WIDE, sums[v]);
    for (int half = SUMS / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    double total = lanes[0];
    if (p->sinks) {
        d_store(lanes, d_exp(d_all(p->sink - peak)));
        total += lanes[0];
    }
    double share = total > 0 ? 1 / total : 0;
    for (int64_t j = start; j < end; j += WIDE) d_store(row + j, d_load(row + j) * d_all(share));
    int64_t j = start;
    for (; j + LANES <= p->keys && j < end; j += LANES) d_put(row + j, out + j * size, p->stored);
    if (j < end) {
        uint8_t last[LANES * 4];
        d_put(row + j, last, p->stored);
        memcpy(out + j * size, last, (size_t)((p->keys - j) * size));
    }
}

// One head's patterns, (query, key) as they are stored; `memory` has room for as many doubles as `rebuilt_memory` says.
// Returns whether it could be done: what a processor computes with more digits than it keeps is refused.
int TF_NAME(rebuilt)(const Rebuilt *p, double *memory, uint8_t *out) {
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
    return 0;
#else
    int64_t last = p->first + p->rows, all = p->keys, size = p->stored ? 2 : 4;
    int64_t seen = p->behind < all - last ? last + p->behind : all, wide = whole(seen, REBUILT_STEP);
    double *scores = memory, *queries = scores + REBUILT_ROWS * whole(all, REBUILT_STEP);
    float *packed = (float *)(queries + REBUILT_ROWS * p->d);
    rebuilt_keys(p, seen, packed);
    memset(out, 0, (size_t)(p->rows * all * size));
    for (int64_t above = 0; above < p->rows; above += REBUILT_ROWS) {
        int64_t rows = smaller(REBUILT_ROWS, p->rows - above), i = p->first + above;
        for (int64_t r = 0; r < REBUILT_ROWS; r++)
            for (int64_t c = 0; c < p->d; c++)
                queries[r * p->d + c] = p->query[(above + smaller(r, rows - 1)) * p->query_row + c];
        int64_t start = p->before < i ? (i - p->before) / REBUILT_PANEL * REBUILT_PANEL : 0;
        int64_t end = p->behind < seen - i - rows ? i + rows + p->behind : seen;
        for (int64_t j = start; j < end; j += REBUILT_PANEL)
            rebuilt_tile(queries, packed + j * p->d, p->d, p->scale, scores + j, wide);
        for (int64_t r = 0; r < rows; r++, i++) {
            int64_t from = p->before < i ? i - p->before : 0;
            int64_t n = p->behind < seen - i - 1 ? i + 1 + p->behind : seen;
            if (from < n) rebuilt_row(p, scores + r * wide, above + r, from, n, out + (above + r) * all * size, size);
        }
    }
    return 1;
#endif
}

int64_t TF_NAME(rebuilt_memory)(int64_t keys, int64_t d) {
    int64_t wide = whole(keys, REBUILT_STEP);
    return REBUILT_ROWS * (wide + d) + (wide * d + 1) / 2;
}

#endif
