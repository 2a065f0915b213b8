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
    float *new_param;
    float *state[HU_MAX_SLOTS]; /* updated in place */
    vi *largest[HU_MAX_SLOTS];  /* for each unit of 64: largest bit patterns without sign, lane by lane */
    vi *worst;                  /* largest of all, the gradient's included where there is no state */
    const float *c;
    uint64_t element; /* global index of the first */
    int streams;
    hu_stream stream[HU_MAX_SLOTS + 1];
    int n;
} hu_piece;

typedef void (*rule_fn)(const hu_piece *w);

INLINE vf clamp(vf x, vf bound) { return minf(bound, maxf(-bound, x)); } /* a NaN stays */

INLINE void adam_lane(const hu_piece *w, int i, vi *largest, const int slots) {
    const float *c = w->c;
    (void)slots;
    vf g = ldf(w->grad + i), p = ldf(w->param + i), m = ldf(w->state[0] + i), v = ldf(w->state[1] + i);
    if (c[ADAM_L2] != 0.0f) g = g + p * setf(c[ADAM_L2]);
    m = m + (g - m) * setf(c[ADAM_WEIGHT1]);
    v = v * setf(c[ADAM_BETA2]) + (g * g) * setf(c[ADAM_WEIGHT2]);
    vf denominator = sqrtv(v) * setf(c[ADAM_INV_SQRT]) + setf(c[ADAM_EPS]);
    vf ratio = clamp(m / denominator, setf(c[ADAM_BOUND]));
    stf(w->new_param + i, p * setf(c[ADAM_KEEP]) - ratio * setf(c[ADAM_STEP]));
    stf(w->state[0] + i, m);
    stf(w->state[1] + i, v);
    largest[0] = maxu(largest[0], absi(m));
    largest[1] = maxu(largest[1], absi(v));
}

INLINE void sgd_lane(const hu_piece *w, int i, vi *largest, const int slots) {
    const float *c = w->c;
    vf g = ldf(w->grad + i), p = ldf(w->param + i);
    if (!slots) largest[0] = maxu(largest[0], absi(g));
    if (c[SGD_L2] != 0.0f) g = g + p * setf(c[SGD_L2]);
    vf step = g;
    if (slots) {
        vf buffer = ldf(w->state[0] + i) * setf(c[SGD_MOMENTUM]) + g * setf(c[SGD_GAIN]);
        step = c[SGD_NESTEROV] != 0.0f ? g + buffer * setf(c[SGD_NESTEROV]) : buffer;
        stf(w->state[0] + i, buffer);
        largest[0] = maxu(largest[0], absi(buffer));
    }
    stf(w->new_param + i, p - step * setf(c[SGD_LR]));
}

INLINE void lion_lane(const hu_piece *w, int i, vi *largest, const int slots) {
    const float *c = w->c;
    (void)slots;
    vf g = ldf(w->grad + i), p = ldf(w->param + i), m = ldf(w->state[0] + i);
    vf difference = g - m, x = m + difference * setf(c[LION_WEIGHT1]), zero = setf(0.0f), one = setf(1.0f);
    vf direction = self(ltf(zero, x), one, zero) - self(ltf(x, zero), one, zero);
    m = m + difference * setf(c[LION_WEIGHT2]);
    stf(w->new_param + i, p * setf(c[LION_KEEP]) - direction * setf(c[LION_LR]));
    stf(w->state[0] + i, m);
    largest[0] = maxu(largest[0], absi(m));
}

#define DEFINE(rule, slots, streams) \
    static void rule##_##slots##_##streams(const hu_piece *w) { \
        vi worst = seti(0); \
        for (int start = 0; start < w->n; start += HU_UNIT) { \
            const uint64_t element = w->element + (uint64_t)start; \
            vi largest[2] = {seti(0), seti(0)}; \
            if (streams && !one_upper_half(element)) { \
                for (int k = 0; k < streams; k++) hash_unit(element, w->stream[k].key, w->stream[k].words + start); \
                for (int j = 0; j < HU_UNIT; j += VL) rule##_lane(w, start + j, largest, slots); \
            } else { \
                vu point = weyl(element), key0[streams + 1], key1[streams + 1]; \
                for (int k = 0; k < streams; k++) { \
                    key0[k] = (vu)seti((int32_t)folded_key(element, w->stream[k].key)); \
                    key1[k] = (vu)seti((int32_t)w->stream[k].key[1]); \
                } \
                for (int j = 0; j < HU_UNIT; j += VL) { \
                    rule##_lane(w, start + j, largest, slots); \
                    for (int k = 0; k < streams; k++) \
                        sti(w->stream[k].words + start + j, (vi)hash(fold(point), key0[k], key1[k])); \
                    point = point + VL * GOLDEN; \
                } \
            } \
            for (int k = 0; k < slots; k++) w->largest[k][start / HU_UNIT] = largest[k]; \
            worst = maxu(worst, maxu(largest[0], largest[1])); \
        } \
        *w->worst = worst; \
    }
DEFINE(adam, 2, 0) DEFINE(adam, 2, 1) DEFINE(adam, 2, 2) DEFINE(adam, 2, 3)
DEFINE(sgd, 0, 0) DEFINE(sgd, 0, 1)
DEFINE(sgd, 1, 0) DEFINE(sgd, 1, 1) DEFINE(sgd, 1, 2)
DEFINE(lion, 1, 0) DEFINE(lion, 1, 1) DEFINE(lion, 1, 2)
#undef DEFINE

static rule_fn rule_of(int rule, int slots, int streams) {
    static const rule_fn adam[] = {adam_2_0, adam_2_1, adam_2_2, adam_2_3};
    static const rule_fn sgd[2][3] = {{sgd_0_0, sgd_0_1, 0}, {sgd_1_0, sgd_1_1, sgd_1_2}};
    static const rule_fn lion[] = {lion_1_0, lion_1_1, lion_1_2};
    return rule == HU_ADAM ? adam[streams] : rule == HU_SGD ? sgd[slots][streams] : lion[streams];
}

#endif
