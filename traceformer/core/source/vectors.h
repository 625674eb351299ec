// Sixteen floats at a time, under one set of names, whatever the processor has for it.
//
// Every operation is rounded once, a fused multiply-add too, and each lane does the same in every variant: AVX-512,
// AVX2 and NEON give equal bits. The plain variant has no fused multiply-add, and rounds twice.
#ifndef TF_VECTORS_H
#define TF_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

#if defined(TF_AVX512)
#include <immintrin.h>
#define TILE_ROWS 6
#define TILE_VECTORS 4
#define MOST_DIRECTIONS 10
typedef __m512 V;
static inline V v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, V x) { _mm512_storeu_ps(p, x); }
static inline V v_all(float x) { return _mm512_set1_ps(x); }
static inline V v_add(V x, V y) { return _mm512_add_ps(x, y); }
static inline V v_sub(V x, V y) { return _mm512_sub_ps(x, y); }
static inline V v_mul(V x, V y) { return _mm512_mul_ps(x, y); }
static inline V v_fma(V x, V y, V z) { return _mm512_fmadd_ps(x, y, z); }
// The larger; y where one of them is NaN.
static inline V v_max(V x, V y) { return _mm512_max_ps(x, y); }
static inline V v_round(V x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2 to the power of whole numbers from -126 to 127.
static inline V v_power(V n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// A number above 0 as m * 2^e, sqrt(1/2) <= m < sqrt(2).
static inline V v_split(V x, V *e) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i from = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3));
    *e = _mm512_cvtepi32_ps(_mm512_srai_epi32(from, 23));
    __m512i whole = _mm512_and_si512(from, _mm512_set1_epi32((int)0xff800000));
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, whole));
}
static inline V v_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline void v_store_half(uint16_t *p, V x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(TF_AVX2)
#include <immintrin.h>
#define TILE_ROWS 6
#define TILE_VECTORS 1
#define MOST_DIRECTIONS 4
typedef struct {
    __m256 a, b;
} V;
static inline V v_load(const float *p) { return (V){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void v_store(float *p, V x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
static inline V v_all(float x) { return (V){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline V v_add(V x, V y) { return (V){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline V v_sub(V x, V y) { return (V){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline V v_mul(V x, V y) { return (V){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline V v_fma(V x, V y, V z) { return (V){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline V v_max(V x, V y) { return (V){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline __m256 half_round(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_round(V x) { return (V){half_round(x.a), half_round(x.b)}; }
static inline __m256 half_power(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline V v_power(V n) { return (V){half_power(n.a), half_power(n.b)}; }
static inline __m256 half_split(__m256 x, __m256 *e) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i from = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3));
    *e = _mm256_cvtepi32_ps(_mm256_srai_epi32(from, 23));
    __m256i whole = _mm256_and_si256(from, _mm256_set1_epi32((int)0xff800000));
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, whole));
}
static inline V v_split(V x, V *e) { return (V){half_split(x.a, &e->a), half_split(x.b, &e->b)}; }
static inline V v_load_half(const uint16_t *p) {
    const __m128i *halves = (const __m128i *)p;
    return (V){_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
static inline void v_store_half(uint16_t *p, V x) {
    __m128i *halves = (__m128i *)p;
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(TF_NEON)
#include <arm_neon.h>
#define TILE_ROWS 5
#define TILE_VECTORS 1
#define MOST_DIRECTIONS 4
typedef struct {
    float32x4_t q[4];
} V;
#define EACH_QUARTER(value)                                                                                            \
    V made;                                                                                                            \
    for (int i = 0; i < 4; i++) made.q[i] = (value);                                                                   \
    return made
static inline V v_load(const float *p) { EACH_QUARTER(vld1q_f32(p + 4 * i)); }
static inline void v_store(float *p, V x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.q[i]);
}
static inline V v_all(float x) { EACH_QUARTER(vdupq_n_f32(x)); }
static inline V v_add(V x, V y) { EACH_QUARTER(vaddq_f32(x.q[i], y.q[i])); }
static inline V v_sub(V x, V y) { EACH_QUARTER(vsubq_f32(x.q[i], y.q[i])); }
static inline V v_mul(V x, V y) { EACH_QUARTER(vmulq_f32(x.q[i], y.q[i])); }
static inline V v_fma(V x, V y, V z) { EACH_QUARTER(vfmaq_f32(z.q[i], x.q[i], y.q[i])); }
static inline V v_max(V x, V y) { EACH_QUARTER(vbslq_f32(vcgtq_f32(x.q[i], y.q[i]), x.q[i], y.q[i])); }
static inline V v_round(V x) { EACH_QUARTER(vrndnq_f32(x.q[i])); }
static inline V v_power(V n) {
    EACH_QUARTER(vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.q[i]), vdupq_n_s32(127)), 23)));
}
static inline V v_split(V x, V *e) {
    V made;
    for (int i = 0; i < 4; i++) {
        int32x4_t bits = vreinterpretq_s32_f32(x.q[i]);
        int32x4_t from = vsubq_s32(bits, vdupq_n_s32(0x3f3504f3));
        e->q[i] = vcvtq_f32_s32(vshrq_n_s32(from, 23));
        int32x4_t whole = vandq_s32(from, vdupq_n_s32((int)0xff800000));
        made.q[i] = vreinterpretq_f32_s32(vsubq_s32(bits, whole));
    }
    return made;
}
static inline V v_load_half(const uint16_t *p) {
    EACH_QUARTER(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
static inline void v_store_half(uint16_t *p, V x) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.q[i])));
}

#else
#define TILE_ROWS 4
#define TILE_VECTORS 1
#define MOST_DIRECTIONS 4
typedef struct {
    float x[LANES];
} V;
#define EACH_LANE(value)                                                                                               \
    V made;                                                                                                            \
    for (int i = 0; i < LANES; i++) made.x[i] = (value);                                                               \
    return made
static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline V v_load(const float *p) { EACH_LANE(p[i]); }
static inline void v_store(float *p, V x) { memcpy(p, x.x, sizeof x.x); }
static inline V v_all(float x) { EACH_LANE(x); }
static inline V v_add(V x, V y) { EACH_LANE(x.x[i] + y.x[i]); }
static inline V v_sub(V x, V y) { EACH_LANE(x.x[i] - y.x[i]); }
static inline V v_mul(V x, V y) { EACH_LANE(x.x[i] * y.x[i]); }
static inline V v_fma(V x, V y, V z) { EACH_LANE(x.x[i] * y.x[i] + z.x[i]); }
static inline V v_max(V x, V y) { EACH_LANE(x.x[i] > y.x[i] ? x.x[i] : y.x[i]); }
// Added to 1.5 * 2^23, a float has no digits left for what is behind the point.
static inline V v_round(V x) { EACH_LANE((x.x[i] + 12582912.f) - 12582912.f); }
static inline V v_power(V n) { EACH_LANE(float_of((uint32_t)((int32_t)n.x[i] + 127) << 23)); }
static inline V v_split(V x, V *e) {
    V made;
    for (int i = 0; i < LANES; i++) {
        int32_t from = (int32_t)(bits_of(x.x[i]) - 0x3f3504f3u);
        e->x[i] = (float)(from >> 23);
        made.x[i] = float_of(bits_of(x.x[i]) - ((uint32_t)from & 0xff800000u));
    }
    return made;
}
static inline float float_of_half(uint16_t half) {
    // As a float its exponent is 112 too small; that of a subnormal is put right by the multiplication.
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    float x = float_of(magnitude) * 0x1p112f;
    if (magnitude >= 0x0f800000u) x = float_of(magnitude | 0x7f800000u);
    return half & 0x8000 ? -x : x;
}
static inline uint16_t half_of_float(float x) {
    uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));  // a quiet NaN
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000u)  // a subnormal: the sum's last digits are those that are kept
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000u) >> 13));
}
static inline V v_load_half(const uint16_t *p) { EACH_LANE(float_of_half(p[i])); }
static inline void v_store_half(uint16_t *p, V x) {
    for (int i = 0; i < LANES; i++) p[i] = half_of_float(x.x[i]);
}
#endif

// The sum of the lanes, in the order that the plain variant has, and the largest of them.
#if defined(TF_AVX512) || defined(TF_AVX2)
#define HALVES(name, of_four, of_one)                                                                                  \
    static inline float name(__m256 x) {                                                                               \
        __m128 four = of_four(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));                                 \
        __m128 two = of_four(four, _mm_movehl_ps(four, four));                                                         \
        return _mm_cvtss_f32(of_one(two, _mm_shuffle_ps(two, two, 1)));                                                \
    }
HALVES(half_sum, _mm_add_ps, _mm_add_ss)
HALVES(half_largest, _mm_max_ps, _mm_max_ss)
#if defined(TF_AVX512)
#define LOWER(x) _mm512_castps512_ps256(x)
#define UPPER(x) _mm512_extractf32x8_ps(x, 1)
#else
#define LOWER(x) (x).a
#define UPPER(x) (x).b
#endif
static inline float v_sum(V x) { return half_sum(_mm256_add_ps(LOWER(x), UPPER(x))); }
static inline float v_largest(V x) { return half_largest(_mm256_max_ps(LOWER(x), UPPER(x))); }
#else
static inline float v_sum(V x) {
    float lane[LANES];
    v_store(lane, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
static inline float v_largest(V x) {
    float lane[LANES], largest;
    v_store(lane, x);
    largest = lane[0];
    for (int i = 1; i < LANES; i++) largest = lane[i] > largest ? lane[i] : largest;
    return largest;
}
#endif

// e^x for x <= 0, to 1e-7 of it; what is below e^-87 is about that; NaN of NaN.
static inline V v_exp(V x) {
    x = v_max(v_all(-87.f), x);
    V n = v_round(v_mul(x, v_all(1.44269504088896341f)));
    V r = v_fma(n, v_all(-0.693359375f), x);
    r = v_fma(n, v_all(2.12194440e-4f), r);
    V p = v_all(1.9875691500e-4f);
    p = v_fma(p, r, v_all(1.3981999507e-3f));
    p = v_fma(p, r, v_all(8.3334519073e-3f));
    p = v_fma(p, r, v_all(4.1665795894e-2f));
    p = v_fma(p, r, v_all(1.6666665459e-1f));
    p = v_fma(p, r, v_all(5.0000001201e-1f));
    p = v_fma(p, v_mul(r, r), v_add(r, v_all(1.f)));
    return v_mul(p, v_power(n));
}

// The logarithm to the base of 2 of a number above 0, to 1e-7 of 1 or of it.
static inline V v_log2(V x) {
    V e, t = v_sub(v_split(x, &e), v_all(1.f)), square = v_mul(t, t);
    V p = v_all(7.0376836292E-2f);
    p = v_fma(p, t, v_all(-1.1514610310E-1f));
    p = v_fma(p, t, v_all(1.1676998740E-1f));
    p = v_fma(p, t, v_all(-1.2420140846E-1f));
    p = v_fma(p, t, v_all(1.4249322787E-1f));
    p = v_fma(p, t, v_all(-1.6668057665E-1f));
    p = v_fma(p, t, v_all(2.0000714765E-1f));
    p = v_fma(p, t, v_all(-2.4999993993E-1f));
    p = v_fma(p, t, v_all(3.3333331174E-1f));
    V natural = v_fma(v_mul(p, square), t, v_fma(square, v_all(-.5f), t));
    return v_fma(natural, v_all(1.44269504088896341f), e);
}

#endif
