/* Random words of 64 consecutive elements: rng.hash_elements. */
#ifndef HASH_H
#define HASH_H

#include "simd.h"

#define GOLDEN 0x9E3779B9u
#define MUL0 0x21F0AAADu
#define MUL1 0xD35A2D97u

typedef struct hu_stream { uint32_t key[2]; uint32_t *words; } hu_stream;

/* What the first round needs for 64 elements whose first index is a multiple of 64: index ^ key ^ (that >> 16) is then
 * base ^ lane, its upper part one number for all of them, and base ^ lane times the multiplier a sum of two numbers. */
typedef struct hash_state { vi lanes; uint32_t base, key1; } hash_state;

INLINE hash_state hash_start(uint64_t element, const uint32_t key[2]) {
    uint32_t x = (uint32_t)element ^ key[0] ^ ((uint32_t)(element >> 32) * GOLDEN);
    uint32_t base = x ^ (x >> 16);
    return (hash_state){(iota() ^ (int32_t)(base % VL)) * (int32_t)MUL0, base / VL, key[1]};
}

INLINE vu hash_tail(vu x) {
    x = (x ^ (x >> 15)) * MUL1;
    return x ^ (x >> 15);
}

/* Words of lanes i * VL to (i + 1) * VL. */
INLINE vu hash_next(const hash_state *h, int i) {
    uint32_t upper = (h->base ^ (uint32_t)i) * (VL * MUL0) + h->key1;
    return hash_tail((vu)(h->lanes + seti((int32_t)upper)));
}

/* The same for any first index. */
static void hash_any(uint64_t element, const uint32_t key[2], uint32_t *words) {
    uint32_t low = (uint32_t)element;
    uint32_t mixed = key[0] ^ ((uint32_t)(element >> 32) * GOLDEN);
    uint32_t carried = key[0] ^ ((uint32_t)((element + HU_UNIT) >> 32) * GOLDEN);
    for (int i = 0; i < HU_UNIT; i += VL) {
        vu index = (vu)iota() + (low + (uint32_t)i);
        vi wrapped = (vi)(index < low); /* the lower half of the index ran over: the upper one is one more */
        vu x = index ^ (vu)((wrapped & (int32_t)carried) | (~wrapped & (int32_t)mixed));
        x = (x ^ (x >> 16)) * MUL0 + key[1];
        sti(words + i, (vi)hash_tail(x));
    }
}

#endif
