/* Parameters and gradients of one piece, in fp32 or 16 bits: read, rounded and stored. */
#ifndef PARAMS_H
#define PARAMS_H

#include "slots.h"

/* Parameters and gradients of any dtype as fp32. */
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

/* Rounding of a parameter to 16 bits: torch's own cast to nearest (infinities and NaN included), or stochastic. */
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
    vi limit = mins(magnitude, seti(0x477ff000)); /* 65520: rounds to infinity */
    vi code = grid_code(&half, limit, word, 0);
    if (stochastic) {
        vi random = grid_code(&half, mins(magnitude, seti(half.max_bits)), word, 1);
        code = seli(gts(seti((int32_t)INF_BITS), magnitude), random, code);
    }
    return seli(gts(magnitude, seti((int32_t)INF_BITS)), seti(0x7e00), code) | sign;
}

/* Whether the rule writes the new parameters straight to where they belong. */
static int in_place(const hu_work *w, int n) { return w->param_kind == HU_FLOAT32 && n % HU_UNIT == 0; }

static void write_param(const hu_work *w, int64_t first, int n, scratch *t, int any_bad, const uint32_t *words) {
    const int tile = w->tile < n ? (int)w->tile : n, kind = w->param_kind;
    const int bytes = kind == HU_FLOAT32 ? 4 : 2, padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    const int placed = in_place(w, n), direct = !any_bad && padded == n;
    uint8_t *param = (uint8_t *)w->param + first * bytes;
    const uint8_t *from = (const uint8_t *)(placed ? t->param : t->new_param);
    if (kind != HU_FLOAT32) {
        uint16_t *to = direct ? (uint16_t *)param : (uint16_t *)t->codes;
        const int stochastic = w->param_stochastic;
        for (int i = 0; i < padded; i += VL) {
            vu word = stochastic ? (vu)ldi(words + i) : (vu)seti(0);
            vf x = ldf(t->new_param + i);
            stu16(to + i, kind == HU_BFLOAT16 ? round_bfloat16(x, word, stochastic) : round_float16(x, word, stochastic));
        }
        from = (const uint8_t *)to;
    }
    if (!any_bad) {
        if (!placed && !(direct && kind != HU_FLOAT32)) memcpy(param, from, (size_t)(n * bytes));
        return;
    }
    for (int start = 0; start < n; start += tile)
        if (t->bad[start / tile] == placed) { /* put the old values back, or the new ones in */
            int count = n - start < tile ? n - start : tile;
            memcpy(param + start * bytes, from + start * bytes, (size_t)(count * bytes));
        }
}

#endif
