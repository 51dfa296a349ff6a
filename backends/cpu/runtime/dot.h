/* Steps of 8-bit products: 4 neighbours along K, or 2 (`add_pairs`), multiplied and added to each 32-bit
 * sum, modulo 2^32.
 * Which of them a target uses is decided by backends/cpu/dot.py.
 */
#ifndef DOT_H
#define DOT_H

#include "integer.h"

#ifdef __ARM_FEATURE_DOTPROD
#include <arm_neon.h>
#endif

/* Four bytes at p in every lane. */
INLINE v_i32 splat_word(const void *p) { int32_t w; memcpy(&w, p, 4); return splat_i32(w); }

/* A vector of packed 8-bit weights: quads as they are, pairs widened to 16 bits. */
INLINE v_i32 load_quads(const void *p) { return load_i32(p); }
typedef int16_t v_pairs_i16 __attribute__((vector_size(LANES * 4)));
typedef int8_t v_pairs_i8 __attribute__((vector_size(LANES * 2)));
typedef uint8_t v_pairs_u8 __attribute__((vector_size(LANES * 2)));
#define LOAD_PAIRS(S)                                                                              \
    INLINE v_i32 load_pairs_##S(const void *p) {                                                   \
        v_pairs_##S bytes; memcpy(&bytes, p, sizeof bytes);                                        \
        return (v_i32)CONVERT(bytes, v_pairs_i16);                                                 \
    }
LOAD_PAIRS(i8) LOAD_PAIRS(u8)

#if VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
INLINE v_i32 add_quads(v_i32 c, v_i32 x, v_i32 b) {
    return (v_i32)_mm512_dpbusd_epi32((__m512i)c, (__m512i)x, (__m512i)b);
}
#elif VECTOR_BYTES == 32 && defined(__AVXVNNI__)
INLINE v_i32 add_quads(v_i32 c, v_i32 x, v_i32 b) {
    return (v_i32)_mm256_dpbusd_avx_epi32((__m256i)c, (__m256i)x, (__m256i)b);
}
#elif VECTOR_BYTES == 16 && defined(__ARM_FEATURE_DOTPROD)
INLINE v_i32 add_quads(v_i32 c, v_i32 x, v_i32 b) {
    return (v_i32)vdotq_s32((int32x4_t)c, (int8x16_t)x, (int8x16_t)b);
}
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
/* What the sums over a packed panel start from when every element on the left is `shift` too large: the first
 * n of a bias (or 0), less shift times the sum of each column. */
INLINE void start_sums(int32_t *start, const int32_t *bias, long n, const void *b, long steps, int width, int shift) {
    memset(start, 0, sizeof *start * (size_t)width);
    if (bias) memcpy(start, bias, sizeof *start * (size_t)n);
    for (int j = 0; j < width; j += LANES) {
        v_i32 sum = {0};
        const char *at = (const char *)b + 4 * j;
        for (long k = 0; k < steps; k++) sum = add_quads(sum, splat_i32(0x01010101), load_quads(at + k * 4 * width));
        store_i32(start + j, load_i32(start + j) - sum * shift);
    }
}
#endif

/* Number n of the eight signed 4-bit numbers in each lane. */
INLINE v_f32 nibble_f32(v_i32 words, const int n) {
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return (v_f32)_mm512_permutexvar_ps((__m512i)((v_u32)words >> (4 * n)), numbers);
#else
    return CONVERT((words << (28 - 4 * n)) >> 28, v_f32);
#endif
}

/* Two vectors clipped to 8 bits and stored side by side. Packing works within quarters of a register, which
 * leaves groups of four results in the order a0 b0 .. a1 b1 .. */
#if VECTOR_BYTES == 64 && defined(__AVX512BW__)
#define STORE_PAIR(S, pack)                                                                        \
    INLINE void store_pair_##S(void *o, v_i32 a, v_i32 b) {                                        \
        const __m512i words = _mm512_packs_epi32((__m512i)a, (__m512i)b);                          \
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13); \
        const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_##pack##_epi16(words, words)); \
        _mm256_storeu_si256(o, _mm512_castsi512_si256(bytes));                                     \
    }
STORE_PAIR(u8, packus) STORE_PAIR(i8, packs)
#elif VECTOR_BYTES == 32 && defined(__AVX2__)
#define STORE_PAIR(S, pack)                                                                        \
    INLINE void store_pair_##S(void *o, v_i32 a, v_i32 b) {                                        \
        const __m256i words = _mm256_packs_epi32((__m256i)a, (__m256i)b);                          \
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);                           \
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_##pack##_epi16(words, words), order); \
        _mm_storeu_si128(o, _mm256_castsi256_si128(bytes));                                        \
    }
STORE_PAIR(u8, packus) STORE_PAIR(i8, packs)
#elif VECTOR_BYTES == 16 && defined(__SSE2__)
#define STORE_PAIR(S, pack)                                                                        \
    INLINE void store_pair_##S(void *o, v_i32 a, v_i32 b) {                                        \
        const __m128i words = _mm_packs_epi32((__m128i)a, (__m128i)b);                             \
        _mm_storeu_si64(o, _mm_##pack##_epi16(words, words));                                      \
    }
STORE_PAIR(u8, packus) STORE_PAIR(i8, packs)
#else
#define STORE_PAIR(S)                                                                              \
    INLINE void store_pair_##S(void *o, v_i32 a, v_i32 b) {                                        \
        store_##S(o, saturate_i32_##S(a));                                                         \
        store_##S((char *)o + LANES, saturate_i32_##S(b));                                         \
    }
STORE_PAIR(u8) STORE_PAIR(i8)
#endif

#endif
