/* Integer vectors: saturation, fixed-point requantisation, tables, and products of pairs.
 *
 * Everything here is exact and has one meaning on every processor, that of ir/expr.py; instructions of
 * one family stand only where the compiler does not find them by itself.
 */
#ifndef INTEGER_H
#define INTEGER_H

#include "secateur.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Integer to integer, clipped to the limits of the result's type: saturate_i32_u8, ... */
#define CLIP(S, D, T, low, high)                                                                   \
    INLINE v_##D saturate_##S##_##D(v_##S x) {                                                     \
        return CONVERT(min_##S(max_##S(x, splat_##S((T)(low))), splat_##S((T)(high))), v_##D);     \
    }
#define WIDEN(S, D) INLINE v_##D saturate_##S##_##D(v_##S x) { return CONVERT(x, v_##D); }
CLIP(i8, u8, int8_t, 0, INT8_MAX) WIDEN(i8, i8) WIDEN(i8, i16) WIDEN(i8, i32) WIDEN(i8, i64)
CLIP(u8, i8, uint8_t, 0, INT8_MAX) WIDEN(u8, u8) WIDEN(u8, i16) WIDEN(u8, i32) WIDEN(u8, i64)
CLIP(i16, i8, int16_t, INT8_MIN, INT8_MAX) CLIP(i16, u8, int16_t, 0, UINT8_MAX)
WIDEN(i16, i16) WIDEN(i16, i32) WIDEN(i16, i64)
CLIP(i32, i8, int32_t, INT8_MIN, INT8_MAX) CLIP(i32, u8, int32_t, 0, UINT8_MAX)
CLIP(i32, i16, int32_t, INT16_MIN, INT16_MAX) WIDEN(i32, i32) WIDEN(i32, i64)
CLIP(i64, i8, int64_t, INT8_MIN, INT8_MAX) CLIP(i64, u8, int64_t, 0, UINT8_MAX)
CLIP(i64, i16, int64_t, INT16_MIN, INT16_MAX) CLIP(i64, i32, int64_t, INT32_MIN, INT32_MAX) WIDEN(i64, i64)

/* (x * m + 2^(s-1)) >> s, the product in 64 bits, the result modulo 2^32; 1 <= s <= 62 is a constant.
 * The x86 instruction multiplies even lanes. From s = 32 on only the upper halves of the sums matter, and from
 * s = 33 on those of the products: what the lower halves add is less than one, which no later shift can see. */
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE4_1__)
#if defined(__AVX512F__) && VECTOR_BYTES == 64
#define REGISTER __m512i
#define MUL_EVEN(a, b) _mm512_mul_epi32(a, b)
#define EVEN_ODD(even, odd) _mm512_mask_mov_epi32(even, 0xaaaa, odd)
#define UPPER_HALVES(even, odd) _mm512_mask_shuffle_epi32(odd, 0x5555, even, 0xf5)
#elif defined(__AVX2__) && VECTOR_BYTES == 32
#define REGISTER __m256i
#define MUL_EVEN(a, b) _mm256_mul_epi32(a, b)
#define EVEN_ODD(even, odd) _mm256_blend_epi32(even, odd, 0xaa)
#define UPPER_HALVES(even, odd) EVEN_ODD(_mm256_shuffle_epi32(even, 0xf5), odd)
#elif VECTOR_BYTES == 16
#define REGISTER __m128i
#define MUL_EVEN(a, b) _mm_mul_epi32(a, b)
#define EVEN_ODD(even, odd) _mm_blend_epi16(even, odd, 0xcc)
#define UPPER_HALVES(even, odd) EVEN_ODD(_mm_shuffle_epi32(even, 0xf5), odd)
#endif
#endif
#ifdef REGISTER
typedef uint64_t v_pairs __attribute__((vector_size(VECTOR_BYTES), aligned(8)));
INLINE v_i32 mulshift_i32(v_i32 x, v_i32 m, const int s) {
    const v_pairs high_x = (v_pairs)x >> 32, high_m = (v_pairs)m >> 32;
    v_pairs even = (v_pairs)MUL_EVEN((REGISTER)x, (REGISTER)m);
    v_pairs odd = (v_pairs)MUL_EVEN((REGISTER)high_x, (REGISTER)high_m);
    if (s > 32) return ((v_i32)UPPER_HALVES((REGISTER)even, (REGISTER)odd) + (1 << (s > 32 ? s - 33 : 0))) >> (s & 31);
    const v_pairs half = (v_pairs){0} + ((uint64_t)1 << (s - 1));
    even += half, odd += half;
    if (s == 32) return (v_i32)UPPER_HALVES((REGISTER)even, (REGISTER)odd);
    return (v_i32)EVEN_ODD((REGISTER)(even >> (s & 31)), (REGISTER)(odd << (32 - (s & 31))));
}
/* Sums of squares in 64 bits, of even and odd lanes together. */
typedef v_pairs v_wide;
INLINE v_wide add_squares(v_wide sums, v_i32 x) {
    const v_pairs high = (v_pairs)x >> 32;
    return sums + (v_wide)MUL_EVEN((REGISTER)x, (REGISTER)x) + (v_wide)MUL_EVEN((REGISTER)high, (REGISTER)high);
}
#else
INLINE v_i32 mulshift_i32(v_i32 x, v_i32 m, const int s) {
    const v_i64 product = CONVERT(x, v_i64) * CONVERT(m, v_i64);
    return CONVERT((product + ((int64_t)1 << (s - 1))) >> s, v_i32);
}
typedef v_i64 v_wide;
INLINE v_wide add_squares(v_wide sums, v_i32 x) {
    const v_i64 wide = CONVERT(x, v_i64);
    return sums + wide * wide;
}
#endif

INLINE int64_t floor_div_i64(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

/* The largest r with r * r <= x, for 0 <= x < 2^62: the root in floating point is off by one at most. */
INLINE int64_t root_i64(int64_t x) {
    int64_t r = (int64_t)sqrt((double)x);
    r -= r * r > x;
    return r + ((r + 1) * (r + 1) <= x);
}

/* (x + 2^(s-1)) >> s without overflow, for any s >= 1. */
INLINE v_i32 shift_rounded_i32(v_i32 x, const int s) {
    if (s > 31) return (v_i32){0};
    return s == 1 ? (x >> 1) + (x & 1) : ((x >> (s - 1)) + 1) >> 1;
}

/* acc + low * low + high * high, where x and w hold two i16 in each lane. */
INLINE v_i32 add_pairs(v_i32 acc, v_i32 x, v_i32 w) {
#if defined(__AVX512VNNI__) && VECTOR_BYTES == 64
    return (v_i32)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
#elif defined(__AVX512BW__) && VECTOR_BYTES == 64
    return acc + (v_i32)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    return acc + (v_i32)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__) && VECTOR_BYTES == 16
    return acc + (v_i32)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
    return acc + ((x << 16) >> 16) * ((w << 16) >> 16) + (x >> 16) * (w >> 16);
#endif
}

/* Two rows of elements as such pairs. */
INLINE v_i32 pairs_u8(v_u8 low, v_u8 high) { return CONVERT(low, v_i32) | (CONVERT(high, v_i32) << 16); }
INLINE v_i32 pairs_i8(v_i8 low, v_i8 high) {
    return (CONVERT(low, v_i32) & 0xffff) | (CONVERT(high, v_i32) << 16);
}

/* Four rows of elements as quads of bytes, all u8: i8 has its top bit flipped, which adds 128. */
#if defined(__AVX512BW__) && VECTOR_BYTES == 64
INLINE v_i32 quads_u8(v_u8 a, v_u8 b, v_u8 c, v_u8 d) {
    __m512i v = _mm512_castsi128_si512((__m128i)a);
    v = _mm512_inserti32x4(v, (__m128i)b, 1);
    v = _mm512_inserti32x4(v, (__m128i)c, 2);
    v = _mm512_inserti32x4(v, (__m128i)d, 3);
    v = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
    return (v_i32)_mm512_shuffle_epi8(
        v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}
#elif VECTOR_BYTES == 32
typedef uint16_t v_two __attribute__((vector_size(16)));
INLINE v_i32 quads_u8(v_u8 a, v_u8 b, v_u8 c, v_u8 d) {
    const v_two ab = (v_two)__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    const v_two cd = (v_two)__builtin_shufflevector(c, d, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    return (v_i32)__builtin_shufflevector(ab, cd, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
}
#endif
#if VECTOR_BYTES > 16
INLINE v_i32 quads_i8(v_i8 a, v_i8 b, v_i8 c, v_i8 d) {
    return quads_u8((v_u8)a, (v_u8)b, (v_u8)c, (v_u8)d) ^ (int32_t)0x80808080;
}
#endif

#if defined(__AVX512BW__) && VECTOR_BYTES == 64
/* (255 * decay + 2^14) >> 15 for 64 exponents >= 0, as bytes: the polynomial of `decay` on lanes of 16 bits.
 * vpmulhrsw is (a * b + 2^14) >> 15, with f * 128 as a the (f * b + 2^7) >> 8 of the definition. Exponents
 * are cut off at 2^15 - 1, where the weight is 0 as it is from 15 * 256 on: more bits are shifted out. */
INLINE __m512i octave_i16(__m512i y) {
    const __m512i f = _mm512_and_si512(_mm512_slli_epi16(y, 7), _mm512_set1_epi16(0x7f80));
    __m512i p = _mm512_sub_epi16(_mm512_set1_epi16(7607), _mm512_mulhrs_epi16(f, _mm512_set1_epi16(1325)));
    p = _mm512_sub_epi16(_mm512_set1_epi16(22670), _mm512_mulhrs_epi16(f, p));
    p = _mm512_sub_epi16(_mm512_set1_epi16(32767), _mm512_mulhrs_epi16(f, p));
    p = _mm512_srlv_epi16(p, _mm512_srli_epi16(y, 8));
    return _mm512_mulhrs_epi16(p, _mm512_set1_epi16(255));
}
INLINE __m512i weights_u8(v_i32 a, v_i32 b, v_i32 c, v_i32 d) {
    const __m512i low = octave_i16(_mm512_packs_epi32((__m512i)a, (__m512i)b));
    const __m512i high = octave_i16(_mm512_packs_epi32((__m512i)c, (__m512i)d));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                    _mm512_packus_epi16(low, high)); /* packing goes by quarters */
}
#endif

/* Tables. place: 0..255 -> an entry. The entries are bytes (S: i8, u8) or i32. */
INLINE v_i32 entries_i32(v_u8 place, const int32_t *table) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    return (v_i32)_mm512_i32gather_epi32((__m512i)CONVERT(place, v_i32), table, 4);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    return (v_i32)_mm256_i32gather_epi32(table, (__m256i)CONVERT(place, v_i32), 4);
#else
    v_i32 r;
    for (int i = 0; i < LANES; i++) r[i] = table[place[i]];
    return r;
#endif
}
/* 256 bytes fill four registers: each instruction picks from two of them by the low seven bits. */
INLINE v_u8 entries_u8(v_u8 place, const void *table) {
#if defined(__AVX512VBMI__) && VECTOR_BYTES == 64
    const __m512i *t = table;
    const __m512i at = _mm512_castsi128_si512((__m128i)place);
    const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(t), at, _mm512_loadu_si512(t + 1));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(t + 2), at, _mm512_loadu_si512(t + 3));
    return (v_u8)_mm_mask_mov_epi8(_mm512_castsi512_si128(low), _mm_movepi8_mask((__m128i)place),
                                   _mm512_castsi512_si128(high));
#elif defined(__AVX512BW__) && VECTOR_BYTES == 64
    /* The same with words: 128 of them, of which the lowest bit picks a byte. */
    const __m512i *t = table;
    const __m256i wide = _mm256_cvtepu8_epi16((__m128i)place);
    const __m512i at = _mm512_castsi256_si512(_mm256_srli_epi16(wide, 1));
    const __m512i low = _mm512_permutex2var_epi16(_mm512_loadu_si512(t), at, _mm512_loadu_si512(t + 1));
    const __m512i high = _mm512_permutex2var_epi16(_mm512_loadu_si512(t + 2), at, _mm512_loadu_si512(t + 3));
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    const __m256i words = _mm512_castsi512_si256(_mm512_mask_mov_epi16(low, upper, high));
    const __m256i part = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(1)), 3);
    return (v_u8)_mm256_cvtepi16_epi8(_mm256_srlv_epi16(words, part));
#else
    v_u8 r;
    for (int i = 0; i < LANES; i++) r[i] = ((const uint8_t *)table)[place[i]];
    return r;
#endif
}
INLINE v_u8 place_u8(v_u8 x) { return x; }
INLINE v_u8 place_i8(v_i8 x) { return (v_u8)x ^ (uint8_t)0x80; }
#define TABLE(S)                                                                                   \
    INLINE v_i32 lookup_##S##_i32(v_##S x, const int32_t *t) { return entries_i32(place_##S(x), t); } \
    INLINE v_i32 lookup_##S##_u8(v_##S x, const uint8_t *t) {                                      \
        return CONVERT(entries_u8(place_##S(x), t), v_i32);                                        \
    }                                                                                              \
    INLINE v_i32 lookup_##S##_i8(v_##S x, const int8_t *t) {                                       \
        return CONVERT((v_i8)entries_u8(place_##S(x), t), v_i32);                                  \
    }
TABLE(u8) TABLE(i8)

/* i16 -> a value between two of 129 entries of a table. */
INLINE v_i32 between(v_i32 low, v_i32 high, v_i32 u) { return low + (((high - low) * (u & 511) + 256) >> 9); }
#if defined(__AVX512F__) && VECTOR_BYTES == 64
/* 128 entries fill eight registers: each instruction picks from two of them by the low five bits. */
INLINE v_i32 entries128_i32(__m512i at, __mmask16 odd, __mmask16 upper, const int32_t *t) {
#define PICK(j) _mm512_permutex2var_epi32(_mm512_loadu_si512(t + 32 * j), at, _mm512_loadu_si512(t + 32 * j + 16))
    const __m512i low = _mm512_mask_mov_epi32(PICK(0), odd, PICK(1));
    return (v_i32)_mm512_mask_mov_epi32(low, upper, _mm512_mask_mov_epi32(PICK(2), odd, PICK(3)));
#undef PICK
}
#endif
INLINE v_i32 lookup_i16_i32(v_i16 x, const int32_t *table) {
    const v_i32 u = CONVERT(x, v_i32) + 32768, at = u >> 9;
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    const __mmask16 odd = _mm512_test_epi32_mask((__m512i)at, _mm512_set1_epi32(32));
    const __mmask16 upper = _mm512_test_epi32_mask((__m512i)at, _mm512_set1_epi32(64));
    const v_i32 low = entries128_i32((__m512i)at, odd, upper, table);
    const v_i32 high = entries128_i32((__m512i)at, odd, upper, table + 1);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    const v_i32 low = (v_i32)_mm256_i32gather_epi32(table, (__m256i)at, 4);
    const v_i32 high = (v_i32)_mm256_i32gather_epi32(table + 1, (__m256i)at, 4);
#else
    v_i32 low, high;
    for (int i = 0; i < LANES; i++) { low[i] = table[at[i]]; high[i] = table[at[i] + 1]; }
#endif
    return between(low, high, u);
}
#if defined(__AVX512BW__) && VECTOR_BYTES == 64
INLINE v_i16 entries_i16(__m512i at, const int16_t *t) {
    const __m512i low = _mm512_permutex2var_epi16(_mm512_loadu_si512(t), at, _mm512_loadu_si512(t + 32));
    const __m512i high = _mm512_permutex2var_epi16(_mm512_loadu_si512(t + 64), at, _mm512_loadu_si512(t + 96));
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    return (v_i16)_mm512_castsi512_si256(_mm512_mask_mov_epi16(low, upper, high));
}
#endif
INLINE v_i32 lookup_i16_i16(v_i16 x, const int16_t *table) {
    const v_i32 u = CONVERT(x, v_i32) + 32768;
#if defined(__AVX512BW__) && VECTOR_BYTES == 64
    const __m256i place = _mm256_srli_epi16(_mm256_xor_si256((__m256i)x, _mm256_set1_epi16((short)0x8000)), 9);
    const __m512i at = _mm512_castsi256_si512(place);
    return between(CONVERT(entries_i16(at, table), v_i32), CONVERT(entries_i16(at, table + 1), v_i32), u);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    const v_i32 both = (v_i32)_mm256_i32gather_epi32((const int *)table, (__m256i)(u >> 9), 2);
    return between((both << 16) >> 16, both >> 16, u);
#else
    v_i32 low, high;
    for (int i = 0; i < LANES; i++) { low[i] = table[u[i] >> 9]; high[i] = table[(u[i] >> 9) + 1]; }
    return between(low, high, u);
#endif
}

#endif
