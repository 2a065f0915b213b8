/* Random words of 64 consecutive elements: rng.hash_elements. */
#ifndef HASH_H
#define HASH_H

#include "simd.h"

#define GOLDEN 0x9E3779B9u
#define HIGH_WORD 0xBB67AE85u
#define MUL0 0x21F0AAADu
#define MUL1 0xD35A2D97u

typedef struct hu_stream { uint32_t key[2]; uint32_t *words; } hu_stream;

/* 64 elements whose first index is a multiple of 64: points of the Weyl sequence, an addition apart, and what is xored
 * to all of them (the upper half of the index cannot change among them). */
typedef struct hash_state { vu points; uint32_t mixed, key1; } hash_state;

INLINE hash_state hash_start(uint64_t element, const uint32_t key[2]) {
    uint32_t mixed = key[0] ^ ((uint32_t)(element >> 32) * HIGH_WORD);
    return (hash_state){(vu)iota() * GOLDEN + (uint32_t)element * GOLDEN, mixed, key[1]};
}

INLINE vu hash_rounds(vu x, uint32_t key1) {
    x = (x ^ (x >> 16)) * MUL0 + key1;
    x = (x ^ (x >> 15)) * MUL1;
    return x ^ (x >> 15);
}

/* Words of lanes i * VL to (i + 1) * VL. */
INLINE vu hash_next(const hash_state *h, int i) {
    return hash_rounds((h->points + (uint32_t)i * (VL * GOLDEN)) ^ h->mixed, h->key1);
}

/* The same for any first index. */
static void hash_any(uint64_t element, const uint32_t key[2], uint32_t *words) {
    uint32_t low = (uint32_t)element;
    uint32_t mixed = key[0] ^ ((uint32_t)(element >> 32) * HIGH_WORD);
    uint32_t carried = key[0] ^ ((uint32_t)((element + HU_UNIT) >> 32) * HIGH_WORD);
    for (int i = 0; i < HU_UNIT; i += VL) {
        vu index = (vu)iota() + (low + (uint32_t)i);
        vi wrapped = (vi)(index < low); /* the lower half of the index ran over: the upper one is one more */
        vu x = index * GOLDEN ^ (vu)((wrapped & (int32_t)carried) | (~wrapped & (int32_t)mixed));
        sti(words + i, (vi)hash_rounds(x, key[1]));
    }
}

#endif
