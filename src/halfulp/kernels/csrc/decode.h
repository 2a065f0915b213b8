/* Codes to fp32: rounding.decode times the scale. n is a multiple of HU_UNIT; block too, unless it is at least n. */
#ifndef DECODE_H
#define DECODE_H

#include <float.h>

#include "simd.h"

typedef void (*decode_fn)(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n);

static void decode_float32(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    (void)f, (void)scales, (void)block;
    memcpy(out, codes, 4 * (size_t)n);
}

static void decode_bfloat16(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    (void)f, (void)scales, (void)block;
    for (int i = 0; i < n; i += VL) sti(out + i, ldu16((const uint16_t *)codes + i) << 16);
}

INLINE vf half_to_float(vi code) {
    vi magnitude = code & 0x7fff;
    vi normal = (magnitude << 13) + (112 << 23);
    normal = normal + seli(gts(magnitude, seti(0x7bff)), seti(112 << 23), seti(0)); /* infinity, NaN */
    vi tiny = asi(itof(magnitude) * setf(0x1p-24f));
    return asf(seli(gts(seti(0x400), magnitude), tiny, normal) | ((code & 0x8000) << 16));
}

static void decode_float16(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    (void)f, (void)scales, (void)block;
    for (int i = 0; i < n; i += VL) stf(out + i, half_to_float(ldu16((const uint16_t *)codes + i)));
}

#define BLOCKS(body) \
    const hu_format local = *f; /* which no store below can change */ \
    f = &local; \
    for (int start = 0; start < n; start += block) { \
        const float scale = *scales++; \
        const int end = n - start < block ? n : start + block; \
        for (int i = start; i < end; i += HU_UNIT) body \
    }

INLINE void table8_unit(const hu_format *f, const uint8_t *codes, float scale, float *out) {
#if HAS_LOOKUP256
    vf x[4];
    lookup256(f->values, load_indices(codes), x);
    for (int j = 0; j < 4; j++) stf(out + j * VL, x[j] * setf(scale));
#else
    for (int j = 0; j < HU_UNIT; j += VL) stf(out + j, look_up(f->values, codes + j) * setf(scale));
#endif
}

static void decode_table8(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    BLOCKS(table8_unit(f, codes + i, scale, out + i);)
}

static void decode_table4(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    BLOCKS(for (int j = i; j < i + HU_UNIT; j += VL) stf(out + j, lookup16(f->values, codes + j / 2) * setf(scale));)
}

static void decode_int8(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    const int sign = f->is_signed ? 0x80 : 0;
    BLOCKS(for (int j = i; j < i + HU_UNIT; j += VL)
               stf(out + j, itof((ldu8(codes + j) ^ sign) - sign) * setf(scale));)
}

/* Floats of 8 bits: the fields are moved to their positions in an fp32, and subnormals are converted as integers. Codes
   without a finite value, which no step produces, use the table. */
INLINE void float8_unit(const hu_format *f, const uint8_t *codes, float scale, float *out, const int is_signed) {
    const int shift = 23 - f->mantissa_bits, magnitude_mask = is_signed ? 0x7f : 0xff;
    if (f->top_code < magnitude_mask && any_above(codes, magnitude_mask, f->top_code)) {
        table8_unit(f, codes, scale, out);
        return;
    }
    const vi smallest = seti(1 << f->mantissa_bits), base = seti((f->emin_field - 1) << 23);
    const vf unit = setf(bits_float((f->emin_field - f->mantissa_bits) << 23));
    for (int j = 0; j < HU_UNIT; j += VL) {
        vi code = ldu8(codes + j), magnitude = is_signed ? code & 0x7f : code;
        vf x = self(gts(smallest, magnitude), itof(magnitude) * unit, asf((vi)shl((vu)magnitude, shift) + base));
        if (is_signed) x = asf(asi(x) | ((code << 24) & (int32_t)0x80000000));
        stf(out + j, x * setf(scale));
    }
}

static void decode_float8s(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    BLOCKS(float8_unit(f, codes + i, scale, out + i, 1);)
}

static void decode_float8u(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    BLOCKS(float8_unit(f, codes + i, scale, out + i, 0);)
}

#if HAS_HALF
/* Formats whose exponent fits into a float16 are converted by the processor, subnormals included. Only the bias, a
   power of two, is different. It is folded into the scale unless that overflows or underflows. */
INLINE void half8_unit(const hu_format *f, const uint8_t *codes, float scale, float *out, const int is_signed) {
    const int shift = 10 - f->mantissa_bits, magnitude_mask = is_signed ? 0x7f : 0xff;
    const float both = scale * bits_float((f->emin_field + 14) << 23);
    const int exact = both <= FLT_MAX && (both >= 0x1p-126f || scale == 0.0f);
    if (!exact || (f->top_code < magnitude_mask && any_above(codes, magnitude_mask, f->top_code))) {
        table8_unit(f, codes, scale, out);
        return;
    }
    const int mask = is_signed ? 0x8000 | (0x7f << shift) : 0xff << shift;
    const vf factor = setf(both);
    for (int j = 0; j < HU_UNIT; j += 2 * VL) {
        vf first, second;
        bytes_to_halves(codes + j, shift, mask, is_signed, &first, &second);
        stf(out + j, first * factor);
        stf(out + j + VL, second * factor);
    }
}

static void decode_half8s(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    BLOCKS(half8_unit(f, codes + i, scale, out + i, 1);)
}

static void decode_half8u(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    BLOCKS(half8_unit(f, codes + i, scale, out + i, 0);)
}
#endif

static decode_fn decoder(const hu_format *f) {
    switch (f->kind) {
    case HU_FLOAT32: return decode_float32;
    case HU_BFLOAT16: return decode_bfloat16;
    case HU_FLOAT16: return decode_float16;
    }
    if (f->bits == 4) return decode_table4;
    if (f->kind == HU_BOOK) return decode_table8;
    if (f->kind == HU_INT) return decode_int8;
#if HAS_HALF
    if (f->exponent_bits < 5 && f->emin_field <= 240) return f->is_signed ? decode_half8s : decode_half8u;
#endif
    return f->is_signed ? decode_float8s : decode_float8u;
}

#endif
