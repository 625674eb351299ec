// What there is once, whatever the processor: which variant it can run, and tables.
#include <stdint.h>

#include "checksums.h"

#define SHOWN __attribute__((visibility("default")))

uint32_t tf_behind_a_stream[4][256];
uint32_t tf_crc_tables[8][256];

// Rises with every change of what a function takes; the Python beside it refuses another.
SHOWN int tf_interface(void) { return TF_INTERFACE; }

// The digest of what the library was made of.
SHOWN const char *tf_source(void) { return TF_SOURCE; }

// 2 for avx512 or neon, 1 for avx2, 0 for plain: the best that this processor can run.
SHOWN int tf_processor(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("sse4.2")) return 0;
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return wide ? 2 : 1;
#elif defined(__aarch64__)
    return 2;
#else
    return 0;
#endif
}

// What a linear function of 32 bits, given by what it makes of each bit, makes of all.
static uint32_t applied(const uint32_t *function, uint32_t bits) {
    uint32_t made = 0;
    for (int i = 0; bits; i++, bits >>= 1)
        if (bits & 1) made ^= function[i];
    return made;
}

// Fills the tables. To be called once, before anything else.
SHOWN void tf_prepare(void) {
    uint32_t zeros[32], twice[32];  // what a checksum becomes behind one zero bit, two, four, ...
    zeros[0] = 0x82f63b78u;
    for (int i = 1; i < 32; i++) zeros[i] = 1u << (i - 1);
    for (int bits = 1; bits < 8 * STREAM_BYTES; bits *= 2) {
        for (int i = 0; i < 32; i++) twice[i] = applied(zeros, zeros[i]);
        for (int i = 0; i < 32; i++) zeros[i] = twice[i];
    }
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t x = 0; x < 256; x++) tf_behind_a_stream[byte][x] = applied(zeros, x << 8 * byte);
    for (uint32_t x = 0; x < 256; x++) {
        uint32_t crc = x;
        for (int i = 0; i < 8; i++) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
        tf_crc_tables[0][x] = crc;
    }
    for (int i = 1; i < 8; i++)
        for (uint32_t x = 0; x < 256; x++) {
            uint32_t before = tf_crc_tables[i - 1][x];
            tf_crc_tables[i][x] = before >> 8 ^ tf_crc_tables[0][before & 255];
        }
}
