/* The C side of the CPU kernels: plain structs and raw pointers, independent of torch. kernels/descriptors.py mirrors
   them field by field. A `hu_work` is one parameter in one step, and `hu_step` steps any number of them. */
#ifndef HALFULP_H
#define HALFULP_H

#include <stdint.h>
#include <string.h>

#include "constants.h"

/* A codebook with few stretches of evenly spaced codes, which are the same on both sides of zero: the magnitudes at
   which they start, and the figures of rounding.Codebook for each. */
typedef struct hu_even {
    float border[HU_STRETCHES], density[HU_STRETCHES], start[2 * HU_STRETCHES]; /* the negative side follows */
    int32_t base[2 * HU_STRETCHES];
    /* for exponents from 2**-31 to 1: the stretch of the smallest number, and the starts of the next two */
    int32_t first[32];
    float next[32], second[32];
} hu_even;

typedef struct hu_format {
    int32_t kind, bits, is_signed, stochastic, zero_floor, scale;
    int32_t mantissa_bits; /* the constants of rounding.py: p, smallest exponent field, F */
    int32_t emin_field, fraction;
    int32_t max_bits;                 /* fp32 pattern of the largest value */
    int32_t scale_round, scale_shift; /* pow2: code = ((absmax bits + round) >> 23) - shift */
    int32_t zero_code, top_code;      /* code of 0 in a codebook; last finite code, without sign */
    float max, reach; /* Format.max, Format.reach */
    int32_t exponent_bits, unused;
    const float *values;       /* decoded values of all codes: 16, or 256 and then their bytes, lowest first */
    const float *levels;       /* codebook: levels, padded to 256 with infinity */
    const float *middles;      /* codebook: middles between levels, padded in the same way */
    const float *density, *start;  /* codebook: for each of 255 gaps, as in rounding.Codebook */
    const int32_t *base;
    const hu_even *even;           /* NULL if the gaps of a codebook change too often, or differ by side */
} hu_format;

typedef struct hu_slot {
    void *codes;
    void *scale;
    const hu_format *format;
    int64_t *counts; /* NULL, or two counters: updates due, updates stalled */
    int64_t block;   /* number of elements that share a scale, at most the columns */
    int32_t per;
    uint32_t key[3];
} hu_slot;

typedef struct hu_work {
    void *param;
    const void *grad;
    const float *scalars;
    int64_t *skipped; /* counter of skipped elements, incremented */
    int64_t rows, cols, tile;
    uint64_t first_element;
    int32_t program, slots;        /* number of the generated code, -1 for the vector machine */
    int32_t param_kind, grad_kind; /* HU_FLOAT32, HU_BFLOAT16 or HU_FLOAT16 */
    int32_t param_stochastic, maximize;
    uint32_t param_key[3];
    int32_t flags;        /* HU_READS_PARAM, HU_WRITES_PARAM */
    int64_t row_stride;   /* elements of the whole tensor from row to row; random words depend on the index */
    int64_t units_before; /* filled in by hu_step */
    const int32_t *code;  /* instructions of the vector machine */
    const hu_slot *slot;
    double *sums; /* NULL, or a measuring program's sums: [terms][stretches], the result first */
    int64_t terms; /* number of sums */
    void *master; /* fp32 weights of a 16-bit parameter, or its remainders of 16 or 8 bits */
    int64_t master_kind;
    const float *row_values, *column_values; /* vectors that a program takes: [row_vectors][rows], and [column_vectors]
                                                [cols + HU_UNIT]; those of rows stand before the scalars */
    int64_t row_vectors, column_vectors;
    double *column_sums; /* for the terms by column: [terms][groups of rows][cols] */
    uint8_t term[HU_MAX_SUMS]; /* flags of each sum: HU_OF_LARGEST, ... */
} hu_work;

/* The code for one instruction set. */
typedef struct hu_isa {
    const char *name;
    int64_t (*units)(const hu_work *work); /* number of parts that threads can do independently */
    void (*run)(const hu_work *work, int64_t first_unit, int64_t last_unit);
    void (*decode)(const hu_slot *slot, int64_t rows, int64_t cols, float *out);
    void (*encode)(const hu_slot *slot, int64_t rows, int64_t cols, uint64_t first_element, int64_t row_stride,
                   const float *in);
    int (*find)(uint64_t digest);
} hu_isa;

/* The sum of the first `count` numbers, a power of two, halved until one is left: element i is added to i + count / 2. */
static inline double hu_halved(double *x, int count) {
    for (int half = count / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

/* The largest of numbers without sign. NaN is larger than any number. */
static inline double hu_largest(const double *x, int64_t n) {
    int64_t best = 0, bits;
    for (int64_t i = 0; i < n; i++) {
        memcpy(&bits, &x[i], 8);
        bits &= INT64_MAX;
        if (bits > best) best = bits;
    }
    double found;
    memcpy(&found, &best, 8);
    return found;
}

#endif
