/* Does a step of the kernels on another machine: reads memory as tests/elsewhere.py wrote it, and writes what the step
 * made of it. Standard input: numbers of works, threads, formats, formats and lists of slots, and regions; address and bytes
 * of each region and what lies there. The works are the first region, formats and lists of slots those after it; the
 * others are written back in their order. */
#include "halfulp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int64_t hu_step(hu_work *works, int64_t count, int threads);

typedef struct region {
    uint64_t address, bytes;
    char *here;
} region;

static region *regions;
static int64_t count;

/* A pointer into a region there becomes one into the same region here. */
static void move(void *pointer) {
    uint64_t old;
    char *found = NULL;
    memcpy(&old, pointer, 8);
    for (int64_t i = 0; i < count && !found; i++)
        if (old - regions[i].address < regions[i].bytes) found = regions[i].here + (old - regions[i].address);
    memcpy(pointer, &found, 8);
}

int main(void) {
    int64_t head[5];
    if (fread(head, 8, 5, stdin) != 5) return 1;
    count = head[4];
    regions = calloc((size_t)count, sizeof(region));
    for (int64_t i = 0; i < count; i++) {
        if (fread(&regions[i], 8, 2, stdin) != 2) return 2;
        regions[i].here = aligned_alloc(64, (regions[i].bytes + 127) / 64 * 64);
        if (fread(regions[i].here, 1, regions[i].bytes, stdin) != regions[i].bytes) return 3;
    }
    hu_work *works = (hu_work *)regions[0].here;
    for (int64_t i = 0; i < head[0]; i++) {
        move(&works[i].param), move(&works[i].grad), move(&works[i].scalars), move(&works[i].skipped);
        move(&works[i].code), move(&works[i].slot);
        for (int k = 0; k < works[i].slots; k++) {
            hu_slot *s = (hu_slot *)&works[i].slot[k];
            move(&s->codes), move(&s->scale), move(&s->format), move(&s->counts);
        }
    }
    for (int64_t i = 1; i <= head[2]; i++) {
        hu_format *f = (hu_format *)regions[i].here;
        move(&f->values), move(&f->levels), move(&f->middles), move(&f->density);
        move(&f->start), move(&f->base), move(&f->even);
    }
    hu_step(works, head[0], (int)head[1]);
    for (int64_t i = 1 + head[3]; i < count; i++) fwrite(regions[i].here, 1, regions[i].bytes, stdout);
    return 0;
}
