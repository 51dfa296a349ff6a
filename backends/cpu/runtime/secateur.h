/* Vectors, element types and functions that the generated kernels use.
 *
 * Everything is written over GNU vector types. VECTOR_BYTES, set by the target, is the only thing
 * that differs between AVX-512, AVX2, SSE and NEON. A vector of any element type has LANES
 * elements, so that types convert lane by lane; the compiler splits what is wider than a register.
 *
 * Truth values are stored as one byte (0 or 1) and held in registers as a vbool: LANES 32-bit
 * integers, each 0 or -1.
 */
#ifndef SECATEUR_H
#define SECATEUR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif
#define LANES ((int)(VECTOR_BYTES / sizeof(float)))

#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 32")

typedef uint16_t bf16_t;
typedef uint8_t bool_t;
#ifdef __FLT16_MAX__
typedef _Float16 f16_t;
#endif

/* Vector types: v_f32, v_i64, ... and loads and stores of LANES, or of the first n, elements. */
#define VECTOR_TYPE(T, S)                                                                          \
    typedef T v_##S __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T))));           \
    INLINE v_##S load_##S(const void *p) { v_##S v; memcpy(&v, p, sizeof v); return v; }           \
    INLINE void store_##S(void *p, v_##S v) { memcpy(p, &v, sizeof v); }                           \
    INLINE v_##S loadn_##S(const void *p, int n) {                                                 \
        v_##S v = {0}; memcpy(&v, p, (size_t)n * sizeof(T)); return v;                             \
    }                                                                                              \
    INLINE void storen_##S(void *p, v_##S v, int n) { memcpy(p, &v, (size_t)n * sizeof(T)); }      \
    INLINE v_##S gather_##S(const void *p, long stride, int n) {                                   \
        v_##S v = {0}; for (int i = 0; i < n; i++) v[i] = ((const T *)p)[i * stride]; return v;    \
    }                                                                                              \
    INLINE void scatter_##S(void *p, long stride, v_##S v, int n) {                                \
        for (int i = 0; i < n; i++) ((T *)p)[i * stride] = v[i];                                   \
    }
VECTOR_TYPE(float, f32)
VECTOR_TYPE(double, f64)
VECTOR_TYPE(int8_t, i8)
VECTOR_TYPE(uint8_t, u8)
VECTOR_TYPE(int16_t, i16)
VECTOR_TYPE(int32_t, i32)
VECTOR_TYPE(int64_t, i64)
VECTOR_TYPE(uint16_t, bf16)
VECTOR_TYPE(uint8_t, bool)
#ifdef __FLT16_MAX__
VECTOR_TYPE(f16_t, f16)
#endif
typedef v_i32 vbool;
typedef uint32_t v_u32 __attribute__((vector_size(LANES * 4), aligned(4)));

#define CONVERT(v, type) __builtin_convertvector(v, type)

/* Bits of one vector type read as another of the same size. */
INLINE v_i32 bits_f32(v_f32 v) { v_i32 r; memcpy(&r, &v, sizeof r); return r; }
INLINE v_f32 float_bits(v_i32 v) { v_f32 r; memcpy(&r, &v, sizeof r); return r; }

/* For the types that are computed with: a scalar in every lane, and select(mask, a, b), which is a
 * where the mask is set. */
#define COMPUTED_TYPE(T, S, I)                                                                     \
    INLINE v_##S splat_##S(T x) { return x - (v_##S){0}; }                                         \
    INLINE v_##S select_##S(vbool mask, v_##S a, v_##S b) {                                        \
        v_##I m = CONVERT(mask, v_##I), x, y; v_##S r;                                             \
        memcpy(&x, &a, sizeof x); memcpy(&y, &b, sizeof y);                                        \
        x = (m & x) | (~m & y); memcpy(&r, &x, sizeof r); return r;                                \
    }
COMPUTED_TYPE(float, f32, i32)
COMPUTED_TYPE(double, f64, i64)
COMPUTED_TYPE(int8_t, i8, i8)
COMPUTED_TYPE(uint8_t, u8, i8)
COMPUTED_TYPE(int16_t, i16, i16)
COMPUTED_TYPE(int32_t, i32, i32)
COMPUTED_TYPE(int64_t, i64, i64)

/* bf16: the upper half of an f32, rounded to nearest even; a NaN keeps its quiet bit. */
INLINE v_f32 widen_bf16(v_bf16 v) { return float_bits((v_i32)(CONVERT(v, v_u32) << 16)); }
INLINE v_bf16 narrow_bf16(v_f32 v) {
    v_u32 b = (v_u32)bits_f32(v), rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    v_u32 nan = (v_u32)(v != v);
    return CONVERT((nan & ((b >> 16) | 0x40)) | (~nan & rounded), v_bf16);
}
INLINE float scalar_bf16(bf16_t x) { uint32_t b = (uint32_t)x << 16; float f; memcpy(&f, &b, 4); return f; }
INLINE bf16_t to_bf16(float f) {
    uint32_t b; memcpy(&b, &f, 4);
    return (bf16_t)(f != f ? (b >> 16) | 0x40 : (b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

/* A function of the C library applied lane by lane. */
#define LANEWISE1(name, S, call)                                                                   \
    INLINE v_##S name(v_##S x) { v_##S r; for (int i = 0; i < LANES; i++) r[i] = call(x[i]); return r; }
#define LANEWISE2(name, S, call)                                                                   \
    INLINE v_##S name(v_##S x, v_##S y) {                                                          \
        v_##S r; for (int i = 0; i < LANES; i++) r[i] = call(x[i], y[i]); return r;                \
    }
#define LIBM(name)                                                                                 \
    LANEWISE1(name##_f32, f32, name##f)                                                            \
    LANEWISE1(name##_f64, f64, name)
LIBM(sin) LIBM(cos) LIBM(tan) LIBM(asin) LIBM(acos) LIBM(atan) LIBM(sinh) LIBM(cosh)
LIBM(asinh) LIBM(acosh) LIBM(atanh)
LANEWISE2(pow_f32, f32, powf)
LANEWISE2(pow_f64, f64, pow)
LANEWISE2(atan2_f32, f32, atan2f)
LANEWISE2(atan2_f64, f64, atan2)
LANEWISE2(fmod_f32, f32, fmodf)
LANEWISE2(fmod_f64, f64, fmod)
LANEWISE1(exp_f64, f64, exp) LANEWISE1(log_f64, f64, log) LANEWISE1(expm1_f64, f64, expm1)
LANEWISE1(log1p_f64, f64, log1p) LANEWISE1(tanh_f64, f64, tanh) LANEWISE1(erf_f64, f64, erf)

#if defined(__has_builtin)
#if __has_builtin(__builtin_elementwise_roundeven)
#define ROUNDING(name, builtin, scalar)                                                            \
    INLINE v_f32 name##_f32(v_f32 x) { return builtin(x); }                                        \
    INLINE v_f64 name##_f64(v_f64 x) { return builtin(x); }
#endif
#endif
#ifndef ROUNDING
#define ROUNDING(name, builtin, scalar)                                                            \
    LANEWISE1(name##_f32, f32, scalar##f)                                                          \
    LANEWISE1(name##_f64, f64, scalar)
#endif
ROUNDING(floor, __builtin_elementwise_floor, floor)
ROUNDING(ceil, __builtin_elementwise_ceil, ceil)
ROUNDING(trunc, __builtin_elementwise_trunc, trunc)
ROUNDING(round, __builtin_elementwise_roundeven, rint)
ROUNDING(sqrt, __builtin_elementwise_sqrt, sqrt)

#define HORNER(x, first, ...)                                                                      \
    ({                                                                                             \
        const float c_[] = {first, __VA_ARGS__};                                                   \
        v_f32 x_ = (x), r_ = splat_f32(c_[sizeof c_ / 4 - 1]);                                     \
        UNROLL for (int i_ = (int)(sizeof c_ / 4) - 2; i_ >= 0; i_--) r_ = r_ * x_ + c_[i_];       \
        r_;                                                                                        \
    })

/* exp, relative error below 2e-7: x = n ln 2 + r (ln 2 in two parts), exp(r) by a polynomial fitted
 * over |r| <= ln 2 / 2, and 2^n applied in two halves so that subnormal results are reached. */
INLINE v_f32 exp_f32(v_f32 x) {
    v_f32 y = select_f32(x < -110.f, splat_f32(-110.f), x);
    y = select_f32(y > 90.f, splat_f32(90.f), y);
    v_f32 n = (y * 1.44269504f + 12582912.f) - 12582912.f;
    v_f32 r = (y - n * 0.693145752f) - n * 1.42860677e-6f;
    v_f32 p = HORNER(r, 0.49999994f, 0.166665211f, 0.041668389f, 0.00836871564f, 0.00138146011f);
    p = r * r * p + r + 1.f;
    v_i32 whole = CONVERT(select_f32(n == n, n, splat_f32(0.f)), v_i32), half = whole >> 1;
    p = p * float_bits((half + 127) << 23);
    return p * float_bits((whole - half + 127) << 23);
}

/* exp(x) - 1 without cancellation: a polynomial for |x| < 0.5. */
INLINE v_f32 expm1_f32(v_f32 x) {
    v_f32 p = HORNER(x, 0.5f, 0.166666672f, 0.0416666605f, 0.00833314192f, 0.00138893048f,
                     0.000199735834f, 2.47908301e-05f);
    return select_f32((x > -0.5f) & (x < 0.5f), x * x * p + x, exp_f32(x) - 1.f);
}

/* log: x = 2^e m with m in [sqrt(1/2), sqrt(2)); log(m) by a polynomial in m - 1. Zero gives -inf,
 * a negative number NaN. */
INLINE v_f32 log_f32(v_f32 x) {
    vbool tiny = x < 1.17549435e-38f;
    v_f32 y = select_f32(tiny, x * 8388608.f, x);
    v_i32 b = bits_f32(y) - 0x3f3504f3;
    v_f32 e = CONVERT(b >> 23, v_f32) - select_f32(tiny, splat_f32(23.f), splat_f32(0.f));
    v_f32 f = float_bits((b & 0x7fffff) + 0x3f3504f3) - 1.f;
    v_f32 p = HORNER(f, 0.333333135f, -0.250000089f, 0.200021192f, -0.166679963f, 0.142195523f,
                     -0.1240559f, 0.118881665f, -0.116756484f, 0.0674662739f);
    v_f32 r = (f * f * f * p - 0.5f * f * f) + e * 1.42860677e-6f + f + e * 0.693145752f;
    r = select_f32(x == INFINITY, x, r);
    r = select_f32(x == 0.f, splat_f32(-INFINITY), r);
    return select_f32((x < 0.f) | (x != x), splat_f32(NAN), r);
}

/* log(1 + x): the rounding error of u = 1 + x is undone by the factor x / (u - 1). */
INLINE v_f32 log1p_f32(v_f32 x) {
    v_f32 u = 1.f + x;
    v_f32 r = log_f32(u) * (x / (u - 1.f));
    r = select_f32(u == 1.f, x, r);
    return select_f32(x == INFINITY, x, r);
}

/* tanh: odd polynomial below 0.625, 1 - 2 / (exp(2|x|) + 1) above. */
INLINE v_f32 tanh_f32(v_f32 x) {
    v_i32 sign = bits_f32(x) & (int32_t)0x80000000;
    v_f32 a = float_bits(bits_f32(x) & 0x7fffffff);
    v_f32 q = x * x;
    v_f32 small = HORNER(q, -0.333333313f, 0.133332059f, -0.0539467633f, 0.0217007045f,
                         -0.0081773987f, 0.00214296253f) * q * x + x;
    v_f32 large = 1.f - 2.f / (exp_f32(a + a) + 1.f);
    return select_f32(a < 0.625f, small, float_bits(bits_f32(large) | sign));
}

/* erf: x P(x^2) below 1; above, 1 - exp(Q(|x|)) with Q fitted to log(erfc). 1 from 3.95 on. */
INLINE v_f32 erf_f32(v_f32 x) {
    v_i32 sign = bits_f32(x) & (int32_t)0x80000000;
    v_f32 a = float_bits(bits_f32(x) & 0x7fffffff);
    v_f32 small = x * HORNER(x * x, 1.12837923f, -0.376126379f, 0.112837821f, -0.0268654004f,
                             0.00522094592f, -0.000848283351f, 0.000112569775f, -9.64159517e-06f);
    v_f32 c = select_f32(a > 3.95f, splat_f32(3.95f), a);
    v_f32 q = HORNER(c, 0.000204358643f, -1.1296612f, -0.633039653f, -0.108638979f, 0.0253735408f,
                     -0.0042823758f, 0.000463785953f, -2.53144663e-05f, 2.51302225e-07f);
    v_f32 large = select_f32(a > 3.95f, splat_f32(1.f), 1.f - exp_f32(q));
    return select_f32((a < 1.f) | (x != x), small, float_bits(bits_f32(large) | sign));
}

/* Division: an integer divided by zero is 0; floor division rounds towards minus infinity. */
INLINE int minus_one(int64_t x) { return x == -1; } /* the one divisor that can overflow */
#define INTEGER_DIVISION(S)                                                                        \
    INLINE v_##S truncdiv_##S(v_##S a, v_##S b) {                                                  \
        v_##S r;                                                                                   \
        for (int i = 0; i < LANES; i++) r[i] = b[i] == 0 ? 0 : minus_one(b[i]) ? 0 - a[i] : a[i] / b[i]; \
        return r;                                                                                  \
    }                                                                                              \
    INLINE v_##S fmod_##S(v_##S a, v_##S b) {                                                      \
        v_##S r;                                                                                   \
        for (int i = 0; i < LANES; i++) r[i] = b[i] == 0 || minus_one(b[i]) ? 0 : a[i] % b[i];          \
        return r;                                                                                  \
    }                                                                                              \
    INLINE v_##S mod_##S(v_##S a, v_##S b) {                                                       \
        v_##S r = fmod_##S(a, b);                                                                  \
        for (int i = 0; i < LANES; i++) if (r[i] != 0 && (r[i] < 0) != (b[i] < 0)) r[i] += b[i];   \
        return r;                                                                                  \
    }                                                                                              \
    INLINE v_##S floordiv_##S(v_##S a, v_##S b) {                                                  \
        v_##S r = truncdiv_##S(a, b), m = fmod_##S(a, b);                                          \
        for (int i = 0; i < LANES; i++) if (m[i] != 0 && (m[i] < 0) != (b[i] < 0)) r[i] -= 1;      \
        return r;                                                                                  \
    }
INTEGER_DIVISION(i8) INTEGER_DIVISION(u8) INTEGER_DIVISION(i16) INTEGER_DIVISION(i32) INTEGER_DIVISION(i64)

#define FLOAT_DIVISION(S, T, f)                                                                    \
    INLINE T scalar_mod_##S(T a, T b) {                                                            \
        T m = fmod##f(a, b);                                                                       \
        return m != 0 ? ((m < 0) != (b < 0) ? m + b : m) : (m == 0 ? copysign##f(0, b) : m);       \
    }                                                                                              \
    INLINE T scalar_floordiv_##S(T a, T b) {                                                       \
        if (b == 0) return a / b;                                                                  \
        T m = fmod##f(a, b), d = (a - m) / b;                                                      \
        if (m != 0 && (m < 0) != (b < 0)) d -= 1;                                                  \
        if (d == 0) return copysign##f(0, a / b);                                                  \
        T q = floor##f(d);                                                                         \
        return d - q > (T)0.5 ? q + 1 : q;                                                         \
    }                                                                                              \
    LANEWISE2(mod_##S, S, scalar_mod_##S)                                                          \
    LANEWISE2(floordiv_##S, S, scalar_floordiv_##S)
FLOAT_DIVISION(f32, float, f)
FLOAT_DIVISION(f64, double, )

/* Larger and smaller; NaN if either is NaN. */
#define TRUTH(mask) CONVERT(mask, vbool)
#define EXTREMA(S)                                                                                 \
    INLINE v_##S max_##S(v_##S a, v_##S b) { return select_##S(TRUTH((a > b) | (a != a)), a, b); }        \
    INLINE v_##S min_##S(v_##S a, v_##S b) { return select_##S(TRUTH((a < b) | (a != a)), a, b); }
#define INTEGER_EXTREMA(S)                                                                         \
    INLINE v_##S max_##S(v_##S a, v_##S b) { v_##S m = (v_##S)(a > b); return (a & m) | (b & ~m); }       \
    INLINE v_##S min_##S(v_##S a, v_##S b) { v_##S m = (v_##S)(a < b); return (a & m) | (b & ~m); }
EXTREMA(f32) EXTREMA(f64) INTEGER_EXTREMA(i8) INTEGER_EXTREMA(u8) INTEGER_EXTREMA(i16)
INTEGER_EXTREMA(i32) INTEGER_EXTREMA(i64)

/* Float to integer: truncates, saturates, NaN gives 0. `most` is the largest number of the float type
 * that converts; comparisons are false for NaN, which therefore becomes `low` before it becomes 0. */
#define SATURATE(F, T, S, W, low, most, high)                                                      \
    INLINE v_##S F##_to_##S(v_##F x) {                                                             \
        const v_##F least = splat_##F((T)(low)), top = splat_##F((T)(most));                       \
        const v_##F y = select_##F(TRUTH(x > least), x, least);                                    \
        v_##W r = CONVERT(select_##F(TRUTH(y < top), y, top), v_##W);                              \
        if ((T)(most) < (T)(high)) r = select_##W(TRUTH(x >= (T)(high)), splat_##W(high), r);      \
        return CONVERT(select_##W(TRUTH(x == x), r, splat_##W(0)), v_##S);                         \
    }
#define SATURATE_NARROW(F, T)                                                                      \
    SATURATE(F, T, i8, i32, INT8_MIN, INT8_MAX, INT8_MAX) SATURATE(F, T, u8, i32, 0, UINT8_MAX, UINT8_MAX) \
    SATURATE(F, T, i16, i32, INT16_MIN, INT16_MAX, INT16_MAX)
SATURATE_NARROW(f32, float) SATURATE_NARROW(f64, double)
SATURATE(f32, float, i32, i32, INT32_MIN, 2147483520.f, INT32_MAX)
SATURATE(f64, double, i32, i32, INT32_MIN, INT32_MAX, INT32_MAX)
SATURATE(f32, float, i64, i64, INT64_MIN, 9223371487098961920.f, INT64_MAX)
SATURATE(f64, double, i64, i64, INT64_MIN, 9223372036854774784., INT64_MAX)

/* The sum, product or extreme of all lanes, by halves: the same order at every call. */
#define HORIZONTAL(name, S, T, combine)                                                            \
    INLINE T name##_lanes_##S(v_##S v) {                                                           \
        for (int half = LANES / 2; half > 0; half /= 2)                                            \
            for (int i = 0; i < half; i++) { T a = v[i], b = v[i + half]; v[i] = combine; }        \
        return v[0];                                                                               \
    }
#define HORIZONTAL_ALL(S, T)                                                                       \
    HORIZONTAL(sum, S, T, a + b) HORIZONTAL(prod, S, T, a * b)                                     \
    HORIZONTAL(max, S, T, (a > b || a != a) ? a : b) HORIZONTAL(min, S, T, (a < b || a != a) ? a : b)
HORIZONTAL_ALL(f32, float) HORIZONTAL_ALL(f64, double) HORIZONTAL_ALL(i8, int8_t)
HORIZONTAL_ALL(u8, uint8_t) HORIZONTAL_ALL(i16, int16_t) HORIZONTAL_ALL(i32, int32_t)
HORIZONTAL_ALL(i64, int64_t)

#endif
