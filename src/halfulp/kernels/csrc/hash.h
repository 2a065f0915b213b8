/* Random words of consecutive elements: rng.hash_elements. */
#ifndef HASH_H
#define HASH_H

#include "simd.h"

typedef struct hu_stream {
    uint32_t key[3];
    uint32_t *words;
} hu_stream;

/* Points of the Weyl sequence for the lanes of the first vector. The points of the next vector are VL * GOLDEN further. */
INLINE vu weyl(uint64_t element) { return ((vu)iota() + (uint32_t)element) * GOLDEN; }

/* The first shift of the hash, without a key: x ^ (x >> 16) for x = point ^ key is fold(point) ^ fold(key). */
INLINE vu fold(vu point) { return point ^ (point >> 16); }

INLINE uint32_t folded_key(uint64_t element, const uint32_t key[3]) {
    uint32_t x = key[0] ^ ((uint32_t)(element >> 32) * HIGH_WORD);
    return x ^ (x >> 16);
}

/* The first round, which streams share if their keys differ only in the multiplier, and the second round. */
INLINE vu first_round(vu folded_point, vu folded_key, vu key1) {
    const vu x = (folded_point ^ folded_key) * MUL0 + key1;
    return x ^ (x >> 15);
}

INLINE vu second_round(vu x, vu multiplier) {
    x = x * multiplier;
    return x ^ (x >> 15);
}

/* Whether the indices of n elements have the same upper half. */
INLINE int one_upper_half(uint64_t element, int n) { return (element + (uint64_t)n - 1) >> 32 == element >> 32; }

/* Random words of 64 elements, starting at any index. */
static void hash_unit(uint64_t element, const uint32_t key[3], uint32_t *words) {
    const vi before = seti((int32_t)folded_key(element, key)), after = seti((int32_t)folded_key(element + HU_UNIT, key));
    const int wraps = one_upper_half(element, HU_UNIT) ? HU_UNIT : (int)(-(uint32_t)element);
    for (int i = 0; i < HU_UNIT; i += VL) {
        vi folded = seli(gts(seti(wraps), iota() + i), before, after);
        const vu x = first_round(fold(weyl(element + (uint64_t)i)), (vu)folded, setu(key[1]));
        sti(words + i, (vi)second_round(x, setu(key[2])));
    }
}

#endif
