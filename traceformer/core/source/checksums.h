// crc32c by whatever the processor has for it: three streams at a time, or tables.
#ifndef TF_CHECKSUMS_H
#define TF_CHECKSUMS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define STREAM_BYTES 1024

// Made when the library is loaded: what a checksum becomes behind STREAM_BYTES zeros, byte by byte of it, and behind
// one to eight bytes of data.
extern uint32_t tf_behind_a_stream[4][256];
extern uint32_t tf_crc_tables[8][256];

#if defined(__SSE4_2__)
#include <nmmintrin.h>
#define CRC_OF_8(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define CRC_OF_1(crc, byte) (_mm_crc32_u8((crc), (byte)))
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CRC_OF_8(crc, word) (__crc32cd((crc), (word)))
#define CRC_OF_1(crc, byte) (__crc32cb((crc), (byte)))
#endif

static inline uint64_t word_at(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

#ifdef CRC_OF_8
static inline uint32_t behind_a_stream(uint32_t crc) {
    return tf_behind_a_stream[0][crc & 255] ^ tf_behind_a_stream[1][crc >> 8 & 255] ^
           tf_behind_a_stream[2][crc >> 16 & 255] ^ tf_behind_a_stream[3][crc >> 24];
}

static inline uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint32_t a = ~crc;
    for (; n >= 3 * STREAM_BYTES; p += 3 * STREAM_BYTES, n -= 3 * STREAM_BYTES) {
        uint32_t b = 0, c = 0;
        for (size_t i = 0; i < STREAM_BYTES; i += 8) {
            a = CRC_OF_8(a, word_at(p + i));
            b = CRC_OF_8(b, word_at(p + STREAM_BYTES + i));
            c = CRC_OF_8(c, word_at(p + 2 * STREAM_BYTES + i));
        }
        a = behind_a_stream(behind_a_stream(a) ^ b) ^ c;
    }
    for (; n >= 8; p += 8, n -= 8) a = CRC_OF_8(a, word_at(p));
    for (; n; p++, n--) a = CRC_OF_1(a, *p);
    return ~a;
}
#else
static inline uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    crc = ~crc;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t x = word_at(p) ^ crc;
        crc = 0;
        for (int i = 0; i < 8; i++) crc ^= tf_crc_tables[7 - i][x >> 8 * i & 255];
    }
    for (; n; p++, n--) crc = crc >> 8 ^ tf_crc_tables[0][(crc ^ *p) & 255];
    return ~crc;
}
#endif

#endif
