/* The functions that Python calls: choice of the instruction set, threads, and the loop over any number of parameters. */
#include "halfulp.h"

#include <pthread.h>
#include <stddef.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#ifndef GRAIN
#define GRAIN 32768 /* elements that a thread takes at a time */
#endif
#define MAX_THREADS 256

extern const hu_isa hu_isa_baseline;
#if defined(__x86_64__) && !defined(HU_WITHOUT_avx2)
extern const hu_isa hu_isa_avx2;
#define HU_AVX2 &hu_isa_avx2
#else
#define HU_AVX2 NULL
#endif
#if defined(__x86_64__) && !defined(HU_WITHOUT_avx512)
extern const hu_isa hu_isa_avx512;
#define HU_AVX512 &hu_isa_avx512
#else
#define HU_AVX512 NULL
#endif
#if defined(__x86_64__) && !defined(HU_WITHOUT_avx512vbmi)
extern const hu_isa hu_isa_avx512vbmi;
#define HU_AVX512VBMI &hu_isa_avx512vbmi
#else
#define HU_AVX512VBMI NULL
#endif

static const hu_isa *chosen = &hu_isa_baseline;

/* The sizes of the structs, to be checked by Python, and the version. */
EXPORT int hu_abi(int64_t sizes[3]) {
    sizes[0] = sizeof(hu_format), sizes[1] = sizeof(hu_slot), sizes[2] = sizeof(hu_work);
    return HU_ABI;
}

/* The hash of the sources of this build (hatch_build.py). */
#ifndef HU_SOURCES
#define HU_SOURCES ""
#endif
EXPORT const char *hu_sources(void) { return HU_SOURCES; }

static const hu_isa *isa_at(int i) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    int vbmi = avx512 && __builtin_cpu_supports("avx512vbmi");
    const hu_isa *all[] = {vbmi ? HU_AVX512VBMI : NULL, avx512 ? HU_AVX512 : NULL, avx2 ? HU_AVX2 : NULL, &hu_isa_baseline};
    for (int k = 0; k < (int)(sizeof all / sizeof *all); k++)
        if (all[k] && i-- == 0) return all[k];
    return NULL;
#else
    return i == 0 ? &hu_isa_baseline : NULL;
#endif
}

/* The name of the i-th instruction set of this machine, fastest first. NULL after the last. */
EXPORT const char *hu_isa_name(int i) {
    const hu_isa *isa = isa_at(i);
    return isa ? isa->name : NULL;
}

/* Selects an instruction set by name, or the fastest for NULL. Returns 0 if this machine has it. */
EXPORT int hu_choose(const char *name) {
    for (int i = 0; isa_at(i); i++)
        if (!name || !strcmp(isa_at(i)->name, name)) {
            chosen = isa_at(i);
            return 0;
        }
    return 1;
}

/* Threads come from torch's OpenMP runtime if there is one, by its GOMP_parallel, so that they do not compete with
   torch's workers. Otherwise plain threads are used. */
typedef void (*parallel_fn)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
static parallel_fn gomp_parallel;

EXPORT void hu_set_parallel(void *function) { gomp_parallel = (parallel_fn)function; }

static void in_parallel(void (*body)(void *), void *job, int threads) {
    if (threads <= 1) {
        body(job);
    } else if (gomp_parallel) {
        gomp_parallel(body, job, (unsigned)threads, 0);
    } else {
        pthread_t started[MAX_THREADS];
        int count = 0;
        for (; count < threads - 1 && count < MAX_THREADS; count++)
            if (pthread_create(&started[count], NULL, (void *(*)(void *))(void *)body, job)) break;
        body(job);
        for (int i = 0; i < count; i++) pthread_join(started[i], NULL);
    }
}

/* Sets rounding and subnormals as the bit contract requires, and restores the thread's mode afterwards. */
#if defined(__x86_64__) || defined(__i386__)
typedef unsigned float_mode;
static float_mode exact_mode(void) {
    const float_mode before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* nearest-even, no flush to zero, no traps */
    return before;
}
static void restore_mode(float_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
typedef uint64_t float_mode;
static float_mode exact_mode(void) {
    float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((float_mode)0));
    return before;
}
static void restore_mode(float_mode before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
typedef int float_mode;
static float_mode exact_mode(void) { return 0; }
static void restore_mode(float_mode before) { (void)before; }
#endif

typedef struct job {
    const hu_work *works;
    int64_t count, units, next, grab;
} job;

static void work_on(void *data) {
    job *j = data;
    const float_mode before = exact_mode();
    int64_t at = 0, unit;
    while ((unit = __atomic_fetch_add(&j->next, j->grab, __ATOMIC_RELAXED)) < j->units) {
        const int64_t last = unit + j->grab < j->units ? unit + j->grab : j->units;
        while (unit < last) {
            while (at + 1 < j->count && j->works[at + 1].units_before <= unit) at++;
            const int64_t end = at + 1 < j->count ? j->works[at + 1].units_before : j->units;
            const int64_t stop = last < end ? last : end, before_it = j->works[at].units_before;
            chosen->run(&j->works[at], unit - before_it, stop - before_it);
            unit = stop;
        }
    }
    restore_mode(before);
}

/* Runs all units of `count` parameters on at most `threads` threads. Returns whether there are any. */
static int in_order(hu_work *works, int64_t count, int threads) {
    int64_t units = 0, elements = 0;
    for (int64_t i = 0; i < count; i++) {
        works[i].units_before = units;
        units += chosen->units(&works[i]);
        elements += works[i].rows * works[i].cols;
    }
    if (!units) return 0;
    const int64_t average = (elements + units - 1) / units, most = (elements + GRAIN - 1) / GRAIN;
    job j = {works, count, units, 0, average >= GRAIN ? 1 : GRAIN / average};
    in_parallel(work_on, &j, most < threads ? (int)most : threads);
    return 1;
}

/* Does one step of `count` parameters. Returns the total number of skipped elements. */
EXPORT int64_t hu_step(hu_work *works, int64_t count, int threads) {
    int64_t skipped = 0;
    if (in_order(works, count, threads))
        for (int64_t i = 0; i < count; i++) skipped += *works[i].skipped;
    return skipped;
}

/* Decoding of a state to `out` or encoding from `in`, one stretch at a time: some rows, or some blocks of a row. */
typedef struct codec_job {
    const hu_slot *slot;
    int64_t rows, cols, stretch, group, next; /* columns and rows of a stretch */
    uint64_t first_element;
    int64_t row_stride;
    float *out;
    const float *in;
} codec_job;

static void codec_on(void *data) {
    codec_job *j = data;
    const float_mode before = exact_mode();
    const hu_format *f = j->slot->format;
    const int64_t a_row = (j->cols + j->stretch - 1) / j->stretch, units = (j->rows + j->group - 1) / j->group * a_row;
    int64_t unit;
    while ((unit = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < units) {
        const int64_t row = unit / a_row * j->group, col = unit % a_row * j->stretch, at = row * j->cols + col;
        const int64_t rows = j->rows - row < j->group ? j->rows - row : j->group;
        const int64_t cols = j->cols - col < j->stretch ? j->cols - col : j->stretch;
        hu_slot part = *j->slot;
        part.codes = (uint8_t *)part.codes + (f->bits == 4 ? row * ((j->cols + 1) / 2) + col / 2 : at * (f->bits / 8));
        if (f->scale != HU_SCALE_NONE && part.per != HU_PER_TENSOR) {
            const int64_t blocks = part.per == HU_PER_ROW ? 1 : (j->cols + part.block - 1) / part.block;
            part.scale = (uint8_t *)part.scale + (row * blocks + col / part.block) * (f->scale == HU_SCALE_FP32 ? 4 : 1);
        }
        if (j->out) chosen->decode(&part, rows, cols, j->out + at);
        else chosen->encode(&part, rows, cols, j->first_element + (uint64_t)(row * j->row_stride + col), j->row_stride, j->in + at);
    }
    restore_mode(before);
}

static void codec_in_parallel(codec_job *j, int threads) {
    if (j->rows == 0 || j->cols == 0) return;
    const int64_t block = j->slot->format->scale == HU_SCALE_NONE ? 2 : j->slot->block;
    j->stretch = (GRAIN + block - 1) / block * block;
    if (j->stretch >= j->cols || j->slot->per != HU_PER_BLOCK) j->stretch = j->cols;
    j->group = j->stretch < j->cols ? 1 : (GRAIN + j->cols - 1) / j->cols;
    if (!j->out && block > j->cols) j->group = j->rows; /* one scale for all */
    const int64_t most = (j->rows * j->cols + GRAIN - 1) / GRAIN;
    in_parallel(codec_on, j, most < threads ? (int)most : threads);
}

/* The number of a program's generated code, or -1. */
EXPORT int hu_find(uint64_t digest) { return chosen->find(digest); }

/* Adds up the sums of stretches into the first of them. */
static void add_stretches(double *x, int64_t count) {
    double stretch[HU_CAP];
    for (int64_t left = count; left > 1; left = (left + HU_CAP - 1) / HU_CAP)
        for (int64_t i = 0; i < left; i += HU_CAP) {
            const int64_t n = left - i < HU_CAP ? left - i : HU_CAP;
            int width = 1;
            while (width < n) width *= 2;
            for (int64_t j = 0; j < width; j++) stretch[j] = j < n ? x[i + j] : 0.0;
            x[i / HU_CAP] = hu_halved(stretch, width);
        }
}

/* Adds up rows into the first of them, in pairs of neighbours, until one row is left. */
static void add_rows(double *x, int64_t rows, int64_t cols) {
    for (; rows > 1; rows = (rows + 1) / 2)
        for (int64_t row = 0; row < rows; row += 2) {
            double *const sum = x + row / 2 * cols, *const a = x + row * cols, *const b = a + cols;
            for (int64_t i = 0; i < cols; i++) sum[i] = row + 1 < rows ? a[i] + b[i] : a[i];
        }
}

static void add_up(hu_work *w) {
    const int64_t a_row = (w->cols + HU_CAP - 1) / HU_CAP, groups = (w->rows + (1 << HU_TREE) - 1) >> HU_TREE;
    int64_t vectors = 0;
    for (int k = 0; k < w->terms; k++) {
        double *x = w->sums + k * w->rows * a_row;
        if (w->term[k] & HU_OF_LARGEST) x[0] = hu_largest(x, w->rows * a_row);
        else if (!(w->term[k] & HU_OF_BY_ROW)) add_stretches(x, w->rows * a_row);
        else
            for (int64_t row = 0; row < w->rows; row++) {
                add_stretches(x + row * a_row, a_row);
                x[row] = x[row * a_row];
            }
        if (w->term[k] & HU_OF_BY_COLUMN) add_rows(w->column_sums + vectors++ * groups * w->cols, groups, w->cols);
    }
}

/* Computes the sums of measuring programs over some parameters. The results are the first number of each sum, or the
 * first `rows` or `cols` numbers. */
EXPORT void hu_measure(hu_work *works, int64_t number, int threads) {
    if (!in_order(works, number, threads)) return;
    for (int64_t i = 0; i < number; i++)
        if (works[i].rows && works[i].cols) add_up(&works[i]);
}

/* Decodes a stored state to fp32, and encodes finite fp32 values to codes and scales. */
EXPORT void hu_decode(const hu_slot *slot, int64_t rows, int64_t cols, float *out, int threads) {
    codec_job j = {.slot = slot, .rows = rows, .cols = cols, .out = out};
    codec_in_parallel(&j, threads);
}

EXPORT void hu_encode(const hu_slot *slot, int64_t rows, int64_t cols, uint64_t first_element, int64_t row_stride,
                      const float *in, int threads) {
    codec_job j = {.slot = slot, .rows = rows, .cols = cols, .first_element = first_element, .row_stride = row_stride, .in = in};
    codec_in_parallel(&j, threads);
}
