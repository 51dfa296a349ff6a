/* Tile registers of Intel AMX: products of 8-bit matrices, 16 rows of 64 bytes by 64 x 16, added to 32-bit sums.
 *
 * Linux gives a process these registers only when it is asked, which program_create does. Which kernels use
 * them is decided by backends/cpu/kernels/amx.py.
 */
#ifndef AMX_H
#define AMX_H

#include "integer.h"

#ifdef __AMX_INT8__
/* Tiles 0 to 3 hold sums, `rows` x 16; 4 and 5 the left side, `rows` x `bytes`; 6 and 7 the right side,
 * `bytes` / 4 groups of four neighbours along K for 16 columns. */
INLINE void configure_tiles(int rows, int bytes) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = (uint16_t)(i == 4 || i == 5 ? bytes : 64);
        shape.rows[i] = (uint8_t)(i < 6 ? rows : bytes / 4);
    }
    _tile_loadconfig(&shape);
}

#define BLOCK static __attribute__((noinline, unused)) void

/* Not every compiler knows that tile instructions read memory. */
#define MEMORY_IS_READ __asm__ volatile("" ::: "memory")

/* Sums that wait for their epilogue: `rows` of them at `t`, for the result from element `at` and `column` on, in a
 * panel of the kind that all have (0) or the last one (1). */
struct waiting {
    const int32_t *t;
    long rows, at, column, kind;
};

/* Two rows of 32 integers, (a b) at o and (c d) at p, clipped to 8 bits. Packing works within quarters of a
 * register, which leaves groups of four in the order a0 b0 c0 d0 a1 b1 ... */
#define STORE_ROWS(S, pack)                                                                        \
    INLINE void store_rows_##S(void *o, void *p, v_i32 a, v_i32 b, v_i32 c, v_i32 d) {             \
        const __m512i low = _mm512_packs_epi32((__m512i)a, (__m512i)b);                            \
        const __m512i high = _mm512_packs_epi32((__m512i)c, (__m512i)d);                           \
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); \
        const __m512i both = _mm512_permutexvar_epi32(order, pack(low, high));                     \
        _mm256_storeu_si256(o, _mm512_castsi512_si256(both));                                      \
        _mm256_storeu_si256(p, _mm512_extracti64x4_epi64(both, 1));                                \
    }
STORE_ROWS(u8, _mm512_packus_epi16) STORE_ROWS(i8, _mm512_packs_epi16)
#endif

#endif
