/* The states of one piece: reading, scales, encoding, storing, and counting of updates. */
#ifndef SLOTS_H
#define SLOTS_H

#include <float.h>

#include "decode.h"
#include "encode.h"
#include "halfulp.h"
#include "loop.h"

#define ALIGNED __attribute__((aligned(64)))

#define INF_BITS 0x7f800000u

#define HU_FOLD 8 /* rows whose columns are added at once; HU_FOLD * HU_FOLD make a group */
#define PITCH (HU_CAP + 528) /* rows of the scratch start in different sets of the first-level cache */

typedef struct scratch {
    program_fn run; /* like decode and encode, looked up once for several pieces */
    decode_fn decode[HU_MAX_SLOTS];
    encode_fn encode[HU_MAX_SLOTS];
    float grad[PITCH] ALIGNED, param[PITCH] ALIGNED, new_param[PITCH] ALIGNED;
    float state[HU_MAX_SLOTS][PITCH] ALIGNED;
    uint32_t words[HU_MAX_SLOTS + 1][PITCH] ALIGNED;
    float factors[PITCH] ALIGNED; /* scales of the blocks, or their inverses */
    uint8_t codes[4 * HU_CAP + HU_UNIT] ALIGNED;
    float old[HU_MAX_SLOTS][PITCH] ALIGNED; /* decoded states before the step, if updates are counted */
    vi largest[HU_MAX_SLOTS][HU_CAP / HU_UNIT];
    float term[HU_MAX_SUMS][PITCH] ALIGNED, factor[HU_MAX_SUMS][PITCH] ALIGNED; /* of measured sums */
    float of_row[HU_MAX_VECTORS][HU_FOLD][PITCH] ALIGNED; /* for sums of columns: the terms of HU_FOLD rows */
    double of_rows[HU_MAX_VECTORS][HU_FOLD][PITCH] ALIGNED; /* and the sums of HU_FOLD rows each */
    float c[HU_MAX_UNIFORMS];
    uint8_t bad[HU_CAP]; /* tiles to skip */
} scratch;

/* What is passed between the two passes of a tile. */
typedef struct span {
    uint32_t largest[HU_MAX_SLOTS];
    int measured; /* whether this is the second pass */
} span;

static int64_t blocks_of(const hu_slot *s, int64_t cols) { return s->block ? (cols + s->block - 1) / s->block : 0; }

/* Whether a block is larger than one pass. */
static int wide(const hu_slot *s, int64_t cols) { return s->block > HU_CAP || s->block > cols; }

static int64_t scale_index(const hu_slot *s, int64_t row, int64_t col, int64_t cols) {
    if (s->per == HU_PER_TENSOR) return 0;
    if (s->per == HU_PER_ROW) return row;
    return row * blocks_of(s, cols) + col / s->block;
}

static int64_t code_offset(const hu_format *f, int64_t row, int64_t col, int64_t cols) {
    if (f->bits == 4) return row * ((cols + 1) / 2) + col / 2;
    return (row * cols + col) * (f->bits / 8);
}

static int64_t code_bytes(const hu_format *f, int64_t n) { return f->bits == 4 ? (n + 1) / 2 : n * (f->bits / 8); }

static float scale_value(const hu_format *f, const void *scale, int64_t i) {
    if (f->scale == HU_SCALE_FP32) return ((const float *)scale)[i];
    return bits_float((int32_t)((uint32_t)((const uint8_t *)scale)[i] << 23));
}

/* Scaling.from_absmax: stores the scale of one block and returns its inverse. */
static float put_scale(const hu_format *f, uint32_t absmax, void *scale, int64_t i) {
    if (f->scale == HU_SCALE_FP32) {
        float value = bits_float((int32_t)absmax) / f->reach;
        if (value > FLT_MAX) value = FLT_MAX;
        if (value < 0x1p-126f) value = 0.0f;
        ((float *)scale)[i] = value;
        return value > 0.0f ? 1.0f / value : 0.0f;
    }
    int32_t code = (((int32_t)absmax + f->scale_round) >> 23) - f->scale_shift;
    code = absmax == 0 ? 0 : code < 1 ? 1 : code > 253 ? 253 : code;
    ((uint8_t *)scale)[i] = (uint8_t)code;
    return bits_float(code ? (254 - code) << 23 : 0);
}

/* Does the same for four blocks. The inverses are written to `inverses`. */
static void put_scales4(const hu_format *f, v4 absmax, void *scale, int64_t i, float *inverses) {
    if (f->scale == HU_SCALE_FP32) {
        v4 bits = (v4)((v4f)absmax / f->reach);
        v4f value = (v4f)((bits & (bits < 0x7f800000)) | (0x7f7fffff & (bits >= 0x7f800000))); /* at most FLT_MAX */
        value = (v4f)((v4)value & (value >= 0x1p-126f));
        v4f inverse = (v4f)((v4)(1.0f / value) & (value > 0.0f));
        memcpy((float *)scale + i, &value, sizeof value);
        memcpy(inverses, &inverse, sizeof inverse);
        return;
    }
    v4 code = ((absmax + f->scale_round) >> 23) - f->scale_shift;
    code = (code & (code > 1)) | (1 & (code <= 1));
    code = (code & (code < 253)) | (253 & (code >= 253));
    code = code & (absmax != 0);
    v4 inverse = ((254 - code) << 23) & (code != 0);
    memcpy(inverses, &inverse, sizeof inverse);
    for (int j = 0; j < 4; j++) ((uint8_t *)scale)[i + j] = (uint8_t)code[j];
}

/* Whether the loops of decode.h and encode.h can handle a block. Other blocks are multiplied into the values
   beforehand. */
static int follows(int64_t block, int n) { return block >= n || block % HU_UNIT == 0; }

static void multiply_blocks(float *x, const float *factors, int block, int n) {
    for (int start = 0; start < n; start += block) {
        float factor = *factors++;
        int end = n - start < block ? n : start + block;
        for (int i = start; i < end; i++) x[i] *= factor;
    }
}

/* Clamps values that a scale at its limit left beyond the format's range. Encoders only clamp what they scale
   themselves. */
static void clamp_all(float *x, float most, int n) {
    for (int i = 0; i < n; i++) x[i] = x[i] > most ? most : x[i] < -most ? -most : x[i];
}

/* Prefetches the codes of the stretch after the next one. */
static void prefetch_codes(const hu_slot *s, int64_t row, int64_t col, int64_t cols, int n) {
    const int64_t length = code_bytes(s->format, n);
    const uint8_t *const ahead = (const uint8_t *)s->codes + code_offset(s->format, row, col, cols) + 2 * length;
    for (int64_t i = 0; i < length; i += 64) __builtin_prefetch(ahead + i, 1);
}

static void read_slot(const hu_slot *s, decode_fn decode, int64_t row, int64_t col, int64_t cols, int n, scratch *t, float *out) {
    const hu_format *f = s->format;
    const uint8_t *codes = (const uint8_t *)s->codes + code_offset(f, row, col, cols);
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    if (padded != n) {
        size_t bytes = (size_t)code_bytes(f, n);
        memcpy(t->codes, codes, bytes);
        memset(t->codes + bytes, 0, (size_t)code_bytes(f, padded) - bytes);
        codes = t->codes;
    }
    const int block = s->block && s->block < n ? (int)s->block : padded;
    if (f->scale != HU_SCALE_NONE) {
        int64_t first = scale_index(s, row, col, cols);
        for (int i = 0; i * (int64_t)block < n; i++) t->factors[i] = scale_value(f, s->scale, first + i);
    }
    if (follows(block, padded)) {
        decode(f, codes, t->factors, block, out, padded);
    } else {
        const float one = 1.0f;
        decode(f, codes, &one, padded, out, padded);
        multiply_blocks(out, t->factors, block, n);
    }
    for (int i = n; i < padded; i++) out[i] = 0.0f;
}

/* The largest magnitude of elements [start, end) of a piece. */
static uint32_t largest_of(const float *x, const vi *units, int start, int end) {
    uint32_t best = 0;
    if (start % HU_UNIT == 0 && units) {
        vi all = seti(0);
        for (int u = start / HU_UNIT; u * HU_UNIT < end; u++) all = maxs(all, units[u]);
        return reduce_max(all);
    }
    for (int i = start; i < end; i++) {
        uint32_t bits = (uint32_t)float_bits(x[i]) & 0x7fffffffu;
        best = bits > best ? bits : best;
    }
    return best;
}

/* Counts the updates that are due. The old values of all others become NaN, which equals nothing. */
static void count_due(const hu_slot *s, const float *new_values, float *old, int n) {
    int due = 0;
    for (int i = 0; i < n; i += VL) {
        vm moved = nef(ldf(new_values + i), ldf(old + i));
        due += countm(moved);
        stf(old + i, self(moved, ldf(old + i), setf(NAN)));
    }
    __atomic_fetch_add(&s->counts[0], due, __ATOMIC_RELAXED);
}

static void count_stalled(const hu_slot *s, const float *stored, const float *old, int n) {
    int changed = 0;
    for (int i = 0; i < n; i += VL) changed += countm(nef(ldf(stored + i), ldf(old + i)));
    __atomic_fetch_add(&s->counts[1], n - changed, __ATOMIC_RELAXED);
}

/* Encodes the new values of a slot, x (overwritten if blocks are odd), and stores those of good tiles. */
static void store_slot(const hu_work *w, int k, int64_t row, int64_t col, int n, scratch *t, span *big, int any_bad,
                       const uint32_t *words) {
    const hu_slot *s = &w->slot[k];
    const hu_format *f = s->format;
    float *x = t->state[k];
    uint8_t *codes = (uint8_t *)s->codes + code_offset(f, row, col, w->cols);
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    const int tile = w->tile < n ? (int)w->tile : n;
    const int block = s->block && s->block < n ? (int)s->block : padded;
    float spare;
    if (any_bad)
        for (int i = 0; i < n; i++)
            if (t->bad[i / tile]) x[i] = t->old[k][i] = 0.0f;
    if (s->counts) count_due(s, x, t->old[k], padded);
    if (f->scale != HU_SCALE_NONE) {
        const int64_t first = scale_index(s, row, col, w->cols);
        const vi *units = any_bad ? NULL : t->largest[k];
        const int aligned = follows(block, padded);
        int i = 0, start = 0;
        if (aligned && units && block % HU_UNIT == 0 && !(big && wide(s, w->cols)))
            for (const int a_block = block / HU_UNIT; start + 4 * block <= n; i += 4, start += 4 * block) {
                vi largest[4];
                for (int j = 0; j < 4; j++) {
                    const vi *u = units + start / HU_UNIT + j * a_block;
                    largest[j] = u[0];
                    for (int k2 = 1; k2 < a_block; k2++) largest[j] = maxs(largest[j], u[k2]);
                }
                put_scales4(f, reduce4(largest[0], largest[1], largest[2], largest[3]), s->scale, first + i, t->factors + i);
            }
        for (; start < n; i++, start += block) {
            int64_t at = first + i;
            void *scale = s->scale;
            uint32_t absmax;
            if (big && wide(s, w->cols)) {
                absmax = big->largest[k];
                scale = &spare; /* kept until all pieces of the tile have been read */
                at = 0;
            } else {
                int end = start + block < n ? start + block : n;
                absmax = largest_of(x, aligned ? units : NULL, start, end);
                if (any_bad && t->bad[start / tile]) scale = &spare, at = 0;
            }
            t->factors[i] = put_scale(f, absmax, scale, at);
        }
    }
    const int direct = !any_bad && padded == n;
    uint8_t *target = direct ? codes : t->codes;
    if (follows(block, padded)) {
        t->encode[k](f, x, t->factors, block, words, target, padded);
    } else {
        const float one = 1.0f;
        multiply_blocks(x, t->factors, block, n);
        clamp_all(x, f->max, n);
        t->encode[k](f, x, &one, padded, words, target, padded);
    }
    if (direct) return;
    if (f->bits == 4 && n % 2) target[n / 2] &= 15; /* the last byte of an odd row has a zero in its other half */
    if (!any_bad) {
        memcpy(codes, target, (size_t)code_bytes(f, n));
        return;
    }
    for (int start = 0; start < n; start += tile)
        if (!t->bad[start / tile]) {
            int count = n - start < tile ? n - start : tile;
            int64_t offset = code_bytes(f, start);
            memcpy(codes + offset, target + offset, (size_t)code_bytes(f, count));
        }
}

static void write_slot(const hu_work *w, int k, int64_t row, int64_t col, int n, scratch *t, span *big, int any_bad,
                       const uint32_t *words) {
    store_slot(w, k, row, col, n, t, big, any_bad, words);
    if (!w->slot[k].counts) return;
    hu_slot s = w->slot[k];
    float scale;
    if (big && wide(&s, w->cols)) { /* the scale is stored at the very end */
        put_scale(s.format, big->largest[k], &scale, 0);
        s.scale = &scale, s.per = HU_PER_TENSOR;
    }
    read_slot(&s, t->decode[k], row, col, w->cols, n, t, t->state[k]);
    count_stalled(&s, t->state[k], t->old[k], (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT);
}

#endif
