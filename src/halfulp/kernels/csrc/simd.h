/* Vectors of VL lanes. GCC's vector types provide + - * / & | ^ << >>. Other operations are defined here for each
   instruction set. Where x86 and C differ, x86 applies: maxf and minf return their second argument if either is NaN. */
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
typedef int32_t v4 __attribute__((vector_size(16))); /* one number for each of four blocks */
typedef float v4f __attribute__((vector_size(16)));

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
INLINE vi cvt_rn_where(vm m, vf x, vi otherwise) { return (vi)_mm512_mask_cvtps_epi32((__m512i)otherwise, m, (__m512)x); }
INLINE vf sqrtv(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
INLINE vf maxf(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf minf(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vi maxs(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vi mins(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE vm gts(vi a, vi b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm eqs(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm ltf(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE vm lef(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE vm nef(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ); }
INLINE vm eqf(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE vm andm(vm a, vm b) { return a & b; }
INLINE vm orm(vm a, vm b) { return a | b; }
INLINE vm notm(vm a) { return (vm)~a; }
INLINE vi count_where(vi x, vm m) { return (vi)_mm512_mask_add_epi32((__m512i)x, m, (__m512i)x, _mm512_set1_epi32(1)); }
INLINE int countm(vm m) { return __builtin_popcount(m); }
INLINE vi seli(vm m, vi a, vi b) { return (vi)_mm512_mask_mov_epi32((__m512i)b, m, (__m512i)a); }
INLINE vu shl(vu x, int n) { return (vu)_mm512_sllv_epi32((__m512i)x, _mm512_set1_epi32(n)); }
INLINE vu shr(vu x, int n) { return (vu)_mm512_srlv_epi32((__m512i)x, _mm512_set1_epi32(n)); }
INLINE vf gatherf(const float *t, vi i) { return (vf)_mm512_i32gather_ps((__m512i)i, t, 4); }
INLINE vi gatheri(const int32_t *t, vi i) { return (vi)_mm512_i32gather_epi32((__m512i)i, t, 4); }
INLINE vf absf_least(vf x, float least) { return (vf)_mm512_range_ps((__m512)x, _mm512_set1_ps(least), 11); } /* max(|x|, least) */
/* only the low bits of i count */
INLINE vf pick16(const float *t, vi i) { return (vf)_mm512_permutexvar_ps((__m512i)i, _mm512_loadu_ps(t)); }
INLINE vf pick32(const float *t, vi i) { return (vf)_mm512_permutex2var_ps(_mm512_loadu_ps(t), (__m512i)i, _mm512_loadu_ps(t + 16)); }
INLINE vi pick32i(const int32_t *t, vi i) { return (vi)_mm512_permutex2var_epi32(_mm512_loadu_si512(t), (__m512i)i, _mm512_loadu_si512(t + 16)); }
INLINE vi ldu8(const uint8_t *p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf look_up(const float *t, const uint8_t *p) { return gatherf(t, ldu8(p)); }
INLINE vi ldu16(const uint16_t *p) { return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void stu16(uint16_t *p, vi x) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x)); }
INLINE uint32_t reduce_max(vi x) { return (uint32_t)_mm512_reduce_max_epi32((__m512i)x); } /* of patterns without sign */
/* The lowest or the highest bytes of four vectors, in order. */
typedef __m512i bytes4;
INLINE bytes4 pack_bytes(vi a, vi b, vi c, vi d, const int highest) {
    const __m512i pick = _mm512_set1_epi32(highest ? 0x0f0b0703 : 0x0c080400);
    __m512i r = _mm512_shuffle_epi8((__m512i)a, pick);
    r = _mm512_mask_shuffle_epi8(r, 0x00f000f000f000f0, (__m512i)b, pick);
    r = _mm512_mask_shuffle_epi8(r, 0x0f000f000f000f00, (__m512i)c, pick);
    r = _mm512_mask_shuffle_epi8(r, 0xf000f000f000f000, (__m512i)d, pick);
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), r);
}
INLINE bytes4 saturate_bytes(vi a, vi b, vi c, vi d) { /* for numbers between -2**15 and 2**15, limited to 0 and 255 */
    __m512i r = _mm512_packus_epi16(_mm512_packs_epi32((__m512i)a, (__m512i)b), _mm512_packs_epi32((__m512i)c, (__m512i)d));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), r);
}
INLINE void store_bytes(uint8_t *p, bytes4 x) { _mm512_storeu_si512(p, x); }
INLINE void store_nibbles(uint8_t *p, bytes4 x) { /* two per byte, the first in the low half */
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(x, _mm512_set1_epi16(0x1001))));
}
INLINE void store_high16(uint16_t *p, vi a, vi b) { /* the upper halves of two vectors */
    const __m512i order = (__m512i)(__attribute__((vector_size(64))) int16_t){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22,
        24, 26, 28, 30, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    __m512i mixed = _mm512_mask_mov_epi16(_mm512_srli_epi32((__m512i)a, 16), 0xaaaaaaaa, (__m512i)b);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, mixed));
}
INLINE vf lookup16(const float *table, const uint8_t *nibbles) { /* the values of VL packed 4-bit codes */
    int32_t low, high;
    memcpy(&low, nibbles, 4), memcpy(&high, nibbles + 4, 4);
    __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
    __m512i codes = _mm512_srlv_epi32(both, _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28));
    return (vf)_mm512_permutexvar_ps(codes, _mm512_loadu_ps(table)); /* only the low four bits count */
}
INLINE int any_above(const uint8_t *codes, int mask, int top) { /* whether one of 64 codes is beyond the last finite one */
    __m512i x = _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)mask));
    return _mm512_cmpgt_epu8_mask(x, _mm512_set1_epi8((char)top)) != 0;
}
#define HAS_HALF 1
INLINE void bytes_to_halves(const uint8_t *codes, int shift, int mask, int is_signed, vf *first, vf *second) {
    __m256i x = _mm256_loadu_si256((const __m256i *)codes);
    __m512i wide = is_signed ? _mm512_cvtepi8_epi16(x) : _mm512_cvtepu8_epi16(x);
    __m256i half[2] __attribute__((aligned(64))); /* converting from memory is cheaper than from the upper half */
    wide = _mm512_and_si512(_mm512_sllv_epi16(wide, _mm512_set1_epi16((short)shift)), _mm512_set1_epi16((short)mask));
    _mm512_store_si512(half, wide);
    __asm__("" : "+m"(half));
    *first = (vf)_mm512_cvtph_ps(half[0]);
    *second = (vf)_mm512_cvtph_ps(half[1]);
}
INLINE v4 reduce4(vi a, vi b, vi c, vi d) {
    __m512i A = (__m512i)a, B = (__m512i)b, C = (__m512i)c, D = (__m512i)d;
    __m512i ab = _mm512_max_epi32(_mm512_unpacklo_epi32(A, B), _mm512_unpackhi_epi32(A, B));
    __m512i cd = _mm512_max_epi32(_mm512_unpacklo_epi32(C, D), _mm512_unpackhi_epi32(C, D));
    __m512i all = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return (v4)_mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#ifdef __AVX512VBMI__
#define HAS_LOOKUP256 1
/* 64 indices in bytes, in the order of lookup256: each quarter of a lane has the four of one vector. */
typedef __m512i indices;
INLINE indices load_indices(const uint8_t *p) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), _mm512_loadu_si512(p));
}
/* Looks up four vectors in a table of 256 values, which is followed by their bytes: all lowest, all second lowest, ... */
INLINE void lookup256(const float *table, indices at, vf out[4]) {
    const uint8_t *bytes = (const uint8_t *)(table + 256);
    const __mmask64 upper = _mm512_movepi8_mask(at);
    __m512i of[4];
    for (int b = 0; b < 4; b++, bytes += 256) {
        __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes), at, _mm512_loadu_si512(bytes + 64));
        __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes + 128), at, _mm512_loadu_si512(bytes + 192));
        of[b] = _mm512_mask_mov_epi8(low, upper, high);
    }
    __m512i low = _mm512_unpacklo_epi8(of[0], of[1]), high = _mm512_unpacklo_epi8(of[2], of[3]);
    out[0] = (vf)_mm512_unpacklo_epi16(low, high), out[1] = (vf)_mm512_unpackhi_epi16(low, high);
    low = _mm512_unpackhi_epi8(of[0], of[1]), high = _mm512_unpackhi_epi8(of[2], of[3]);
    out[2] = (vf)_mm512_unpacklo_epi16(low, high), out[3] = (vf)_mm512_unpackhi_epi16(low, high);
}
#endif
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
INLINE vi maxs(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vi mins(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE vi seli(vm m, vi a, vi b) { return (vi)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)m); }
INLINE int countm(vm m) { return __builtin_popcount((unsigned)_mm256_movemask_ps((__m256)m)); }
INLINE vu shl(vu x, int n) { return (vu)_mm256_sllv_epi32((__m256i)x, _mm256_set1_epi32(n)); }
INLINE vu shr(vu x, int n) { return (vu)_mm256_srlv_epi32((__m256i)x, _mm256_set1_epi32(n)); }
INLINE vf gatherf(const float *t, vi i) { return (vf)_mm256_i32gather_ps(t, (__m256i)i, 4); }
INLINE vi gatheri(const int32_t *t, vi i) { return (vi)_mm256_i32gather_epi32(t, (__m256i)i, 4); }
INLINE vf pick16(const float *t, vi i) { /* i is below 16 */
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(t), (__m256i)i);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(t + 8), (__m256i)i);
    return (vf)_mm256_blendv_ps(low, high, (__m256)(i << 28));
}
INLINE vf absf_least(vf x, float least) { return (vf)_mm256_max_ps((__m256)(asi(x) & 0x7fffffff), _mm256_set1_ps(least)); }
INLINE vi ldu8(const uint8_t *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE vf look_up(const float *t, const uint8_t *p) { /* a gather takes two to three times as long on Zen 3 */
    return (vf){t[p[0]], t[p[1]], t[p[2]], t[p[3]], t[p[4]], t[p[5]], t[p[6]], t[p[7]]};
}
INLINE vi ldu16(const uint16_t *p) { return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE void stu16(uint16_t *p, vi x) { /* x holds 16-bit values */
    __m256i w = _mm256_packus_epi32((__m256i)x, (__m256i)x);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(w, 0x88)));
}
typedef __m256i bytes4;
INLINE bytes4 pack_bytes(vi a, vi b, vi c, vi d, const int highest) {
    const __m256i pick = _mm256_set1_epi32(highest ? 0x0f0b0703 : 0x0c080400);
    __m256i x = _mm256_shuffle_epi8((__m256i)a, pick), y = _mm256_shuffle_epi8((__m256i)b, pick);
    __m256i z = _mm256_shuffle_epi8((__m256i)c, pick), w = _mm256_shuffle_epi8((__m256i)d, pick);
    __m256i r = _mm256_blend_epi32(_mm256_blend_epi32(x, y, 0x22), _mm256_blend_epi32(z, w, 0x88), 0xcc);
    return _mm256_permutevar8x32_epi32(r, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
INLINE bytes4 saturate_bytes(vi a, vi b, vi c, vi d) { /* for numbers between -2**15 and 2**15, limited to 0 and 255 */
    __m256i r = _mm256_packus_epi16(_mm256_packs_epi32((__m256i)a, (__m256i)b), _mm256_packs_epi32((__m256i)c, (__m256i)d));
    return _mm256_permutevar8x32_epi32(r, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
INLINE void store_bytes(uint8_t *p, bytes4 x) { _mm256_storeu_si256((__m256i *)p, x); }
INLINE void store_nibbles(uint8_t *p, bytes4 x) {
    __m256i pairs = _mm256_maddubs_epi16(x, _mm256_set1_epi16(0x1001));
    pairs = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x88);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(pairs));
}
INLINE void store_high16(uint16_t *p, vi a, vi b) {
    __m256i both = _mm256_packus_epi32(_mm256_srli_epi32((__m256i)a, 16), _mm256_srli_epi32((__m256i)b, 16));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(both, 0xd8));
}
INLINE vf lookup16(const float *table, const uint8_t *nibbles) {
    int32_t eight;
    memcpy(&eight, nibbles, 4);
    __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), codes);
    return (vf)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}
INLINE int any_above(const uint8_t *codes, int mask, int top) {
    const __m256i m = _mm256_set1_epi8((char)mask), limit = _mm256_set1_epi8((char)top);
    __m256i x = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)codes), m);
    x = _mm256_max_epu8(x, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)codes + 1), m));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(x, limit), limit)) != -1;
}
#define HAS_HALF 1
INLINE v4 reduce4(vi a, vi b, vi c, vi d) {
    __m256i A = (__m256i)a, B = (__m256i)b, C = (__m256i)c, D = (__m256i)d;
    __m256i ab = _mm256_max_epi32(_mm256_unpacklo_epi32(A, B), _mm256_unpackhi_epi32(A, B));
    __m256i cd = _mm256_max_epi32(_mm256_unpacklo_epi32(C, D), _mm256_unpackhi_epi32(C, D));
    __m256i all = _mm256_max_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return (v4)_mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
INLINE void bytes_to_halves(const uint8_t *codes, int shift, int mask, int is_signed, vf *first, vf *second) {
    __m128i x = _mm_loadu_si128((const __m128i *)codes);
    __m256i wide = is_signed ? _mm256_cvtepi8_epi16(x) : _mm256_cvtepu8_epi16(x);
    wide = _mm256_and_si256(_mm256_sll_epi16(wide, _mm_cvtsi32_si128(shift)), _mm256_set1_epi16((short)mask));
    *first = (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(wide));
    *second = (vf)_mm256_cvtph_ps(_mm256_extracti128_si256(wide, 1));
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
INLINE int countm(vm m) { return -(m[0] + m[1] + m[2] + m[3]); }
INLINE vu shl(vu x, int n) { return x << n; }
INLINE vu shr(vu x, int n) { return x >> n; }
INLINE vf gatherf(const float *t, vi i) { return (vf){t[i[0]], t[i[1]], t[i[2]], t[i[3]]}; }
INLINE vi gatheri(const int32_t *t, vi i) { return (vi){t[i[0]], t[i[1]], t[i[2]], t[i[3]]}; }
INLINE vf pick16(const float *t, vi i) { return gatherf(t, i); }
INLINE vf absf_least(vf x, float least) { return maxf(asf(asi(x) & 0x7fffffff), setf(least)); }
INLINE vi ldu8(const uint8_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
INLINE vf look_up(const float *t, const uint8_t *p) { return gatherf(t, ldu8(p)); }
INLINE vi ldu16(const uint16_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
INLINE void stu16(uint16_t *p, vi x) { for (int i = 0; i < VL; i++) p[i] = (uint16_t)x[i]; }
typedef struct bytes4 { uint8_t byte[4 * VL]; } bytes4;
INLINE bytes4 pack_bytes(vi a, vi b, vi c, vi d, const int highest) {
    const int shift = highest ? 24 : 0;
    bytes4 r;
    for (int i = 0; i < VL; i++) {
        r.byte[i] = (uint8_t)((uint32_t)a[i] >> shift), r.byte[VL + i] = (uint8_t)((uint32_t)b[i] >> shift);
        r.byte[2 * VL + i] = (uint8_t)((uint32_t)c[i] >> shift), r.byte[3 * VL + i] = (uint8_t)((uint32_t)d[i] >> shift);
    }
    return r;
}
INLINE bytes4 saturate_bytes(vi a, vi b, vi c, vi d) { /* limited to 0 and 255 */
    const vi low = seti(0), high = seti(255);
    return pack_bytes(mins(maxs(a, low), high), mins(maxs(b, low), high), mins(maxs(c, low), high), mins(maxs(d, low), high), 0);
}
INLINE void store_bytes(uint8_t *p, bytes4 x) { memcpy(p, x.byte, sizeof x.byte); }
INLINE void store_nibbles(uint8_t *p, bytes4 x) {
    for (int i = 0; i < 2 * VL; i++) p[i] = (uint8_t)(x.byte[2 * i] | (x.byte[2 * i + 1] << 4));
}
INLINE void store_high16(uint16_t *p, vi a, vi b) {
    for (int i = 0; i < VL; i++) p[i] = (uint16_t)((uint32_t)a[i] >> 16), p[VL + i] = (uint16_t)((uint32_t)b[i] >> 16);
}
INLINE vf lookup16(const float *table, const uint8_t *nibbles) {
    return (vf){table[nibbles[0] & 15], table[nibbles[0] >> 4], table[nibbles[1] & 15], table[nibbles[1] >> 4]};
}
INLINE int any_above(const uint8_t *codes, int mask, int top) {
    int above = 0;
    for (int i = 0; i < 64; i++) above |= (codes[i] & mask) > top;
    return above;
}
#define HAS_HALF 0
INLINE int32_t reduce1(vi x) {
    int32_t best = 0;
    for (int i = 0; i < VL; i++) best = x[i] > best ? x[i] : best;
    return best;
}
INLINE v4 reduce4(vi a, vi b, vi c, vi d) { return (v4){reduce1(a), reduce1(b), reduce1(c), reduce1(d)}; }
#endif

#if VL < 16
INLINE vi cvt_rn_where(vm m, vf x, vi otherwise) { return seli(m, cvt_rn(x), otherwise); }
INLINE vi count_where(vi x, vm m) { return x - m; }
INLINE vm gts(vi a, vi b) { return a > b; }
INLINE vm eqs(vi a, vi b) { return a == b; }
INLINE vm ltf(vf a, vf b) { return (vi)(a < b); }
INLINE vm lef(vf a, vf b) { return (vi)(a <= b); }
INLINE vm nef(vf a, vf b) { return (vi)(a != b); }
INLINE vm eqf(vf a, vf b) { return (vi)(a == b); }
INLINE vm andm(vm a, vm b) { return a & b; }
INLINE vm orm(vm a, vm b) { return a | b; }
INLINE vm notm(vm a) { return ~a; }
INLINE uint32_t reduce_max(vi x) { /* of patterns without sign */
    int32_t best = 0;
    for (int i = 0; i < VL; i++) best = x[i] > best ? x[i] : best;
    return (uint32_t)best;
}
#endif

INLINE vu setu(uint32_t x) { return (vu)seti((int32_t)x); }
INLINE vf self(vm m, vf a, vf b) { return asf(seli(m, asi(a), asi(b))); }
INLINE vi absi(vf x) { return asi(x) & 0x7fffffff; }

#endif
