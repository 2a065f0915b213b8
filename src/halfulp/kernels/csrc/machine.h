/* The vector machine runs programs without generated code. Each instruction processes as many elements as fit into the
   first-level cache with the values computed from them. kernels/code.py writes the instructions. code[0] is the number
   of instructions, code[1] of registers, code[2] of uniform values. Each instruction has five numbers: the operation,
   three operands, and the register of the result or the number of the state or sum. Operands are numbered in the order
   registers, uniform values, gradient, parameter, states, column vectors. */
#ifndef MACHINE_H
#define MACHINE_H

#include "loop.h"

#define HU_WIDTH 256 /* elements per instruction */

typedef struct operand {
    const float *at;
    int mask; /* 0 if the vector is the same for all elements */
} operand;

#define EACH(expression) \
    for (int i = 0; i < n; i += VL) { \
        const vf a = ldf(x.at + (i & x.mask)), b = ldf(y.at + (i & y.mask)), c = ldf(z.at + (i & z.mask)); \
        (void)a, (void)b, (void)c; \
        stf(to + i, expression); \
    } \
    break;
#define ONE(expression) \
    for (int i = 0; i < n; i += VL) { \
        const vf a = ldf(x.at + (i & x.mask)); \
        stf(to + i, expression); \
    } \
    break;
#define TWO(expression) \
    for (int i = 0; i < n; i += VL) { \
        const vf a = ldf(x.at + (i & x.mask)), b = ldf(y.at + (i & y.mask)); \
        stf(to + i, expression); \
    } \
    break;

/* Masks are stored as patterns of ones and zeros. */
INLINE vf mask_to_float(vm m) { return asf(seli(m, seti(-1), seti(0))); }
INLINE vm float_to_mask(vf x) { return gts(seti(0), asi(x)); }

static void run_machine(const hu_piece *w) {
    const int32_t *const code = w->code;
    const int instructions = code[0], registers = code[1], uniforms = code[2];
    float reg[HU_MAX_REGISTERS][HU_WIDTH] __attribute__((aligned(64)));
    float uniform[HU_MAX_UNIFORMS][VL] __attribute__((aligned(64)));
    operand operands[HU_MAX_REGISTERS + HU_MAX_UNIFORMS + 2 + HU_MAX_SLOTS + HU_MAX_VECTORS];
    for (int k = 0; k < registers; k++) operands[k] = (operand){reg[k], -1};
    for (int k = 0; k < uniforms; k++) {
        stf(uniform[k], setf(w->c[k]));
        operands[registers + k] = (operand){uniform[k], 0};
    }
    all_words(w);
    vi worst = seti(0);
    for (int start = 0; start < w->n; start += HU_WIDTH) {
        const int n = w->n - start < HU_WIDTH ? w->n - start : HU_WIDTH, inputs = registers + uniforms;
        operands[inputs] = (operand){w->grad.fp32 + start, -1};
        operands[inputs + 1] = (operand){w->param.fp32 + start, -1};
        for (int k = 0; k < HU_MAX_SLOTS; k++) operands[inputs + 2 + k] = (operand){w->state[k] + start, -1};
        for (int k = 0; k < HU_MAX_VECTORS; k++) operands[inputs + 2 + HU_MAX_SLOTS + k] = (operand){w->column[k] + start, -1};
        for (int i = start; i < start + n; i += 16) {
            __builtin_prefetch(w->grad.fp32 + i + AHEAD);
            __builtin_prefetch(w->param.fp32 + i + AHEAD, 1);
        }
        for (int u = start; u < start + n; u += HU_UNIT) prefetch_wide(w, u);
        const int32_t *at = code + 3;
        for (int number = 0; number < instructions; number++, at += 5) {
            const operand x = operands[at[1]], y = operands[at[2]], z = operands[at[3]];
            const int of = at[4];
            float *const to = reg[of];
            switch (at[0]) {
            case HU_ADD: TWO(a + b)
            case HU_SUB: TWO(a - b)
            case HU_MUL: TWO(a * b)
            case HU_DIV: TWO(a / b)
            case HU_NEG: ONE(-a)
            case HU_COPY: ONE(a)
            case HU_ABS: ONE(asf(absi(a)))
            case HU_SQRT: ONE(sqrtv(a))
            case HU_SIGN: ONE(signf(a))
            case HU_MAX: TWO(maxf(a, b))
            case HU_MIN: TWO(minf(a, b))
            case HU_LT: TWO(mask_to_float(ltf(a, b)))
            case HU_LE: TWO(mask_to_float(lef(a, b)))
            case HU_EQ: TWO(mask_to_float(eqf(a, b)))
            case HU_NE: TWO(mask_to_float(nef(a, b)))
            case HU_AND: TWO(asf(asi(a) & asi(b)))
            case HU_OR: TWO(asf(asi(a) | asi(b)))
            case HU_NOT: ONE(asf(~asi(a)))
            case HU_SELECT: EACH(self(float_to_mask(a), b, c))
            case HU_ROUNDED: ONE(asf(cvt_rn(a)))
            case HU_TO_FLOAT: ONE(itof(asi(a)))
            case HU_ADD_INT: TWO(asf((vi)((vu)asi(a) + (vu)asi(b))))
            case HU_SUB_INT: TWO(asf((vi)((vu)asi(a) - (vu)asi(b))))
            case HU_SHIFT_LEFT: ONE(asf((vi)((vu)asi(a) << at[2])))
            case HU_SHIFT_RIGHT: ONE(asf(asi(a) >> at[2]))
            case HU_SAVE: /* stores a new state and its largest magnitudes */
                for (int u = 0; u < n; u += HU_UNIT) {
                    vi largest = seti(0);
                    for (int i = u; i < u + HU_UNIT; i += VL) {
                        const vf a = ldf(x.at + (i & x.mask));
                        stf(w->state[of] + start + i, a);
                        largest = maxs(largest, absi(a));
                    }
                    w->largest[of][(start + u) / HU_UNIT] = largest;
                    worst = maxs(worst, largest);
                }
                break;
            case HU_CHECK:
                for (int i = 0; i < n; i += VL) worst = maxs(worst, absi(ldf(x.at + (i & x.mask))));
                break;
            case HU_SAVE_PARAM:
                for (int i = 0; i < n; i += VL) {
                    const vf a = ldf(x.at + (i & x.mask));
                    stf(w->old_param + start + i, ldf(w->param.fp32 + start + i));
                    stf(w->new_param + start + i, a);
                }
                break;
            case HU_TERM:
                for (int i = 0; i < n; i += VL) stf(w->term[of] + start + i, ldf(x.at + (i & x.mask)));
                break;
            case HU_PRODUCT:
                for (int i = 0; i < n; i += VL) {
                    stf(w->term[of] + start + i, ldf(x.at + (i & x.mask)));
                    stf(w->factor[of] + start + i, ldf(y.at + (i & y.mask)));
                }
                break;
            case HU_LARGEST_TERM: {
                vi top = start ? seti(float_bits(w->term[of][0])) : seti(0);
                for (int i = 0; i < n; i += VL) top = largest_term(top, w, start + i, ldf(x.at + (i & x.mask)));
                w->term[of][0] = bits_float((int32_t)reduce_max(top));
                break;
            }
            }
        }
    }
    if (w->worst) *w->worst = worst;
}

#undef EACH
#undef ONE
#undef TWO

#endif
