/* Random words of consecutive elements: rng.hash_elements. */
#ifndef HASH_H
#define HASH_H

#include "simd.h"

#define GOLDEN 0x9E3779B9u
#define HIGH_WORD 0xBB67AE85u
#define MUL0 0x21F0AAADu
#define MUL1 0xD35A2D97u

typedef struct hu_stream {
    uint32_t key[2];
    uint32_t *words;
} hu_stream;

/* Points of the Weyl sequence: lanes of the first vector. The next VL are VL * GOLDEN further. */
INLINE vu weyl(uint64_t element) { return ((vu)iota() + (uint32_t)element) * GOLDEN; }

/* The first shift of the hash, which no key touches: x ^ (x >> 16) of a point xor a key is this, xor the key's own. */
INLINE vu fold(vu point) { return point ^ (point >> 16); }

INLINE uint32_t folded_key(uint64_t element, const uint32_t key[2]) {
    uint32_t x = key[0] ^ ((uint32_t)(element >> 32) * HIGH_WORD);
    return x ^ (x >> 16);
}

INLINE vu hash(vu folded_point, vu folded_key, vu key1) {
    vu x = (folded_point ^ folded_key) * MUL0 + key1;
    x = (x ^ (x >> 15)) * MUL1;
    return x ^ (x >> 15);
}

/* Whether n elements have one upper half of their index. */
INLINE int one_upper_half(uint64_t element, int n) { return (element + (uint64_t)n - 1) >> 32 == element >> 32; }

/* Words of 64 elements from any index. */
static void hash_unit(uint64_t element, const uint32_t key[2], uint32_t *words) {
    const vi before = seti((int32_t)folded_key(element, key)), after = seti((int32_t)folded_key(element + HU_UNIT, key));
    const int wraps = one_upper_half(element, HU_UNIT) ? HU_UNIT : (int)(-(uint32_t)element);
    for (int i = 0; i < HU_UNIT; i += VL) {
        vi folded = seli(gts(seti(wraps), iota() + i), before, after);
        sti(words + i, (vi)hash(fold(weyl(element + (uint64_t)i)), (vu)folded, (vu)seti((int32_t)key[1])));
    }
}

#endif
