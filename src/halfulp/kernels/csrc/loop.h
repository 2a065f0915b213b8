/* The loop around a program. While its divisions are running, it also computes the random words of the streams that
   will be needed, and the largest magnitude of each new state. kernels/code.py generates the statements for one vector
   of elements. */
#ifndef LOOP_H
#define LOOP_H

#include "halfulp.h"

#include "hash.h"
#include "simd.h"

/* A source of values: fp32 numbers, or bfloat16 numbers with optional remainders of 16 or 8 bits. */
typedef struct hu_source {
    const float *fp32;
    const uint16_t *bf16; /* NULL for fp32 */
    const uint8_t *rest;  /* NULL without remainders */
    int kind;             /* kind of the remainders */
} hu_source;

typedef struct hu_piece {
    hu_source grad, param;
    float *new_param, *old_param; /* the old parameter is kept to restore bad tiles */
    float *state[HU_MAX_SLOTS];   /* updated in place */
    int wide; /* states of more than 8 bits, to prefetch */
    const uint8_t *codes[HU_MAX_SLOTS];
    int unit_bytes[HU_MAX_SLOTS]; /* bytes of 64 codes */
    vi *largest[HU_MAX_SLOTS];    /* for each unit of 64: largest bit patterns without sign, by lane */
    vi *worst;                    /* largest of all, including the gradient's if no state would show it */
    const float *c;               /* the row's values, then uniform values */
    const float *column[HU_MAX_VECTORS];
    float *term[HU_MAX_SUMS], *factor[HU_MAX_SUMS]; /* terms of a measuring program, and factors */
    const int32_t *code;          /* instructions of the vector machine */
    uint64_t element;             /* global index of the first element */
    int streams;
    hu_stream stream[HU_MAX_SLOTS + 1];
    int n, count; /* a multiple of HU_UNIT, and the number of elements without padding */
} hu_piece;

typedef void (*program_fn)(const hu_piece *w);
typedef struct hu_program {
    uint64_t digest;
    program_fn run;
} hu_program;
typedef struct hu_part {
    const hu_program *programs;
    int count;
} hu_part;

/* Prefetch distances in elements. Requests are spread over a piece: a core can have few of them under way, and stops at
   the next. The loop asks for parameters, gradients and states of more than 8 bits. If there are such states, gradients
   are asked for between reading and writing of the states instead (step.c). */
#define AHEAD 640
#define STATES_AHEAD 1024

/* Whether all streams share the first round of their hash, with the same upper half of the index. */
INLINE int one_first_round(const hu_piece *w) {
    int same = one_upper_half(w->element, w->n);
    for (int k = 1; k < w->streams; k++)
        same &= w->stream[k].key[0] == w->stream[0].key[0] && w->stream[k].key[1] == w->stream[0].key[1];
    return same;
}

/* Computes the words of all streams at once if they do not share their first round. Returns whether the loop has to. */
static int words_in_loop(const hu_piece *w) {
    if (one_first_round(w)) return w->streams > 0;
    for (int k = 0; k < w->streams; k++)
        for (int i = 0; i < w->n; i += HU_UNIT)
            hash_unit(w->element + (uint64_t)i, w->stream[k].key, w->stream[k].words + i);
    return 0;
}

/* One vector's words of every stream, from the shared first round. */
INLINE void words_of(const hu_piece *w, int streams, int j, vu x, vu multiplier0, vu multiplier1, uint32_t *words0,
                     uint32_t *words1) {
    sti(words0 + j, (vi)second_round(x, multiplier0));
    if (streams < 2) return;
    sti(words1 + j, (vi)second_round(x, multiplier1));
    for (int k = 2; k < streams; k++)
        sti(w->stream[k].words + j, (vi)second_round(x, setu(w->stream[k].key[2])));
}

/* The words of all streams, outside a program's loop. */
static inline void all_words(const hu_piece *w) {
    if (!words_in_loop(w)) return;
    const uint32_t *const key = w->stream[0].key;
    const vu key0 = setu(folded_key(w->element, key)), key1 = setu(key[1]), multiplier0 = setu(key[2]);
    const vu multiplier1 = setu(w->streams > 1 ? w->stream[1].key[2] : 0);
    vu point = weyl(w->element);
    for (int i = 0; i < w->n; i += VL, point = point + VL * GOLDEN)
        words_of(w, w->streams, i, first_round(fold(point), key0, key1), multiplier0, multiplier1, w->stream[0].words,
                 w->streams > 1 ? w->stream[1].words : NULL);
}

/* A 16-bit remainder is the signed difference between the patterns of the weight and of the visible weight. An 8-bit
   remainder is its upper half. */
INLINE vf join(const uint16_t *visible, const void *rest, int kind) {
    vu difference = kind == HU_MASTER_REMAINDER16 ? (vu)ldu16(rest) << 16 : (vu)ldu8(rest) << 24;
    return asf((vi)((vu)ldu16(visible) << 16) + ((vi)difference >> 16));
}

INLINE void prefetch_wide(const hu_piece *w, int start) {
    for (int k = 0; k < w->wide; k++) {
        const uint8_t *const ahead = w->codes[k] + (start + STATES_AHEAD) / HU_UNIT * w->unit_bytes[k];
        for (int line = 0; line < w->unit_bytes[k]; line += 64) __builtin_prefetch(ahead + line, 1);
    }
}

/* Returns the numbers of one unit as fp32, in place or written to `unit`, and prefetches AHEAD if asked to. */
INLINE const float *unit_of(const hu_source *from, int start, float *unit, int prefetch, const int to_change) {
    const int ahead = start + AHEAD;
    if (!from->bf16) {
        for (int line = 0; prefetch && line < HU_UNIT; line += 16) __builtin_prefetch(from->fp32 + ahead + line, to_change);
        return from->fp32 + start;
    }
    for (int line = 0; prefetch && line < HU_UNIT; line += 32) __builtin_prefetch(from->bf16 + ahead + line, to_change);
    if (from->rest) {
        const int bytes = from->kind / 8;
        for (int line = 0; line < HU_UNIT * bytes; line += 64) __builtin_prefetch(from->rest + ahead * bytes + line, 1);
        for (int i = 0; i < HU_UNIT; i += VL)
            stf(unit + i, join(from->bf16 + start + i, from->rest + (start + i) * bytes, from->kind));
    } else {
        for (int i = 0; i < HU_UNIT; i += VL) stf(unit + i, asf(ldu16(from->bf16 + start + i) << 16));
    }
    return unit;
}

#define START(slots) \
    enum { STATES = slots, PLACES = slots ? slots : 1 }; \
    float *const new_param = w->new_param, *const old_param = w->old_param; \
    float *state[PLACES]; \
    vi *of_state[PLACES]; \
    for (int k = 0; k < STATES; k++) state[k] = w->state[k], of_state[k] = w->largest[k]; \
    (void)new_param, (void)old_param, (void)state;

INLINE vf signf(vf x) {
    const vf zero = setf(0.0f), one = setf(1.0f);
    return self(ltf(zero, x), one, zero) - self(ltf(x, zero), one, zero);
}

/* The values of a unit that a program reads. */
#define READ_GRAD \
    float grad_unit[HU_UNIT] __attribute__((aligned(64))); \
    const float *const grad = unit_of(&w->grad, start, grad_unit, !w->wide, 0);
#define READ_PARAM(to_change) \
    float param_unit[HU_UNIT] __attribute__((aligned(64))); \
    const float *const param = unit_of(&w->param, start, param_unit, 1, to_change);
#define READ(x) ldf(x + (i - start))

/* Runs the statements for each vector, elements i to i + VL. They update the largest magnitudes of new states. */
#define FOR_EACH_VECTOR(reads, ...) \
    const int n = w->n, streams = w->streams, together = words_in_loop(w); \
    const uint32_t *const key = w->stream[0].key; \
    const vu key0 = setu(together ? folded_key(w->element, key) : 0), key1 = setu(together ? key[1] : 0); \
    const vu multiplier0 = setu(together ? key[2] : 0), multiplier1 = setu(streams > 1 ? w->stream[1].key[2] : 0); \
    uint32_t *const words0 = w->stream[0].words, *const words1 = streams > 1 ? w->stream[1].words : NULL; \
    vu point = weyl(w->element); \
    vi worst = seti(0); \
    for (int start = 0; start < n; start += HU_UNIT) { \
        reads \
        if (STATES) prefetch_wide(w, start); \
        vi largest[PLACES], others = seti(0); \
        for (int k = 0; k < PLACES; k++) largest[k] = seti(0); \
        for (int i = start; i < start + HU_UNIT; i += VL) { \
            { __VA_ARGS__ } \
            if (together) \
                words_of(w, streams, i, first_round(fold(point), key0, key1), multiplier0, multiplier1, words0, words1); \
            point = point + VL * GOLDEN; \
        } \
        for (int k = 0; k < STATES; k++) of_state[k][start / HU_UNIT] = largest[k], others = maxs(others, largest[k]); \
        worst = maxs(worst, others); \
    } \
    *w->worst = worst;

#define CHECK(x) others = maxs(others, absi(x)) /* of a gradient: its magnitude decides, but is not kept */
#define SAVE(k, x) stf(state[k] + i, x)
#define LARGEST(k, x) largest[k] = maxs(largest[k], absi(x))

/* A measuring program writes the terms of its sums. */
#define MEASURE(slots) \
    const float *const *const state = (const float *const *)w->state; \
    (void)state;
#define MEASURE_EACH_VECTOR(reads, ...) \
    for (int start = 0; start < w->n; start += HU_UNIT) { \
        reads \
        for (int i = start; i < start + HU_UNIT; i += VL) { __VA_ARGS__ } \
    }
#define TERM(k, a) stf(w->term[k] + i, a)
#define PRODUCT(k, a, b) stf(w->term[k] + i, a), stf(w->factor[k] + i, b)
/* Updates the largest bit patterns without sign, lane by lane. Padding does not count. */
INLINE vi largest_term(vi before, const hu_piece *w, int i, vf a) {
    return maxs(before, seli(gts(seti(w->count - i), iota()), absi(a), seti(0)));
}
#define LARGEST_TERM(k, a) top##k = largest_term(top##k, w, i, a)
#define LARGEST_OF(k) w->term[k][0] = bits_float((int32_t)reduce_max(top##k))

#endif
