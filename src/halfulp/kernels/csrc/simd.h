/* Vectors of VL lanes. GCC's vector types give + - * / & | ^ << >>; the rest is named here, once for each instruction
 * set. Where x86 and C differ the x86 meaning holds: maxf and minf return their second argument if either is a NaN. */
#ifndef SIMD_H
#define SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));

INLINE vf ldf(const float *p) { vf r; memcpy(&r, p, sizeof r); return r; }
INLINE void stf(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vi ldi(const void *p) { vi r; memcpy(&r, p, sizeof r); return r; }
INLINE void sti(void *p, vi x) { memcpy(p, &x, sizeof x); }
INLINE vf asf(vi x) { return (vf)x; }
INLINE vi asi(vf x) { return (vi)x; }
INLINE vf itof(vi x) { return __builtin_convertvector(x, vf); }
INLINE int32_t float_bits(float x) { int32_t r; memcpy(&r, &x, 4); return r; }
INLINE float bits_float(int32_t x) { float r; memcpy(&r, &x, 4); return r; }

#if VL == 16 /* ------------------------------------------------------------------------------------- AVX-512 */
#include <immintrin.h>
typedef __mmask16 vm;
INLINE vf setf(float x) { return (vf)_mm512_set1_ps(x); }
INLINE vi seti(int32_t x) { return (vi)_mm512_set1_epi32(x); }
INLINE vi iota(void) { return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
INLINE vi cvt_rn(vf x) { return (vi)_mm512_cvtps_epi32((__m512)x); }
INLINE vf sqrtv(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
INLINE vf maxf(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf minf(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vi maxu(vi a, vi b) { return (vi)_mm512_max_epu32((__m512i)a, (__m512i)b); }
INLINE vi maxs(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vi mins(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE vm gts(vi a, vi b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm eqs(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm ltf(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE vm lef(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE vm nef(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ); }
INLINE vm andm(vm a, vm b) { return a & b; }
INLINE int countm(vm m) { return __builtin_popcount(m); }
INLINE vi seli(vm m, vi a, vi b) { return (vi)_mm512_mask_mov_epi32((__m512i)b, m, (__m512i)a); }
INLINE vu shl(vu x, int n) { return (vu)_mm512_sllv_epi32((__m512i)x, _mm512_set1_epi32(n)); }
INLINE vu shr(vu x, int n) { return (vu)_mm512_srlv_epi32((__m512i)x, _mm512_set1_epi32(n)); }
INLINE vf gatherf(const float *t, vi i) { return (vf)_mm512_i32gather_ps((__m512i)i, t, 4); }
INLINE vi ldu8(const uint8_t *p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vi ldu16(const uint16_t *p) { return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void stu8(uint8_t *p, vi x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x)); }
INLINE void stu16(uint16_t *p, vi x) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x)); }
INLINE uint32_t reduce_maxu(vi x) { return _mm512_reduce_max_epu32((__m512i)x); }
#elif VL == 8 /* --------------------------------------------------------------------------------------- AVX2 */
#include <immintrin.h>
typedef vi vm;
INLINE vf setf(float x) { return (vf)_mm256_set1_ps(x); }
INLINE vi seti(int32_t x) { return (vi)_mm256_set1_epi32(x); }
INLINE vi iota(void) { return (vi){0, 1, 2, 3, 4, 5, 6, 7}; }
INLINE vi cvt_rn(vf x) { return (vi)_mm256_cvtps_epi32((__m256)x); }
INLINE vf sqrtv(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
INLINE vf maxf(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf minf(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vi maxu(vi a, vi b) { return (vi)_mm256_max_epu32((__m256i)a, (__m256i)b); }
INLINE vi maxs(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vi mins(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE vi seli(vm m, vi a, vi b) { return (vi)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)m); }
INLINE int countm(vm m) { return __builtin_popcount(_mm256_movemask_ps((__m256)m)); }
INLINE vu shl(vu x, int n) { return (vu)_mm256_sllv_epi32((__m256i)x, _mm256_set1_epi32(n)); }
INLINE vu shr(vu x, int n) { return (vu)_mm256_srlv_epi32((__m256i)x, _mm256_set1_epi32(n)); }
INLINE vf gatherf(const float *t, vi i) { return (vf)_mm256_i32gather_ps(t, (__m256i)i, 4); }
INLINE vi ldu8(const uint8_t *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE vi ldu16(const uint16_t *p) { return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE void stu16(uint16_t *p, vi x) { /* x holds 16-bit values */
    __m256i w = _mm256_packus_epi32((__m256i)x, (__m256i)x);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(w, 0x88)));
}
INLINE void stu8(uint8_t *p, vi x) {
    __m256i b = _mm256_shuffle_epi8((__m256i)x, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    uint64_t low = (uint32_t)_mm256_extract_epi32(b, 0), high = (uint32_t)_mm256_extract_epi32(b, 4);
    low |= high << 32;
    memcpy(p, &low, 8);
}
#else /* ------------------------------------------------------- whatever the compiler has: SSE2, NEON, plain C */
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif
typedef vi vm;
INLINE vf setf(float x) { return (vf){x, x, x, x}; }
INLINE vi seti(int32_t x) { return (vi){x, x, x, x}; }
INLINE vi iota(void) { return (vi){0, 1, 2, 3}; }
INLINE vi cvt_rn(vf x) {
#if defined(__SSE2__)
    return (vi)_mm_cvtps_epi32((__m128)x);
#elif defined(__aarch64__)
    return (vi)vcvtnq_s32_f32((float32x4_t)x);
#else
    vi r;
    for (int i = 0; i < VL; i++) r[i] = (int32_t)rintf(x[i]);
    return r;
#endif
}
INLINE vf sqrtv(vf x) {
#if defined(__SSE2__)
    return (vf)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
    return (vf)vsqrtq_f32((float32x4_t)x);
#else
    vf r;
    for (int i = 0; i < VL; i++) r[i] = sqrtf(x[i]);
    return r;
#endif
}
INLINE vi seli(vm m, vi a, vi b) { return (m & a) | (~m & b); }
INLINE vf maxf(vf a, vf b) { return asf(seli((vi)(a > b), asi(a), asi(b))); }
INLINE vf minf(vf a, vf b) { return asf(seli((vi)(a < b), asi(a), asi(b))); }
INLINE vi maxs(vi a, vi b) { return seli(a > b, a, b); }
INLINE vi mins(vi a, vi b) { return seli(a < b, a, b); }
INLINE vi maxu(vi a, vi b) { return seli((vi)((vu)a > (vu)b), a, b); }
INLINE int countm(vm m) { return -(m[0] + m[1] + m[2] + m[3]); }
INLINE vu shl(vu x, int n) { return x << n; }
INLINE vu shr(vu x, int n) { return x >> n; }
INLINE vf gatherf(const float *t, vi i) { return (vf){t[i[0]], t[i[1]], t[i[2]], t[i[3]]}; }
INLINE vi ldu8(const uint8_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
INLINE vi ldu16(const uint16_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
INLINE void stu8(uint8_t *p, vi x) { for (int i = 0; i < VL; i++) p[i] = (uint8_t)x[i]; }
INLINE void stu16(uint16_t *p, vi x) { for (int i = 0; i < VL; i++) p[i] = (uint16_t)x[i]; }
#endif

#if VL < 16
INLINE vm gts(vi a, vi b) { return a > b; }
INLINE vm eqs(vi a, vi b) { return a == b; }
INLINE vm ltf(vf a, vf b) { return (vi)(a < b); }
INLINE vm lef(vf a, vf b) { return (vi)(a <= b); }
INLINE vm nef(vf a, vf b) { return (vi)(a != b); }
INLINE vm andm(vm a, vm b) { return a & b; }
INLINE uint32_t reduce_maxu(vi x) {
    uint32_t best = 0;
    for (int i = 0; i < VL; i++) best = (uint32_t)x[i] > best ? (uint32_t)x[i] : best;
    return best;
}
#endif

INLINE vf self(vm m, vf a, vf b) { return asf(seli(m, asi(a), asi(b))); }
INLINE vi absi(vf x) { return asi(x) & 0x7fffffff; }

#endif
