/* fp32 to codes: rounding.encode of the values times the inverse scale, all finite. n and block as in decode.h. */
#ifndef ENCODE_H
#define ENCODE_H

#include "simd.h"

typedef void (*encode_fn)(const hu_format *f, const float *x, const float *inverses, int block, const uint32_t *words,
                          uint8_t *codes, int n);

/* rounding._grid_code, as it stands there. */
INLINE vi grid_code(const hu_format *f, vi magnitude, vu word, const int stochastic) {
    const int p = f->mantissa_bits, emin = f->emin_field, fraction = f->fraction;
    vi exponent = maxs(magnitude & 0x7f800000, seti(emin << 23));
    vi n;
    if (stochastic) {
        vi fixed = cvt_rn(asf(magnitude) * asf(seti((int32_t)((uint32_t)(254 + p + fraction) << 23)) - exponent));
        n = (vi)shr((vu)fixed + shr(word, 32 - fraction), fraction);
    } else {
        n = cvt_rn(asf(magnitude) * asf(seti((int32_t)((uint32_t)(254 + p) << 23)) - exponent));
    }
    return n + (vi)shr((vu)(exponent - seti(emin << 23)), 23 - p);
}

INLINE vi bfloat16_code(vi magnitude, vu word, const int stochastic) {
    if (stochastic) return (vi)(((vu)magnitude + (word >> 16)) >> 16);
    return (vi)(((vu)(magnitude + 0x7fff + ((magnitude >> 16) & 1))) >> 16);
}

INLINE vi floored(vi code, vi magnitude) { return maxs(code, mins(magnitude, seti(1))); }

INLINE vi search(const float *sorted, vf y, const int inclusive) { /* how many are below y (or equal to it) */
    vi found = seti(0);
    for (int step = 128; step; step >>= 1) {
        vf at = gatherf(sorted + step - 1, found);
        found = found + seli(inclusive ? lef(at, y) : ltf(at, y), seti(step), seti(0));
    }
    return found;
}

INLINE vi book_code(const hu_format *f, vf y, vu word, const int stochastic) {
    y = minf(maxf(y, setf(f->levels[0])), setf(f->max));
    if (!stochastic) {
        vi code = search(f->middles, y, 0);
        if (f->zero_floor) code = code + seli(andm(eqs(code, seti(f->zero_code)), ltf(setf(0), y)), seti(1), seti(0));
        return code;
    }
    vi low = mins(maxs(search(f->levels, y, 1) - 1, seti(0)), seti(f->top_code - 1));
    vi fixed = cvt_rn((y - gatherf(f->levels, low)) * gatherf(f->inverse_gaps, low) * setf(16777216.0f));
    return low + (vi)(((vu)fixed + (word >> 8)) >> 24);
}

INLINE vi code_of(const hu_format *f, vf y, vu word, const int kind, const int is_signed, const int stochastic) {
    if (kind == HU_BOOK) return book_code(f, y, word, stochastic);
    vi bits = asi(y), magnitude, code;
    magnitude = is_signed ? bits & 0x7fffffff : maxs(bits, seti(0));
    magnitude = mins(magnitude, seti(f->max_bits));
    if (kind == HU_BFLOAT16) {
        code = bfloat16_code(magnitude, word, stochastic);
    } else if (kind == HU_INT) {
        if (stochastic) {
            vi fixed = cvt_rn(asf(magnitude) * setf((float)(1 << f->fraction)));
            code = (vi)shr((vu)fixed + shr(word, 32 - f->fraction), f->fraction);
        } else {
            code = cvt_rn(asf(magnitude));
        }
    } else {
        code = grid_code(f, magnitude, word, stochastic);
    }
    if (!stochastic && f->zero_floor) code = floored(code, magnitude);
    if (is_signed) {
        if (kind == HU_INT) {
            vi sign = bits >> 31;
            code = (code ^ sign) - sign;
        } else {
            code = code | (vi)(((vu)bits & 0x80000000u) >> (32 - f->bits));
        }
    }
    return code & ((1 << f->bits) - 1);
}

INLINE void encode_impl(const hu_format *f, const float *x, const float *inverses, int block, const uint32_t *words,
                        uint8_t *codes, int n, const int kind, const int bits, const int is_signed,
                        const int stochastic) {
    const int wide = kind == HU_BFLOAT16 || kind == HU_FLOAT16;
    uint8_t pairs[HU_UNIT] __attribute__((aligned(64)));
    for (int start = 0; start < n; start += block) {
        vf inverse = setf(wide ? 1.0f : *inverses++);
        int end = n - start < block ? n : start + block;
        for (int i = start; i < end; i += HU_UNIT) {
            for (int j = 0; j < HU_UNIT; j += VL) {
                vf y = ldf(x + i + j);
                if (!wide) y = y * inverse;
                vu word = stochastic ? (vu)ldi(words + i + j) : (vu)seti(0);
                vi code = code_of(f, y, word, kind, is_signed, stochastic);
                if (wide) stu16((uint16_t *)codes + i + j, code);
                else stu8(bits == 4 ? pairs + j : codes + i + j, code);
            }
            if (bits == 4)
                for (int j = 0; j < HU_UNIT / 2; j++)
                    codes[i / 2 + j] = (uint8_t)(pairs[2 * j] | (pairs[2 * j + 1] << 4));
        }
    }
}

static void encode_float32(const hu_format *f, const float *x, const float *inverses, int block, const uint32_t *words,
                           uint8_t *codes, int n) {
    (void)f, (void)inverses, (void)block, (void)words;
    memcpy(codes, x, 4 * (size_t)n);
}

/* name, kind, bits, signed, stochastic: one function each */
#define ENCODERS_OF(X, name, kind, bits) \
    X(name##_un, kind, bits, 0, 0) X(name##_us, kind, bits, 0, 1) X(name##_sn, kind, bits, 1, 0) X(name##_ss, kind, bits, 1, 1)
#define ENCODERS(X) \
    ENCODERS_OF(X, bfloat16, HU_BFLOAT16, 16) ENCODERS_OF(X, float16, HU_FLOAT16, 16) \
    ENCODERS_OF(X, float8, HU_FLOAT, 8) ENCODERS_OF(X, float4, HU_FLOAT, 4) ENCODERS_OF(X, int8, HU_INT, 8) \
    ENCODERS_OF(X, int4, HU_INT, 4) ENCODERS_OF(X, book8, HU_BOOK, 8) ENCODERS_OF(X, book4, HU_BOOK, 4)

#define DEFINE(name, kind, bits, is_signed, stochastic) \
    static void encode_##name(const hu_format *f, const float *x, const float *inverses, int block, \
                              const uint32_t *words, uint8_t *codes, int n) { \
        encode_impl(f, x, inverses, block, words, codes, n, kind, bits, is_signed, stochastic); \
    }
ENCODERS(DEFINE)
#undef DEFINE

static encode_fn encoder(const hu_format *f) {
#define PICK(name, k, b, sg, st) \
    if (f->kind == k && f->bits == b && f->is_signed == sg && f->stochastic == st) return encode_##name;
    ENCODERS(PICK)
#undef PICK
    return encode_float32;
}

#endif
