/* Parameters and gradients of one piece, in fp32 or 16 bits, with or without master weights: reading, rounding,
   storing. */
#ifndef PARAMS_H
#define PARAMS_H

#include "slots.h"

/* Reads parameters or gradients of any dtype as fp32. */
static const float *read_values(const void *from, int kind, int64_t first, int n, int negate, float *to) {
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    if (kind == HU_FLOAT32) {
        const float *x = (const float *)from + first;
        if (padded == n && !negate) return x;
        memcpy(to, x, 4 * (size_t)n);
    } else {
        const uint16_t *x = (const uint16_t *)from + first;
        int i = 0;
        for (; i + VL <= n; i += VL)
            stf(to + i, kind == HU_BFLOAT16 ? asf(ldu16(x + i) << 16) : half_to_float(ldu16(x + i)));
        uint16_t rest[VL] = {0};
        memcpy(rest, x + i, 2 * (size_t)(n - i));
        if (i < n) stf(to + i, kind == HU_BFLOAT16 ? asf(ldu16(rest) << 16) : half_to_float(ldu16(rest)));
    }
    for (int i = n; i < padded; i++) to[i] = 0.0f;
    if (negate)
        for (int i = 0; i < padded; i += VL) stf(to + i, -ldf(to + i));
    return to;
}

/* The address of a parameter's fp32 weights, or NULL if they are not stored. */
static float *fp32_weights(const hu_work *w) {
    if (w->master_kind == HU_MASTER_FP32) return w->master;
    return w->param_kind == HU_FLOAT32 ? w->param : NULL;
}

/* Reads the fp32 weights of a parameter. */
static const float *read_param(const hu_work *w, int64_t first, int n, float *to) {
    const float *home = fp32_weights(w);
    const int kind = (int)w->master_kind, bytes = kind / 8, padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    if (home) return read_values(home, HU_FLOAT32, first, n, 0, to);
    if (!kind) return read_values(w->param, w->param_kind, first, n, 0, to);
    const uint16_t *x = (const uint16_t *)w->param + first;
    const uint8_t *rest = (const uint8_t *)w->master + first * bytes;
    int i = 0;
    for (; i + VL <= n; i += VL) stf(to + i, join(x + i, rest + i * bytes, kind));
    if (i < n) {
        uint16_t last[VL] = {0};
        uint8_t last_rest[2 * VL] = {0};
        memcpy(last, x + i, 2 * (size_t)(n - i));
        memcpy(last_rest, rest + i * bytes, (size_t)((n - i) * bytes));
        stf(to + i, join(last, last_rest, kind));
    }
    for (i = n; i < padded; i++) to[i] = 0.0f;
    return to;
}

/* Whether a program reads 16-bit numbers itself. Generated code does, for whole units. */
static int reads_itself(const hu_work *w, int n) { return w->program >= 0 && n % HU_UNIT == 0; }

static hu_source grad_of(const hu_work *w, int64_t first, int n, float *to) {
    if (w->grad_kind == HU_BFLOAT16 && !w->maximize && reads_itself(w, n))
        return (hu_source){.bf16 = (const uint16_t *)w->grad + first};
    return (hu_source){.fp32 = read_values(w->grad, w->grad_kind, first, n, w->maximize, to)};
}

static hu_source param_of(const hu_work *w, int64_t first, int n, float *to) {
    const int kind = (int)w->master_kind;
    if (w->param_kind != HU_BFLOAT16 || kind == HU_MASTER_FP32 || !reads_itself(w, n))
        return (hu_source){.fp32 = read_param(w, first, n, to)};
    const uint8_t *rest = kind ? (const uint8_t *)w->master + first * (kind / 8) : NULL;
    return (hu_source){.bf16 = (const uint16_t *)w->param + first, .rest = rest, .kind = kind};
}

/* Rounds a parameter to 16 bits: torch's cast to nearest (infinities and NaN included), or stochastically. */
INLINE vi round_bfloat16(vf x, vu word, int stochastic) {
    vi bits = asi(x), magnitude = bits & 0x7fffffff, sign = (vi)((vu)bits >> 16) & 0x8000;
    vi code = bfloat16_code(magnitude, word, 0);
    if (stochastic) {
        vi random = bfloat16_code(mins(magnitude, seti(0x7f7f0000)), word, 1);
        code = seli(gts(seti((int32_t)INF_BITS), magnitude), random, code);
    }
    return seli(gts(magnitude, seti((int32_t)INF_BITS)), seti(0x7fc0), code) | sign;
}

INLINE vi round_float16(vf x, vu word, int stochastic) {
    static const hu_format half = {.mantissa_bits = 10, .emin_field = 113, .fraction = 19, .max_bits = 0x477fe000};
    vi bits = asi(x), magnitude = bits & 0x7fffffff, sign = (vi)((vu)bits >> 16) & 0x8000;
    vi limit = mins(magnitude, seti(0x477ff000)); /* 65520, which rounds to infinity */
    vi code = grid_code(&half, limit, word, 0);
    if (stochastic) {
        vi random = grid_code(&half, mins(magnitude, seti(half.max_bits)), word, 1);
        code = seli(gts(seti((int32_t)INF_BITS), magnitude), random, code);
    }
    return seli(gts(magnitude, seti((int32_t)INF_BITS)), seti(0x7e00), code) | sign;
}

/* Splits an fp32 weight into a bfloat16 weight, which is returned, and a remainder (numbers/remainder.py). */
INLINE vi split(vf x, vu word, int kind, int stochastic, vi *rest) {
    vi bits = asi(x), magnitude = bits & 0x7fffffff;
    vm finite = gts(seti((int32_t)INF_BITS), magnitude);
    vi other = (vi)((vu)bits >> 16 & 0x8000u) | seli(gts(magnitude, seti((int32_t)INF_BITS)), seti(0x7fc0), seti(0x7f80));
    if (kind == HU_MASTER_REMAINDER8) {
        vu added = stochastic ? word >> 24 : ((vu)bits >> 8 & 1u) + 0x7fu;
        bits = (vi)(((vu)bits + added) & 0xffffff00u);
    }
    *rest = seli(finite, kind == HU_MASTER_REMAINDER8 ? bits >> 8 & 0xff : bits & 0xffff, seti(0));
    return seli(finite, (vi)(((vu)bits + 0x8000u) >> 16), other);
}

/* Rounds one vector of any new weights, and returns the visible weights. */
INLINE vi round_any(vf x, vu word, const int param_kind, const int kind, const int stochastic, vi *rest) {
    if (kind != HU_MASTER_NONE && kind != HU_MASTER_FP32) return split(x, word, kind, stochastic, rest);
    return param_kind == HU_BFLOAT16 ? round_bfloat16(x, word, stochastic) : round_float16(x, word, stochastic);
}

/* Rounds n new weights (a multiple of HU_UNIT) to 16 bits, with their remainders if there are any. For magnitudes up to
   `plain`, adding to the pattern suffices. */
INLINE void round_as(const float *x, int n, const uint32_t *words, uint16_t *to, uint8_t *rest, const int param_kind,
                     const int kind, const int stochastic) {
    const int remains = kind == HU_MASTER_REMAINDER8 || kind == HU_MASTER_REMAINDER16;
    const int32_t plain = param_kind != HU_BFLOAT16 ? -1
                          : remains                 ? (int32_t)INF_BITS - 1
                          : stochastic              ? 0x7f7f0000
                                                    : (int32_t)INF_BITS;
    for (int i = 0; i < n; i += 4 * VL) {
        vi bits[4], kept[4], remainder[4];
        vu word[4];
        vm other = gts(seti(0), seti(0));
        for (int j = 0; j < 4; j++) {
            bits[j] = asi(ldf(x + i + j * VL));
            word[j] = stochastic ? (vu)ldi(words + i + j * VL) : setu(0);
            other = orm(other, gts(absi(asf(bits[j])), seti(plain)));
        }
        if (__builtin_expect(countm(other) != 0, param_kind != HU_BFLOAT16)) {
            for (int j = 0; j < 4; j++)
                stu16(to + i + j * VL, round_any(asf(bits[j]), word[j], param_kind, kind, stochastic, &remainder[j]));
        } else {
            for (int j = 0; j < 4; j++) {
                const vu odd = (vu)bits[j] >> (remains ? 8 : 16) & 1u;
                const vu added = remains ? stochastic ? word[j] >> 24 : odd + 0x7fu : stochastic ? word[j] >> 16 : odd + 0x7fffu;
                kept[j] = kind == HU_MASTER_REMAINDER16 ? bits[j] : (vi)((vu)bits[j] + added);
                remainder[j] = kind == HU_MASTER_REMAINDER8 ? kept[j] >> 8 : kept[j];
                if (kind == HU_MASTER_REMAINDER8) kept[j] = kept[j] & (int32_t)0xffffff00;
                if (remains) kept[j] = (vi)((vu)kept[j] + 0x8000u);
            }
            store_high16(to + i, kept[0], kept[1]);
            store_high16(to + i + 2 * VL, kept[2], kept[3]);
        }
        if (kind == HU_MASTER_REMAINDER16)
            for (int j = 0; j < 4; j += 2)
                store_high16((uint16_t *)(void *)rest + i + j * VL, remainder[j] << 16, remainder[j + 1] << 16);
        if (kind == HU_MASTER_REMAINDER8)
            store_bytes(rest + i, pack_bytes(remainder[0], remainder[1], remainder[2], remainder[3], 0));
    }
}

static void round_params(const hu_work *w, const float *x, int n, const uint32_t *words, uint16_t *to, uint8_t *rest) {
#define AS(p, k, s) \
    if (w->param_kind == p && (k == HU_MASTER_NONE ? !rest : w->master_kind == k) && !w->param_stochastic == !s) \
        round_as(x, n, words, to, rest, p, k, s);
    AS(HU_BFLOAT16, HU_MASTER_NONE, 0) AS(HU_BFLOAT16, HU_MASTER_NONE, 1) AS(HU_FLOAT16, HU_MASTER_NONE, 0)
    AS(HU_FLOAT16, HU_MASTER_NONE, 1) AS(HU_BFLOAT16, HU_MASTER_REMAINDER8, 0) AS(HU_BFLOAT16, HU_MASTER_REMAINDER8, 1)
    AS(HU_BFLOAT16, HU_MASTER_REMAINDER16, 0) AS(HU_BFLOAT16, HU_MASTER_REMAINDER16, 1)
#undef AS
}

/* Whether the rule writes the new weights directly to their place. */
static int in_place(const hu_work *w, int n) { return fp32_weights(w) && n % HU_UNIT == 0; }

/* Copies the bad tiles of a piece, or the others. */
static void copy_tiles(const hu_work *w, const scratch *t, int any_bad, int bad, void *to, const void *from, int bytes, int n) {
    const int tile = w->tile < n ? (int)w->tile : n;
    if (!any_bad) {
        if (!bad) memcpy(to, from, (size_t)(n * bytes));
        return;
    }
    for (int start = 0; start < n; start += tile)
        if (t->bad[start / tile] == bad) {
            const int count = n - start < tile ? n - start : tile;
            memcpy((uint8_t *)to + start * bytes, (const uint8_t *)from + start * bytes, (size_t)(count * bytes));
        }
}

static void write_param(const hu_work *w, int64_t first, int n, scratch *t, int any_bad, const uint32_t *words) {
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT, placed = in_place(w, n);
    const int bytes = w->master_kind == HU_MASTER_FP32 ? 0 : (int)w->master_kind / 8; /* bytes per remainder */
    float *const home = fp32_weights(w) ? fp32_weights(w) + first : NULL;
    if (w->param_kind != HU_FLOAT32) {
        uint16_t *visible = (uint16_t *)w->param + first, *to = visible;
        uint8_t *rest = bytes ? (uint8_t *)w->master + first * bytes : NULL, *rest_to = rest;
        if (any_bad || padded != n) to = (uint16_t *)t->codes, rest_to = bytes ? t->codes + 2 * HU_CAP : NULL;
        round_params(w, placed ? home : t->new_param, padded, words, to, rest_to);
        if (to != visible) {
            copy_tiles(w, t, any_bad, 0, visible, to, 2, n);
            if (bytes) copy_tiles(w, t, any_bad, 0, rest, rest_to, bytes, n);
        }
    }
    if (home) copy_tiles(w, t, any_bad, placed, home, placed ? t->param : t->new_param, 4, n); /* restore or store */
}

#endif
