/* The C side of the CPU kernels: plain structs and raw pointers; kernels/descriptors.py mirrors them field by field.
 *
 * Nothing here knows torch. A `hu_work` is one parameter in one step; `hu_step` does any number of them. */
#ifndef HALFULP_H
#define HALFULP_H

#include <stdint.h>

#define HU_ABI 1
#define HU_CAP 1024    /* elements of scratch: the largest tile that one pass can do */
#define HU_GROUP 512   /* elements that a pass takes at once, where the tile allows */
#define HU_UNIT 64     /* loops run over multiples of this many elements */
#define HU_MAX_SLOTS 2

/* How codes are made and read. HU_FINE: a float of 8 bits whose fraction (rounding.py: F) is not 24 bits. */
enum { HU_FLOAT32, HU_BFLOAT16, HU_FLOAT16, HU_FLOAT, HU_INT, HU_BOOK, HU_FINE };
enum { HU_SCALE_NONE, HU_SCALE_POW2, HU_SCALE_FP32 };
enum { HU_PER_BLOCK, HU_PER_ROW, HU_PER_TENSOR };
enum { HU_ADAM, HU_SGD, HU_LION, HU_EMA, HU_EMA_DIFFERENCE, HU_RULES }; /* the last two only read the parameter */

/* Where each rule finds its scalars. */
enum { ADAM_KEEP, ADAM_L2, ADAM_WEIGHT1, ADAM_BETA2, ADAM_WEIGHT2, ADAM_INV_SQRT, ADAM_EPS, ADAM_BOUND, ADAM_STEP };
enum { SGD_L2, SGD_MOMENTUM, SGD_GAIN, SGD_NESTEROV, SGD_LR };
enum { LION_KEEP, LION_WEIGHT1, LION_WEIGHT2, LION_LR };
enum { EMA_WEIGHT };
enum { EMA_DIFFERENCE_DECAY };

/* A codebook of few evenly spaced stretches of codes, which are the same on both sides of zero: where they begin, by
 * magnitude, and rounding.Codebook's figures of each. */
#define HU_STRETCHES 16
typedef struct hu_even {
    float border[HU_STRETCHES], density[HU_STRETCHES], start[2 * HU_STRETCHES]; /* those of the negative side follow */
    int32_t base[2 * HU_STRETCHES];
    /* for exponents from 2**-31 to 1: the stretch of the smallest number, and where the next two begin */
    int32_t first[32];
    float next[32], second[32];
} hu_even;

typedef struct hu_format {
    int32_t kind, bits, is_signed, stochastic, zero_floor, scale;
    int32_t mantissa_bits; /* the constants of rounding.py: p, smallest exponent field, F */
    int32_t emin_field, fraction;
    int32_t max_bits;                 /* fp32 pattern of the largest value */
    int32_t scale_round, scale_shift; /* pow2: code = ((absmax bits + round) >> 23) - shift */
    int32_t zero_code, top_code;      /* codebook: code of 0; and the last finite code, without sign */
    float max, reach; /* Format.max, Format.reach */
    int32_t exponent_bits, unused;
    const float *values;       /* decoded value of every code: 16; or 256, and their bytes, the lowest of all first */
    const float *levels;       /* codebook: levels, padded to 256 with infinity */
    const float *middles;      /* codebook: middles between levels, padded likewise */
    const float *density, *start;  /* codebook: of each gap, 255, as in rounding.Codebook */
    const int32_t *base;
    const hu_even *even;           /* NULL where the gaps of a codebook differ too often, or its sides */
} hu_format;

typedef struct hu_slot {
    void *codes;
    void *scale;
    const hu_format *format;
    int64_t *counts; /* NULL, or two counters: updates due, updates stalled */
    int64_t block;   /* elements that share a scale, at most the columns */
    int32_t per;
    uint32_t key[3];
} hu_slot;

typedef struct hu_work {
    void *param;
    const void *grad;
    const float *scalars;
    int64_t *skipped; /* elements left untouched; added to */
    int64_t rows, cols, tile;
    uint64_t first_element;
    int32_t rule, slots;
    int32_t param_kind, grad_kind; /* HU_FLOAT32, HU_BFLOAT16 or HU_FLOAT16 */
    int32_t param_stochastic, maximize;
    uint32_t param_key[3];
    int32_t unused;
    int64_t row_stride;   /* elements of the whole tensor from one row to the next: random words follow its index */
    int64_t units_before; /* filled in by hu_step */
    hu_slot slot[HU_MAX_SLOTS];
} hu_work;

/* One instruction set's worth of code. */
typedef struct hu_isa {
    const char *name;
    int64_t (*units)(const hu_work *work); /* parts that different threads may do */
    void (*run)(const hu_work *work, int64_t first_unit, int64_t last_unit);
    void (*decode)(const hu_slot *slot, int64_t rows, int64_t cols, float *out);
    void (*encode)(const hu_slot *slot, int64_t rows, int64_t cols, uint64_t first_element, int64_t row_stride,
                   const float *in);
} hu_isa;

#endif
