/* fp32 to codes: rounding.encode of the values times the inverse scale. Values are finite; n and block as in decode.h. */
#ifndef ENCODE_H
#define ENCODE_H

#include "simd.h"

typedef void (*encode_fn)(const hu_format *f, const float *x, const float *inverses, int block, const uint32_t *words,
                          uint8_t *codes, int n);

/* The power of two with an exponent field, divided by the power of two with the pattern `exponent`. */
INLINE vf power_less(int field, vi exponent) { return asf((vi)(setu((uint32_t)field << 23) - (vu)exponent)); }

/* rounding._grid_code, line by line. */
INLINE vi grid_code(const hu_format *f, vi magnitude, vu word, const int stochastic) {
    const int p = f->mantissa_bits, emin = f->emin_field, fraction = f->fraction;
    vi exponent = maxs(magnitude & 0x7f800000, seti(emin << 23));
    vi n;
    if (stochastic) {
        vi fixed = cvt_rn(asf(magnitude) * power_less(254 + p + fraction, exponent));
        n = (vi)shr((vu)fixed + shr(word, 32 - fraction), fraction);
    } else {
        n = cvt_rn(asf(magnitude) * power_less(254 + p, exponent));
    }
    return n + (vi)shr((vu)(exponent - seti(emin << 23)), 23 - p);
}

INLINE vi bfloat16_code(vi magnitude, vu word, const int stochastic) {
    if (stochastic) return (vi)(((vu)magnitude + (word >> 16)) >> 16);
    return (vi)(((vu)(magnitude + 0x7fff + ((magnitude >> 16) & 1))) >> 16);
}

INLINE vi floored(vi code, vi magnitude) { return maxs(code, mins(magnitude, seti(1))); }

/* Counts how many of 255 sorted numbers are below y (or equal to it, if inclusive). */
INLINE vi search(const float *sorted, vf y, const int inclusive) {
    vi found = seti(0);
    for (int step = 128; step; step >>= 1) {
        vf at = gatherf(sorted + step - 1, found);
        found = found + seli(inclusive ? lef(at, y) : ltf(at, y), seti(step), seti(0));
    }
    return found;
}

INLINE vi lifted(const hu_format *f, vf y, vi code) { /* the zero_floor of a codebook */
    return f->zero_floor ? count_where(code, andm(eqs(code, seti(f->zero_code)), ltf(setf(0), y))) : code;
}

/* The code of any codebook. */
INLINE vi book_code(const hu_format *f, vf y, vu word, const int stochastic) {
    y = minf(maxf(y, setf(f->levels[0])), setf(f->max));
    if (!stochastic) return lifted(f, y, search(f->middles, y, 0));
    const vi gap = mins(maxs(search(f->levels, y, 1) - 1, seti(0)), seti(f->top_code - 1));
    const vi fixed = cvt_rn((y - gatherf(f->start, gap)) * gatherf(f->density, gap)) + gatheri(f->base, gap);
    return (vi)shr((vu)fixed + shr(word, 32 - f->fraction), f->fraction);
}

/* The stretch of an evenly spaced codebook that contains a magnitude. */
INLINE vi even_stretch(const hu_even *e, vf magnitude) {
#if VL == 16
    const vi exponent = asi(magnitude) >> 23;
    const vi stretch = count_where(pick32i(e->first, exponent), lef(pick32(e->next, exponent), magnitude));
    return count_where(stretch, lef(pick32(e->second, exponent), magnitude));
#else
    vi stretch = seti(0);
    for (int i = 1; i < HU_STRETCHES; i++) stretch = count_where(stretch, lef(setf(e->border[i]), magnitude));
    return stretch;
#endif
}

/* The position of y among the codes of an evenly spaced codebook, in units of 2**-16. */
INLINE vi position(const hu_format *f, vf y, const int is_signed) {
    const hu_even *e = f->even;
    const vi stretch = even_stretch(e, is_signed ? absf_least(y, 0x1p-31f) : maxf(y, setf(0x1p-31f)));
    const vf density = pick16(e->density, stretch);
#if VL == 16
    if (is_signed) {
        const vi side = stretch | ((asi(y) >> 27) & HU_STRETCHES);
        return cvt_rn((y - pick32(e->start, side)) * density) + pick32i(e->base, side);
    }
#endif
    const vf x = is_signed ? asf(absi(y)) : maxf(y, setf(0.0f)); /* negative numbers are mirrored */
    const vi at = cvt_rn((x - pick16(e->start, stretch)) * density) + asi(pick16((const float *)e->base, stretch));
    return is_signed ? seli(gts(seti(0), asi(y)), seti(f->zero_code << 17) - at, at) : at;
}

/* book_code for a number that its scale keeps within the format's reach, before saturation in packing. At the middle
   between two codes, the position is exactly half way or one unit off. Two units further, it alone determines the code. */
INLINE vi even_code(const hu_format *f, vf y, vu word, const int is_signed, const int stochastic) {
    const vi at = position(f, y, is_signed);
    if (stochastic) return (vi)((vu)at + (word >> 16)) >> 16;
    const vi above = at + 0x8001;
    vi code = above >> 16;
    if (__builtin_expect(countm(eqs(above & 0xfffc, seti(0))), 0)) {
        const vi below = maxs(at >> 16, seti(0)); /* its upper middle decides, or none */
        code = count_where(below, ltf(gatherf(f->middles, below & 255), y));
    }
    return lifted(f, y, code);
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

/* Stochastic codes of an 8-bit or 4-bit float, in the highest byte. This gives the codes of grid_code with fewer
   instructions: the pattern of a normal number, minus the smallest exponent, is its code with 24 bits of fraction once
   shifted into place. Multiplying by a power of two is the same as changing the smallest exponent. If the range allows,
   the scale is therefore folded into these constants, and no number exceeds the largest value. */
typedef struct grid24 {
    vi smallest, below; /* the pattern of the smallest normal number, and what to subtract from a pattern */
    vf unit;            /* gives a subnormal number 24 bits of fraction */
    int folded;
} grid24;

#define FOLDED 64 /* limit of the scale's exponent, so that no subnormal fp32 is taken for a normal number */

INLINE grid24 grid24_of(const hu_format *f, float inverse) {
    const int p = f->mantissa_bits, emin = f->emin_field, e = 127 - (float_bits(inverse) >> 23);
    const int room = emin + e >= p + 24 && emin + e <= 254; /* whether the constants below are normal numbers */
    const int folded = f->scale == HU_SCALE_POW2 && e > -FOLDED && e < FOLDED && room, by = folded ? e : 0;
    return (grid24){seti((emin + by) << 23), seti((emin - 1 + by) << 23), setf(bits_float((254 + p + 24 - emin - by) << 23)), folded};
}

INLINE vi high_code(const hu_format *f, const grid24 *g, vf y, vu word, const int bits, const int is_signed, const int folded) {
    vi pattern = asi(y), magnitude = is_signed ? pattern & 0x7fffffff : maxs(pattern, seti(0));
    if (!folded) magnitude = mins(magnitude, seti(f->max_bits));
    vi normal = (vi)shl((vu)(magnitude - g->below), 1 + f->mantissa_bits);
    vi fixed = cvt_rn_where(gts(g->smallest, magnitude), asf(magnitude) * g->unit, normal);
    vi code = (vi)((vu)fixed + (word >> 8));
    if (!is_signed) return code;
    return code | (bits == 8 ? pattern & (int32_t)0x80000000 : (vi)((vu)pattern >> 4) & 0x08000000);
}

INLINE void high_block(const hu_format *f, const float *x, float inverse, const uint32_t *words, uint8_t *codes, int n,
                       const int bits, const int is_signed, const grid24 *g, const int folded) {
    for (int i = 0; i < n; i += 4 * VL) {
        vi code[4];
        for (int j = 0; j < 4; j++) {
            vf y = ldf(x + i + j * VL);
            if (!folded) y = y * setf(inverse);
            code[j] = high_code(f, g, y, (vu)ldi(words + i + j * VL), bits, is_signed, folded);
        }
        bytes4 packed = pack_bytes(code[0], code[1], code[2], code[3], 1);
        if (bits == 4) store_nibbles(codes + i / 2, packed);
        else store_bytes(codes + i, packed);
    }
}

INLINE void encode_high(const hu_format *given, const float *x, const float *inverses, int block, const uint32_t *words,
                        uint8_t *codes, int n, const int bits, const int is_signed) {
    const hu_format local = *given, *const f = &local;
    for (int start = 0; start < n; start += block) {
        const float inverse = *inverses++;
        const grid24 g = grid24_of(f, inverse);
        const int length = n - start < block ? n - start : block;
        uint8_t *const to = codes + start * bits / 8;
        if (g.folded) high_block(f, x + start, inverse, words + start, to, length, bits, is_signed, &g, 1);
        else high_block(f, x + start, inverse, words + start, to, length, bits, is_signed, &g, 0);
    }
}

INLINE void encode_impl(const hu_format *given, const float *x, const float *inverses, int block, const uint32_t *words,
                        uint8_t *codes, int n, const int kind, const int bits, const int is_signed,
                        const int stochastic) {
    if (kind == HU_FLOAT && bits <= 8 && stochastic) {
        encode_high(given, x, inverses, block, words, codes, n, bits, is_signed);
        return;
    }
    const hu_format local = *given, *const f = &local; /* a copy that no store below can change */
    const int wide = bits == 16;
    for (int start = 0; start < n; start += block) {
        vf inverse = setf(wide ? 1.0f : *inverses++);
        const int within = !(inverse[0] > 0.0f && inverse[0] <= 0x1p-126f); /* else a larger scale is near its limit */
        int end = n - start < block ? n : start + block;
        for (int i = start; i < end; i += 4 * VL) {
            vf y[4];
            vu word[4];
            vi code[4];
            for (int j = 0; j < 4; j++) {
                y[j] = ldf(x + i + j * VL);
                if (!wide) y[j] = y[j] * inverse;
                word[j] = stochastic ? (vu)ldi(words + i + j * VL) : (vu)seti(0);
            }
            if (kind == HU_BOOK && bits == 8 && f->even && within) {
                for (int j = 0; j < 4; j++) code[j] = even_code(f, y[j], word[j], is_signed, stochastic);
                store_bytes(codes + i, saturate_bytes(code[0], code[1], code[2], code[3]));
                continue;
            }
            for (int j = 0; j < 4; j++) code[j] = code_of(f, y[j], word[j], kind, is_signed, stochastic);
            if (wide) {
                for (int j = 0; j < 4; j++) stu16((uint16_t *)codes + i + j * VL, code[j]);
                continue;
            }
            bytes4 packed = pack_bytes(code[0], code[1], code[2], code[3], 0);
            if (bits == 4) store_nibbles(codes + i / 2, packed);
            else store_bytes(codes + i, packed);
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
    ENCODERS_OF(X, float8, HU_FLOAT, 8) ENCODERS_OF(X, float4, HU_FLOAT, 4) ENCODERS_OF(X, fine8, HU_FINE, 8) \
    ENCODERS_OF(X, int8, HU_INT, 8) \
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
