/* A step, piece by piece: decode the states, apply the rule, find the scales, encode. Compiled once for each instruction
 * set, with HU_ISA naming it. kernels/reference.py is the definition; this follows it bit for bit.
 *
 * A piece is part of one row, at most HU_CAP elements, made of whole tiles. A tile that is larger than that is done in
 * two passes: the first finds its largest magnitudes, the second computes everything again and stores it. */
#include "halfulp.h"
#include "simd.h"

#include <float.h>

#include "decode.h"
#include "encode.h"
#include "rules.h"

#define ALIGNED __attribute__((aligned(64)))
#define CONCAT_(a, b) a##b
#define CONCAT(a, b) CONCAT_(a, b)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#define INF_BITS 0x7f800000u

#define PITCH (HU_CAP + 528) /* rows of the scratch begin in different sets of the first-level cache */

typedef struct scratch {
    decode_fn decode[HU_MAX_SLOTS]; /* looked up once for a run of pieces */
    encode_fn encode[HU_MAX_SLOTS];
    float grad[PITCH] ALIGNED, param[PITCH] ALIGNED, new_param[PITCH] ALIGNED;
    float state[HU_MAX_SLOTS][PITCH] ALIGNED;
    uint32_t words[HU_MAX_SLOTS + 1][PITCH] ALIGNED;
    float factors[PITCH] ALIGNED; /* scales of the blocks, or their inverses */
    uint8_t codes[4 * HU_CAP + HU_UNIT] ALIGNED;
    float old[HU_MAX_SLOTS][PITCH] ALIGNED; /* decoded states before the step, where updates are counted */
    vi largest[HU_MAX_SLOTS][HU_CAP / HU_UNIT];
    uint8_t bad[HU_CAP]; /* tiles to leave alone */
} scratch;

/* What a tile of two passes carries from one to the other. */
typedef struct span {
    uint32_t largest[HU_MAX_SLOTS];
    int measured; /* second pass */
} span;

static int64_t blocks_of(const hu_slot *s, int64_t cols) { return s->block ? (cols + s->block - 1) / s->block : 0; }

/* Whether a block is larger than what one pass takes. */
static int wide(const hu_slot *s, int64_t cols) { return s->block > HU_CAP || s->block > cols; }

static int64_t scale_index(const hu_slot *s, int64_t row, int64_t col, int64_t cols) {
    if (s->per == HU_PER_TENSOR) return 0;
    if (s->per == HU_PER_ROW) return row;
    return row * blocks_of(s, cols) + col / s->block;
}

static int64_t code_offset(const hu_format *f, int64_t row, int64_t col, int64_t cols) {
    if (f->bits == 4) return row * ((cols + 1) / 2) + col / 2;
    return (row * cols + col) * (f->bits / 8);
}

static int64_t code_bytes(const hu_format *f, int64_t n) { return f->bits == 4 ? (n + 1) / 2 : n * (f->bits / 8); }

static float scale_value(const hu_format *f, const void *scale, int64_t i) {
    if (f->scale == HU_SCALE_FP32) return ((const float *)scale)[i];
    return bits_float((int32_t)((uint32_t)((const uint8_t *)scale)[i] << 23));
}

/* Scaling.from_absmax: stores the scale of one block, returns its inverse. */
static float put_scale(const hu_format *f, uint32_t absmax, void *scale, int64_t i) {
    if (f->scale == HU_SCALE_FP32) {
        float value = bits_float((int32_t)absmax) / f->reach;
        if (value > FLT_MAX) value = FLT_MAX;
        if (value < 0x1p-126f) value = 0.0f;
        ((float *)scale)[i] = value;
        return value > 0.0f ? 1.0f / value : 0.0f;
    }
    int32_t code = (((int32_t)absmax + f->scale_round) >> 23) - f->scale_shift;
    code = absmax == 0 ? 0 : code < 1 ? 1 : code > 253 ? 253 : code;
    ((uint8_t *)scale)[i] = (uint8_t)code;
    return bits_float(code ? (254 - code) << 23 : 0);
}

/* The same for four blocks; the inverses go to `inverses`. */
static void put_scales4(const hu_format *f, v4 absmax, void *scale, int64_t i, float *inverses) {
    if (f->scale == HU_SCALE_FP32) {
        v4 bits = (v4)((v4f)absmax / f->reach);
        v4f value = (v4f)((bits & (bits < 0x7f800000)) | (0x7f7fffff & (bits >= 0x7f800000))); /* at most FLT_MAX */
        value = (v4f)((v4)value & (value >= 0x1p-126f));
        v4f inverse = (v4f)((v4)(1.0f / value) & (value > 0.0f));
        memcpy((float *)scale + i, &value, sizeof value);
        memcpy(inverses, &inverse, sizeof inverse);
        return;
    }
    v4 code = ((absmax + f->scale_round) >> 23) - f->scale_shift;
    code = (code & (code > 1)) | (1 & (code <= 1));
    code = (code & (code < 253)) | (253 & (code >= 253));
    code = code & (absmax != 0);
    v4 inverse = ((254 - code) << 23) & (code != 0);
    memcpy(inverses, &inverse, sizeof inverse);
    for (int j = 0; j < 4; j++) ((uint8_t *)scale)[i + j] = (uint8_t)code[j];
}

/* Blocks that the loops of decode.h and encode.h cannot follow are multiplied into the values beforehand. */
static int follows(int64_t block, int n) { return block >= n || block % HU_UNIT == 0; }

static void multiply_blocks(float *x, const float *factors, int block, int n) {
    for (int start = 0; start < n; start += block) {
        float factor = *factors++;
        int end = n - start < block ? n : start + block;
        for (int i = start; i < end; i++) x[i] *= factor;
    }
}

static void read_slot(const hu_slot *s, decode_fn decode, int64_t row, int64_t col, int64_t cols, int n, scratch *t, float *out) {
    const hu_format *f = s->format;
    const uint8_t *codes = (const uint8_t *)s->codes + code_offset(f, row, col, cols);
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    const int64_t length = code_bytes(f, n);
    for (int64_t i = 2 * length; i < 3 * length; i += 64) __builtin_prefetch(codes + i, 1); /* the piece after the next */
    if (padded != n) {
        size_t bytes = (size_t)length;
        memcpy(t->codes, codes, bytes);
        memset(t->codes + bytes, 0, (size_t)code_bytes(f, padded) - bytes);
        codes = t->codes;
    }
    const int block = s->block && s->block < n ? (int)s->block : padded;
    if (f->scale != HU_SCALE_NONE) {
        int64_t first = scale_index(s, row, col, cols);
        for (int i = 0; i * (int64_t)block < n; i++) t->factors[i] = scale_value(f, s->scale, first + i);
    }
    if (follows(block, padded)) {
        decode(f, codes, t->factors, block, out, padded);
    } else {
        const float one = 1.0f;
        decode(f, codes, &one, padded, out, padded);
        multiply_blocks(out, t->factors, block, n);
    }
    for (int i = n; i < padded; i++) out[i] = 0.0f;
}

/* Largest magnitude of elements [start, end) of a piece. */
static uint32_t largest_of(const float *x, const vi *units, int start, int end) {
    uint32_t best = 0;
    if (start % HU_UNIT == 0 && units) {
        vi all = seti(0);
        for (int u = start / HU_UNIT; u * HU_UNIT < end; u++) all = maxs(all, units[u]);
        return reduce_max(all);
    }
    for (int i = start; i < end; i++) {
        uint32_t bits = (uint32_t)float_bits(x[i]) & 0x7fffffffu;
        best = bits > best ? bits : best;
    }
    return best;
}

/* Counts the updates that are due; the old values of all others become NaN, which nothing equals. */
static void count_due(const hu_slot *s, const float *new_values, float *old, int n) {
    int due = 0;
    for (int i = 0; i < n; i += VL) {
        vm moved = nef(ldf(new_values + i), ldf(old + i));
        due += countm(moved);
        stf(old + i, self(moved, ldf(old + i), setf(NAN)));
    }
    __atomic_fetch_add(&s->counts[0], due, __ATOMIC_RELAXED);
}

static void count_stalled(const hu_slot *s, const float *stored, const float *old, int n) {
    int changed = 0;
    for (int i = 0; i < n; i += VL) changed += countm(nef(ldf(stored + i), ldf(old + i)));
    __atomic_fetch_add(&s->counts[1], n - changed, __ATOMIC_RELAXED);
}

/* Encode the new values of a slot, x (destroyed where blocks are odd), and store those of the tiles that are not bad. */
static void store_slot(const hu_work *w, int k, int64_t row, int64_t col, int n, scratch *t, span *big, int any_bad,
                       const uint32_t *words) {
    const hu_slot *s = &w->slot[k];
    const hu_format *f = s->format;
    float *x = t->state[k];
    uint8_t *codes = (uint8_t *)s->codes + code_offset(f, row, col, w->cols);
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    const int tile = w->tile < n ? (int)w->tile : n;
    const int block = s->block && s->block < n ? (int)s->block : padded;
    float spare;
    if (any_bad)
        for (int i = 0; i < n; i++)
            if (t->bad[i / tile]) x[i] = t->old[k][i] = 0.0f;
    if (s->counts) count_due(s, x, t->old[k], padded);
    if (f->scale != HU_SCALE_NONE) {
        const int64_t first = scale_index(s, row, col, w->cols);
        const vi *units = any_bad ? NULL : t->largest[k];
        const int aligned = follows(block, padded);
        int i = 0, start = 0;
        if (aligned && units && block % HU_UNIT == 0 && !(big && wide(s, w->cols)))
            for (const int a_block = block / HU_UNIT; start + 4 * block <= n; i += 4, start += 4 * block) {
                vi largest[4];
                for (int j = 0; j < 4; j++) {
                    const vi *u = units + start / HU_UNIT + j * a_block;
                    largest[j] = u[0];
                    for (int k2 = 1; k2 < a_block; k2++) largest[j] = maxs(largest[j], u[k2]);
                }
                put_scales4(f, reduce4(largest[0], largest[1], largest[2], largest[3]), s->scale, first + i, t->factors + i);
            }
        for (; start < n; i++, start += block) {
            int64_t at = first + i;
            void *scale = s->scale;
            uint32_t absmax;
            if (big && wide(s, w->cols)) {
                absmax = big->largest[k];
                scale = &spare; /* kept until every piece of the tile has been read */
                at = 0;
            } else {
                int end = start + block < n ? start + block : n;
                absmax = largest_of(x, aligned ? units : NULL, start, end);
                if (any_bad && t->bad[start / tile]) scale = &spare, at = 0;
            }
            t->factors[i] = put_scale(f, absmax, scale, at);
        }
    }
    const int direct = !any_bad && padded == n;
    uint8_t *target = direct ? codes : t->codes;
    if (follows(block, padded)) {
        t->encode[k](f, x, t->factors, block, words, target, padded);
    } else {
        const float one = 1.0f;
        multiply_blocks(x, t->factors, block, n);
        t->encode[k](f, x, &one, padded, words, target, padded);
    }
    if (direct) return;
    if (f->bits == 4 && n % 2) target[n / 2] &= 15; /* the last byte of an odd row is shared with a zero */
    if (!any_bad) {
        memcpy(codes, target, (size_t)code_bytes(f, n));
        return;
    }
    for (int start = 0; start < n; start += tile)
        if (!t->bad[start / tile]) {
            int count = n - start < tile ? n - start : tile;
            int64_t offset = code_bytes(f, start);
            memcpy(codes + offset, target + offset, (size_t)code_bytes(f, count));
        }
}

static void write_slot(const hu_work *w, int k, int64_t row, int64_t col, int n, scratch *t, span *big, int any_bad,
                       const uint32_t *words) {
    store_slot(w, k, row, col, n, t, big, any_bad, words);
    if (!w->slot[k].counts) return;
    hu_slot s = w->slot[k];
    float scale;
    if (big && wide(&s, w->cols)) { /* its scale is stored last of all */
        put_scale(s.format, big->largest[k], &scale, 0);
        s.scale = &scale, s.per = HU_PER_TENSOR;
    }
    read_slot(&s, t->decode[k], row, col, w->cols, n, t, t->state[k]);
    count_stalled(&s, t->state[k], t->old[k], (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT);
}

/* Parameters and gradients of any dtype as fp32. */
static const float *read_values(const void *from, int kind, int64_t first, int n, int negate, float *to) {
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    if (kind == HU_FLOAT32) {
        const float *x = (const float *)from + first;
        if (padded == n && !negate) return x;
        memcpy(to, x, 4 * (size_t)n);
    } else {
        const uint16_t *x = (const uint16_t *)from + first;
        int i = 0;
        for (; i + VL <= n; i += VL)
            stf(to + i, kind == HU_BFLOAT16 ? asf(ldu16(x + i) << 16) : half_to_float(ldu16(x + i)));
        uint16_t rest[VL] = {0};
        memcpy(rest, x + i, 2 * (size_t)(n - i));
        if (i < n) stf(to + i, kind == HU_BFLOAT16 ? asf(ldu16(rest) << 16) : half_to_float(ldu16(rest)));
    }
    for (int i = n; i < padded; i++) to[i] = 0.0f;
    if (negate)
        for (int i = 0; i < padded; i += VL) stf(to + i, -ldf(to + i));
    return to;
}

/* Rounding of a parameter to 16 bits: torch's own cast to nearest (infinities and NaN included), or stochastic. */
INLINE vi round_bfloat16(vf x, vu word, int stochastic) {
    vi bits = asi(x), magnitude = bits & 0x7fffffff, sign = (vi)((vu)bits >> 16) & 0x8000;
    vi code = bfloat16_code(magnitude, word, 0);
    if (stochastic) {
        vi random = bfloat16_code(mins(magnitude, seti(0x7f7f0000)), word, 1);
        code = seli(gts(seti((int32_t)INF_BITS), magnitude), random, code);
    }
    return seli(gts(magnitude, seti((int32_t)INF_BITS)), seti(0x7fc0), code) | sign;
}

INLINE vi round_float16(vf x, vu word, int stochastic) {
    static const hu_format half = {.mantissa_bits = 10, .emin_field = 113, .fraction = 19, .max_bits = 0x477fe000};
    vi bits = asi(x), magnitude = bits & 0x7fffffff, sign = (vi)((vu)bits >> 16) & 0x8000;
    vi limit = mins(magnitude, seti(0x477ff000)); /* 65520: rounds to infinity */
    vi code = grid_code(&half, limit, word, 0);
    if (stochastic) {
        vi random = grid_code(&half, mins(magnitude, seti(half.max_bits)), word, 1);
        code = seli(gts(seti((int32_t)INF_BITS), magnitude), random, code);
    }
    return seli(gts(magnitude, seti((int32_t)INF_BITS)), seti(0x7e00), code) | sign;
}

/* Whether the rule writes the new parameters straight to where they belong. */
static int in_place(const hu_work *w, int n) { return w->param_kind == HU_FLOAT32 && n % HU_UNIT == 0; }

static void write_param(const hu_work *w, int64_t first, int n, scratch *t, int any_bad, const uint32_t *words) {
    const int tile = w->tile < n ? (int)w->tile : n, kind = w->param_kind;
    const int bytes = kind == HU_FLOAT32 ? 4 : 2, padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    const int placed = in_place(w, n), direct = !any_bad && padded == n;
    uint8_t *param = (uint8_t *)w->param + first * bytes;
    const uint8_t *from = (const uint8_t *)(placed ? t->param : t->new_param);
    if (kind != HU_FLOAT32) {
        uint16_t *to = direct ? (uint16_t *)param : (uint16_t *)t->codes;
        const int stochastic = w->param_stochastic;
        for (int i = 0; i < padded; i += VL) {
            vu word = stochastic ? (vu)ldi(words + i) : (vu)seti(0);
            vf x = ldf(t->new_param + i);
            stu16(to + i, kind == HU_BFLOAT16 ? round_bfloat16(x, word, stochastic) : round_float16(x, word, stochastic));
        }
        from = (const uint8_t *)to;
    }
    if (!any_bad) {
        if (!placed && !(direct && kind != HU_FLOAT32)) memcpy(param, from, (size_t)(n * bytes));
        return;
    }
    for (int start = 0; start < n; start += tile)
        if (t->bad[start / tile] == placed) { /* put the old values back, or the new ones in */
            int count = n - start < tile ? n - start : tile;
            memcpy(param + start * bytes, from + start * bytes, (size_t)(count * bytes));
        }
}

/* Mark the tiles of a piece in which the gradient or a new state is not finite; returns the elements in them. */
static int find_bad(const hu_work *w, const hu_piece *piece, int n, scratch *t) {
    const int tile = w->tile < n ? (int)w->tile : n;
    int elements = 0;
    for (int start = 0; start < n; start += tile) {
        int end = n - start < tile ? n : start + tile;
        uint32_t worst = largest_of(piece->grad, NULL, start, end);
        for (int k = 0; k < w->slots; k++) {
            uint32_t of_state = largest_of(t->state[k], NULL, start, end);
            worst = of_state > worst ? of_state : worst;
        }
        t->bad[start / tile] = worst >= INF_BITS;
        if (worst >= INF_BITS) elements += end - start;
    }
    return elements;
}

/* Returns whether a tile of two passes is to be left alone (first pass). */
static int do_piece(const hu_work *w, int64_t row, int64_t col, int n, scratch *t, span *big) {
    const int64_t first = row * w->cols + col;
    hu_piece piece;
    vi worst;
    uint32_t *words[HU_MAX_SLOTS + 1] = {0};
    const int measure = big && !big->measured;
    piece.n = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    piece.element = w->first_element + (uint64_t)(row * w->row_stride + col);
    piece.c = w->scalars;
    piece.worst = &worst;
    piece.streams = 0;
    for (int k = 0; k < w->slots; k++) {
        const hu_slot *s = &w->slot[k];
        piece.state[k] = t->state[k];
        piece.largest[k] = t->largest[k];
        read_slot(s, t->decode[k], row, col, w->cols, n, t, t->state[k]);
        if (s->counts && !measure) memcpy(t->old[k], t->state[k], 4 * (size_t)piece.n);
        if (s->format->stochastic && !measure) {
            hu_stream *stream = &piece.stream[piece.streams++];
            memcpy(stream->key, s->key, sizeof stream->key);
            stream->words = words[k] = t->words[k];
        }
    }
    if (w->param_stochastic && !measure) {
        hu_stream *stream = &piece.stream[piece.streams++];
        memcpy(stream->key, w->param_key, sizeof stream->key);
        stream->words = words[HU_MAX_SLOTS] = t->words[HU_MAX_SLOTS];
    }
    piece.grad = read_values(w->grad, w->grad_kind, first, n, w->maximize, t->grad);
    piece.param = w->rule == HU_EMA ? piece.grad : read_values(w->param, w->param_kind, first, n, 0, t->param);
    piece.new_param = in_place(w, n) && !measure ? (float *)w->param + first : t->new_param;
    piece.old_param = t->param;
    rule_of(w->rule, w->slots, piece.streams)(&piece);
    const uint32_t all = reduce_max(worst);
    if (measure) {
        for (int k = 0; k < w->slots; k++) {
            uint32_t of_state = largest_of(t->state[k], t->largest[k], 0, n);
            if (of_state > big->largest[k]) big->largest[k] = of_state;
        }
        return all >= INF_BITS;
    }
    int any_bad = 0;
    if (all >= INF_BITS) {
        any_bad = find_bad(w, &piece, n, t);
        if (any_bad) __atomic_fetch_add(w->skipped, any_bad, __ATOMIC_RELAXED);
    }
    for (int k = 0; k < w->slots; k++) write_slot(w, k, row, col, n, t, big, any_bad, words[k]);
    if (w->rule < HU_EMA) write_param(w, first, n, t, any_bad, words[HU_MAX_SLOTS]);
    return 0;
}

/* Elements of a piece: whole tiles, HU_GROUP where the tile allows. */
static int piece_length(const hu_work *w) {
    int64_t tile = w->tile;
    if (tile > HU_CAP || tile > w->cols) { /* pieces of a large tile follow the small blocks */
        tile = 1;
        for (int k = 0; k < w->slots; k++) {
            int64_t a = tile, b = w->slot[k].block;
            if (!b || wide(&w->slot[k], w->cols)) continue;
            while (b) { int64_t r = a % b; a = b, b = r; }
            tile = tile / a * w->slot[k].block;
        }
    }
    return (int)(tile >= HU_GROUP ? tile : HU_GROUP / tile * tile);
}

static void do_big_tile(const hu_work *w, int64_t row, int64_t col, int64_t rows, int64_t end, scratch *t) {
    const int length = piece_length(w);
    span big = {{0, 0}, 0};
    int bad = 0;
    for (; big.measured < 2 && !bad; big.measured++)
        for (int64_t r = row; r < row + rows; r++)
            for (int64_t c = col; c < end; c += length)
                bad |= do_piece(w, r, c, (int)(end - c < length ? end - c : length), t, &big);
    if (bad) {
        __atomic_fetch_add(w->skipped, rows * (end - col), __ATOMIC_RELAXED);
        return;
    }
    for (int k = 0; k < w->slots; k++)
        if (wide(&w->slot[k], w->cols))
            put_scale(w->slot[k].format, big.largest[k], w->slot[k].scale, scale_index(&w->slot[k], row, col, w->cols));
}

/* Elements of a row that a unit of work covers: a piece, or a tile of two passes. */
static int64_t stretch_of(const hu_work *w) { return w->tile > HU_CAP ? w->tile : piece_length(w); }

static int64_t units(const hu_work *w) {
    if (w->rows == 0 || w->cols == 0) return 0;
    if (w->tile > w->cols) return 1; /* the tensor is one tile */
    return w->rows * ((w->cols + stretch_of(w) - 1) / stretch_of(w));
}

static void run(const hu_work *w, int64_t unit, int64_t last) {
    scratch t;
    for (int k = 0; k < w->slots; k++)
        t.decode[k] = decoder(w->slot[k].format), t.encode[k] = encoder(w->slot[k].format);
    if (w->tile > w->cols) {
        do_big_tile(w, 0, 0, w->rows, w->cols, &t);
        return;
    }
    const int64_t stretch = stretch_of(w), a_row = (w->cols + stretch - 1) / stretch;
    for (; unit < last; unit++) {
        int64_t row = unit / a_row, col = unit % a_row * stretch;
        int64_t end = w->cols - col < stretch ? w->cols : col + stretch;
        if (w->tile > HU_CAP) do_big_tile(w, row, col, 1, end, &t);
        else do_piece(w, row, col, (int)(end - col), &t, NULL);
    }
}

/* The codec alone: a whole state to fp32 and back. */
static void decode_all(const hu_slot *s, int64_t rows, int64_t cols, float *out) {
    scratch t;
    const decode_fn decode = decoder(s->format);
    const int length = s->block && s->block <= HU_CAP ? (int)(HU_CAP / s->block * s->block) : HU_CAP;
    const int64_t edge = s->block && s->block < cols ? s->block : cols; /* pieces end where a large block does */
    for (int64_t row = 0; row < rows; row++)
        for (int64_t col = 0, n; col < cols; col += n) {
            n = cols - col < length ? cols - col : length;
            if (edge > HU_CAP && n > edge - col % edge) n = edge - col % edge;
            read_slot(s, decode, row, col, cols, (int)n, &t, t.state[0]);
            memcpy(out + row * cols + col, t.state[0], 4 * (size_t)n);
        }
}

static void encode_piece(const hu_work *w, int64_t row, int64_t col, int n, const float *in, scratch *t, span *big) {
    const int padded = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    const int64_t first = row * w->cols + col;
    float *x = t->state[0];
    memcpy(x, in + first, 4 * (size_t)n);
    for (int i = n; i < padded; i++) x[i] = 0.0f;
    for (int u = 0; u < padded; u += HU_UNIT) {
        vi largest = seti(0);
        for (int j = 0; j < HU_UNIT; j += VL) largest = maxs(largest, absi(ldf(x + u + j)));
        t->largest[0][u / HU_UNIT] = largest;
        if (w->slot[0].format->stochastic)
            hash_unit(w->first_element + (uint64_t)(row * w->row_stride + col + u), w->slot[0].key, t->words[0] + u);
    }
    if (big && !big->measured) {
        uint32_t largest = largest_of(x, t->largest[0], 0, n);
        if (largest > big->largest[0]) big->largest[0] = largest;
    } else {
        write_slot(w, 0, row, col, n, t, big, 0, t->words[0]);
    }
}

static void encode_all(const hu_slot *s, int64_t rows, int64_t cols, uint64_t first_element, int64_t row_stride,
                       const float *in) {
    scratch t;
    hu_work w = {.rows = rows, .cols = cols, .tile = HU_CAP, .first_element = first_element, .row_stride = row_stride,
                 .slots = 1, .slot = {*s}};
    const int large = wide(s, cols), length = !s->block || large ? HU_CAP : (int)(HU_CAP / s->block * s->block);
    t.encode[0] = encoder(s->format);
    const int64_t rows_a_block = s->block > cols ? rows : 1, edge = large && s->block < cols ? s->block : cols;
    for (int64_t row = 0; row < rows; row += rows_a_block)
        for (int64_t col = 0; col < cols; col += edge) {
            const int64_t end = cols - col < edge ? cols : col + edge;
            span big = {{0, 0}, 0};
            for (big.measured = !large; big.measured < 2; big.measured++)
                for (int64_t r = row; r < row + rows_a_block; r++)
                    for (int64_t c = col; c < end; c += length)
                        encode_piece(&w, r, c, (int)(end - c < length ? end - c : length), in, &t, large ? &big : NULL);
            if (large) put_scale(s->format, big.largest[0], s->scale, scale_index(s, row, col, cols));
        }
}

const hu_isa CONCAT(hu_isa_, HU_ISA) = {TEXT(HU_ISA), units, run, decode_all, encode_all};
