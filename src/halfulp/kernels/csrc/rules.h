/* The update rules on fp32 arrays, and in the same loops what else can hide behind their divisions: the random words of
 * the streams that will be needed, and the largest magnitude of each new state.
 *
 * Each follows its `_update` in rules/ operation by operation. */
#ifndef RULES_H
#define RULES_H

#include "hash.h"
#include "simd.h"

typedef struct hu_piece {
    const float *grad, *param;
    float *new_param, *old_param; /* the old parameter is kept, for tiles that will have to be put back */
    float *state[HU_MAX_SLOTS];   /* updated in place */
    vi *largest[HU_MAX_SLOTS];    /* for each unit of 64: largest bit patterns without sign, lane by lane */
    vi *worst;                    /* largest of all, the gradient's included where there is no state */
    const float *c;
    uint64_t element; /* global index of the first */
    int streams;
    hu_stream stream[HU_MAX_SLOTS + 1];
    int n;
} hu_piece;

#define AHEAD 640 /* elements further on that are fetched meanwhile */

typedef void (*rule_fn)(const hu_piece *w);

/* What a loop holds in registers: the pointers and the scalars. */
typedef struct lanes {
    const float *grad, *param;
    float *new_param, *old_param, *state[HU_MAX_SLOTS];
    vf c[9];
    int l2, nesterov;
} lanes;

INLINE vf clamp(vf x, vf low, vf high) { return minf(high, maxf(low, x)); } /* a NaN stays */

INLINE void fetch(const lanes *w, int i) {
    __builtin_prefetch(w->grad + i + AHEAD);
    __builtin_prefetch(w->param + i + AHEAD, 1);
}

INLINE lanes adam_start(const hu_piece *w) {
    lanes r = {w->grad, w->param, w->new_param, w->old_param, {w->state[0], w->state[1]}, {}, w->c[ADAM_L2] != 0.0f, 0};
    for (int i = 0; i < 9; i++) r.c[i] = setf(w->c[i]);
    return r;
}

INLINE void adam_lane(const lanes *w, int i, vi *largest, const int slots) {
    (void)slots;
    vf g = ldf(w->grad + i), p = ldf(w->param + i), m = ldf(w->state[0] + i), v = ldf(w->state[1] + i);
    fetch(w, i);
    stf(w->old_param + i, p);
    if (w->l2) g = g + p * w->c[ADAM_L2];
    m = m + (g - m) * w->c[ADAM_WEIGHT1];
    v = v * w->c[ADAM_BETA2] + (g * g) * w->c[ADAM_WEIGHT2];
    vf denominator = sqrtv(v) * w->c[ADAM_INV_SQRT] + w->c[ADAM_EPS];
    vf ratio = clamp(m / denominator, -w->c[ADAM_BOUND], w->c[ADAM_BOUND]);
    stf(w->state[0] + i, m);
    stf(w->state[1] + i, v);
    stf(w->new_param + i, p * w->c[ADAM_KEEP] - ratio * w->c[ADAM_STEP]);
    largest[0] = maxs(largest[0], absi(m));
    largest[1] = maxs(largest[1], absi(v));
}

INLINE lanes sgd_start(const hu_piece *w) {
    lanes r = {w->grad, w->param, w->new_param, w->old_param, {w->state[0]}, {}, w->c[SGD_L2] != 0.0f,
               w->c[SGD_NESTEROV] != 0.0f};
    for (int i = 0; i < 5; i++) r.c[i] = setf(w->c[i]);
    return r;
}

INLINE void sgd_lane(const lanes *w, int i, vi *largest, const int slots) {
    vf g = ldf(w->grad + i), p = ldf(w->param + i);
    fetch(w, i);
    stf(w->old_param + i, p);
    if (!slots) largest[0] = maxs(largest[0], absi(g));
    if (w->l2) g = g + p * w->c[SGD_L2];
    vf step = g;
    if (slots) {
        vf buffer = ldf(w->state[0] + i) * w->c[SGD_MOMENTUM] + g * w->c[SGD_GAIN];
        step = w->nesterov ? g + buffer * w->c[SGD_NESTEROV] : buffer;
        stf(w->state[0] + i, buffer);
        largest[0] = maxs(largest[0], absi(buffer));
    }
    stf(w->new_param + i, p - step * w->c[SGD_LR]);
}

INLINE lanes lion_start(const hu_piece *w) {
    lanes r = {w->grad, w->param, w->new_param, w->old_param, {w->state[0]}, {}, 0, 0};
    for (int i = 0; i < 4; i++) r.c[i] = setf(w->c[i]);
    return r;
}

INLINE void lion_lane(const lanes *w, int i, vi *largest, const int slots) {
    (void)slots;
    vf g = ldf(w->grad + i), p = ldf(w->param + i), m = ldf(w->state[0] + i);
    fetch(w, i);
    stf(w->old_param + i, p);
    vf difference = g - m, x = m + difference * w->c[LION_WEIGHT1], zero = setf(0.0f), one = setf(1.0f);
    vf direction = self(ltf(zero, x), one, zero) - self(ltf(x, zero), one, zero);
    m = m + difference * w->c[LION_WEIGHT2];
    stf(w->state[0] + i, m);
    stf(w->new_param + i, p * w->c[LION_KEEP] - direction * w->c[LION_LR]);
    largest[0] = maxs(largest[0], absi(m));
}

INLINE lanes ema_start(const hu_piece *w) {
    return (lanes){w->grad, w->param, w->new_param, w->old_param, {w->state[0]}, {setf(w->c[EMA_WEIGHT])}, 0, 0};
}

INLINE void ema_lane(const lanes *w, int i, vi *largest, const int slots) {
    (void)slots;
    vf average = ldf(w->state[0] + i);
    __builtin_prefetch(w->grad + i + AHEAD);
    average = average + (ldf(w->grad + i) - average) * w->c[EMA_WEIGHT];
    stf(w->state[0] + i, average);
    largest[0] = maxs(largest[0], absi(average));
}

INLINE lanes ema_difference_start(const hu_piece *w) {
    return (lanes){w->grad, w->param, w->new_param, w->old_param, {w->state[0]}, {setf(w->c[EMA_DIFFERENCE_DECAY])}, 0, 0};
}

INLINE void ema_difference_lane(const lanes *w, int i, vi *largest, const int slots) {
    (void)slots;
    vf step = ldf(w->param + i) - ldf(w->grad + i), difference = ldf(w->state[0] + i);
    __builtin_prefetch(w->grad + i + AHEAD);
    __builtin_prefetch(w->param + i + AHEAD);
    difference = (difference + step) * w->c[EMA_DIFFERENCE_DECAY];
    stf(w->state[0] + i, difference);
    largest[0] = maxs(largest[0], absi(difference));
}

/* Whether all streams share the first round of their hash, over one upper half of the index. */
INLINE int one_first_round(const hu_piece *w, uint64_t first, int n) {
    int same = one_upper_half(first, n);
    for (int k = 1; k < w->streams; k++)
        same &= w->stream[k].key[0] == w->stream[0].key[0] && w->stream[k].key[1] == w->stream[0].key[1];
    return same;
}

#define DEFINE(rule, slots, streams) \
    static void rule##_##slots##_##streams(const hu_piece *w) { \
        const lanes local = rule##_start(w); \
        const uint64_t first = w->element; \
        const int n = w->n, together = streams && one_first_round(w, first, n); \
        vi *of_slot[2] = {w->largest[0], w->largest[1]}; \
        uint32_t *words[streams + 1]; \
        const uint32_t *const key = w->stream[0].key; \
        vu point = weyl(first), multiplier[streams + 1], key0 = setu(streams ? folded_key(first, key) : 0), key1 = setu(streams ? key[1] : 0); \
        for (int k = 0; k < streams; k++) { \
            words[k] = w->stream[k].words; \
            multiplier[k] = setu(w->stream[k].key[2]); \
            for (int i = 0; !together && i < n; i += HU_UNIT) hash_unit(first + (uint64_t)i, w->stream[k].key, words[k] + i); \
        } \
        vi worst = seti(0); \
        for (int start = 0; start < n; start += HU_UNIT) { \
            vi largest[2] = {seti(0), seti(0)}; \
            for (int j = start; j < start + HU_UNIT; j += VL) { \
                rule##_lane(&local, j, largest, slots); \
                if (together) { \
                    const vu x = first_round(fold(point), key0, key1); \
                    for (int k = 0; k < streams; k++) sti(words[k] + j, (vi)second_round(x, multiplier[k])); \
                } \
                point = point + VL * GOLDEN; \
            } \
            for (int k = 0; k < slots; k++) of_slot[k][start / HU_UNIT] = largest[k]; \
            worst = maxs(worst, maxs(largest[0], largest[1])); \
        } \
        *w->worst = worst; \
    }
DEFINE(adam, 2, 0) DEFINE(adam, 2, 1) DEFINE(adam, 2, 2) DEFINE(adam, 2, 3)
DEFINE(sgd, 0, 0) DEFINE(sgd, 0, 1)
DEFINE(sgd, 1, 0) DEFINE(sgd, 1, 1) DEFINE(sgd, 1, 2)
DEFINE(lion, 1, 0) DEFINE(lion, 1, 1) DEFINE(lion, 1, 2)
DEFINE(ema, 1, 0) DEFINE(ema, 1, 1)
DEFINE(ema_difference, 1, 0) DEFINE(ema_difference, 1, 1)
#undef DEFINE

static rule_fn rule_of(int rule, int slots, int streams) {
    static const rule_fn adam[] = {adam_2_0, adam_2_1, adam_2_2, adam_2_3};
    static const rule_fn sgd[2][3] = {{sgd_0_0, sgd_0_1, 0}, {sgd_1_0, sgd_1_1, sgd_1_2}};
    static const rule_fn lion[] = {lion_1_0, lion_1_1, lion_1_2};
    static const rule_fn ema[] = {ema_1_0, ema_1_1}, ema_difference[] = {ema_difference_1_0, ema_difference_1_1};
    switch (rule) {
    case HU_ADAM: return adam[streams];
    case HU_SGD: return sgd[slots][streams];
    case HU_LION: return lion[streams];
    case HU_EMA: return ema[streams];
    default: return ema_difference[streams];
    }
}

#endif
