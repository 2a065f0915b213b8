/* Codes to fp32: rounding.decode times the scale. n is a multiple of HU_UNIT; block too, unless it is at least n. */
#ifndef DECODE_H
#define DECODE_H

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

static void decode_table8(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    for (int start = 0; start < n; start += block) {
        vf scale = setf(*scales++);
        int end = n - start < block ? n : start + block;
        for (int i = start; i < end; i += VL) stf(out + i, gatherf(f->values, ldu8(codes + i)) * scale);
    }
}

static void decode_table4(const hu_format *f, const uint8_t *codes, const float *scales, int block, float *out, int n) {
    uint8_t wide[HU_UNIT] __attribute__((aligned(64)));
    for (int start = 0; start < n; start += block) {
        vf scale = setf(*scales++);
        int end = n - start < block ? n : start + block;
        for (int i = start; i < end; i += HU_UNIT) {
            for (int j = 0; j < HU_UNIT / 2; j++) {
                wide[2 * j] = codes[i / 2 + j] & 15;
                wide[2 * j + 1] = codes[i / 2 + j] >> 4;
            }
            for (int j = 0; j < HU_UNIT; j += VL) stf(out + i + j, gatherf(f->values, ldu8(wide + j)) * scale);
        }
    }
}

static decode_fn decoder(const hu_format *f) {
    switch (f->kind) {
    case HU_FLOAT32: return decode_float32;
    case HU_BFLOAT16: return decode_bfloat16;
    case HU_FLOAT16: return decode_float16;
    default: return f->bits == 4 ? decode_table4 : decode_table8;
    }
}

#endif
