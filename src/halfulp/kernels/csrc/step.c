/* A step, piece by piece: decode the states, apply the rule, find the scales, encode. Compiled once for each
   instruction set, named by HU_ISA. kernels/reference.py is the definition, which this reproduces bit for bit. A piece
   is a part of one row with at most HU_CAP elements, made of whole tiles. A larger tile takes two passes. The first
   finds its largest magnitudes, and the second computes everything again and stores it. */
#include "halfulp.h"
#include "machine.h"
#include "params.h"
#include "slots.h"

#define CONCAT_(a, b) a##b
#define CONCAT(a, b) CONCAT_(a, b)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#define PART(k) CONCAT(CONCAT(hu_part_, HU_ISA), _##k)
extern const hu_part PART(0), PART(1), PART(2), PART(3);
static const hu_part *const parts[HU_PARTS] = {&PART(0), &PART(1), &PART(2), &PART(3)};

/* The number of a program's generated code, or -1. */
static int find(uint64_t digest) {
    for (int part = 0; part < HU_PARTS; part++)
        for (int k = 0; k < parts[part]->count; k++)
            if (parts[part]->programs[k].digest == digest) return part << 16 | k;
    return -1;
}

static program_fn program_of(const hu_work *w) {
    return w->program < 0 ? run_machine : parts[w->program >> 16]->programs[w->program & 0xffff].run;
}

/* Marks the tiles of a piece with a non-finite gradient or new state. Returns the number of elements in them. */
static int find_bad(const hu_work *w, int64_t first, int n, scratch *t) {
    const float *const grad = read_values(w->grad, w->grad_kind, first, n, w->maximize, t->grad);
    const int tile = w->tile < n ? (int)w->tile : n;
    int elements = 0;
    for (int start = 0; start < n; start += tile) {
        int end = n - start < tile ? n : start + tile;
        uint32_t worst = largest_of(grad, NULL, start, end);
        for (int k = 0; k < w->slots; k++) {
            uint32_t of_state = largest_of(t->state[k], NULL, start, end);
            worst = of_state > worst ? of_state : worst;
        }
        t->bad[start / tile] = worst >= INF_BITS;
        if (worst >= INF_BITS) elements += end - start;
    }
    return elements;
}

/* Clears the results for the padding elements beyond n. */
static void trim(const hu_piece *piece, int slots, int n) {
    const int last = n / HU_UNIT;
    vi worst = seti(0);
    for (int k = 0; k < slots; k++) {
        vi largest = seti(0);
        for (int i = n; i < piece->n; i++) piece->state[k][i] = 0.0f;
        for (int i = last * HU_UNIT; i < piece->n; i += VL) largest = maxs(largest, absi(ldf(piece->state[k] + i)));
        piece->largest[k][last] = largest;
        for (int u = 0; u <= last; u++) worst = maxs(worst, piece->largest[k][u]);
    }
    for (int i = 0; i < piece->n; i += VL) worst = maxs(worst, absi(ldf(piece->grad.fp32 + i)));
    *piece->worst = worst;
}

/* Sets the uniform values and vectors of a piece. */
static void give_values(const hu_work *w, int64_t row, int64_t col, scratch *t, hu_piece *piece) {
    piece->c = w->scalars, piece->code = w->code;
    if (w->row_vectors) {
        memcpy(t->c, w->scalars, sizeof t->c);
        for (int k = 0; k < w->row_vectors; k++) t->c[k] = w->row_values[k * w->rows + row];
        piece->c = t->c;
    }
    for (int k = 0; k < w->column_vectors; k++) piece->column[k] = w->column_values + k * (w->cols + HU_UNIT) + col;
}

/* Prefetches one part of the next piece's gradient. */
static void prefetch_grad(const hu_work *w, int64_t first, int n, int part, int parts) {
    const int bytes = w->grad_kind == HU_FLOAT32 ? 4 : 2;
    const uint8_t *const next = (const uint8_t *)w->grad + (first + n) * bytes;
    for (int i = n * bytes * part / parts; i < n * bytes * (part + 1) / parts; i += 64) __builtin_prefetch(next + i);
}

/* Returns whether a tile of two passes must be skipped (first pass). */
static int do_piece(const hu_work *w, int64_t row, int64_t col, int n, scratch *t, span *big) {
    const int64_t first = row * w->cols + col;
    hu_piece piece;
    vi worst;
    uint32_t *words[HU_MAX_SLOTS + 1] = {0};
    const int measure = big && !big->measured;
    piece.n = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT;
    piece.element = w->first_element + (uint64_t)(row * w->row_stride + col);
    give_values(w, row, col, t, &piece);
    piece.worst = &worst;
    piece.wide = 0;
    piece.streams = 0;
    for (int k = 0; k < w->slots; k++) {
        const hu_slot *s = &w->slot[k];
        if (s->format->bits <= 8) continue;
        piece.codes[piece.wide] = (const uint8_t *)s->codes + code_offset(s->format, row, col, w->cols);
        piece.unit_bytes[piece.wide++] = (int)code_bytes(s->format, HU_UNIT);
    }
    for (int k = 0; k < w->slots; k++) {
        const hu_slot *s = &w->slot[k];
        piece.state[k] = t->state[k];
        piece.largest[k] = t->largest[k];
        if (s->format->bits <= 8) prefetch_codes(s, row, col, w->cols, n);
        if (piece.wide) prefetch_grad(w, first, n, k, 2 * w->slots);
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
    piece.grad = grad_of(w, first, n, t->grad);
    piece.param = !(w->flags & HU_READS_PARAM) ? piece.grad : param_of(w, first, n, t->param);
    piece.new_param = in_place(w, n) && !measure ? fp32_weights(w) + first : t->new_param;
    piece.old_param = t->param;
    t->run(&piece);
    if (piece.n != n) trim(&piece, w->slots, n);
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
        any_bad = find_bad(w, first, n, t);
        if (any_bad) __atomic_fetch_add(w->skipped, any_bad, __ATOMIC_RELAXED);
    }
    for (int k = 0; k < w->slots; k++) {
        if (piece.wide) prefetch_grad(w, first, n, w->slots + k, 2 * w->slots);
        write_slot(w, k, row, col, n, t, big, any_bad, words[k]);
    }
    if (w->flags & HU_WRITES_PARAM) write_param(w, first, n, t, any_bad, words[HU_MAX_SLOTS]);
    return 0;
}

/* The number of elements of a piece: whole tiles, HU_GROUP if the tile allows. */
static int piece_length(const hu_work *w) {
    int64_t tile = w->tile;
    if (tile > HU_CAP || tile > w->cols) { /* pieces of a large tile are made of its small blocks */
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
    span big = {{0}, 0};
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

/* The number of elements of a row in a unit of work: a piece, or a tile of two passes. */
static int64_t stretch_of(const hu_work *w) { return w->tile > HU_CAP ? w->tile : piece_length(w); }

/* The number of groups of rows. One thread computes the column sums of a group. */
static int64_t groups(const hu_work *w) { return (w->rows + (1 << HU_TREE) - 1) >> HU_TREE; }

/* The number of terms with sums of columns. */
static int by_column(const hu_work *w) {
    int found = 0;
    for (int k = 0; k < w->terms; k++) found += (w->term[k] & HU_OF_BY_COLUMN) != 0;
    return found;
}

static int64_t units(const hu_work *w) {
    if (w->rows == 0 || w->cols == 0) return 0;
    if (w->sums) return (by_column(w) ? groups(w) : w->rows) * ((w->cols + HU_CAP - 1) / HU_CAP);
    if (w->tile > w->cols) return 1; /* the tensor is one tile */
    return w->rows * ((w->cols + stretch_of(w) - 1) / stretch_of(w));
}

/* Reads any stretch of a row of a state, at block boundaries or not. */
static void read_stretch(const hu_slot *s, decode_fn decode, int64_t row, int64_t col, int64_t cols, int n, scratch *t, float *out) {
    while (n > 0) {
        const int64_t inside = s->block ? col % s->block : 0, left = s->block ? s->block - inside : n;
        const int odd = s->format->bits == 4 && col % 2, first = inside || odd ? left < n ? (int)left : n : n;
        prefetch_codes(s, row, col - odd, cols, first + odd);
        read_slot(s, decode, row, col - odd, cols, first + odd, t, out);
        if (odd) memmove(out, out + 1, 4 * (size_t)first);
        n -= first, col += first, out += first;
    }
}

/* Adds up the columns of at most HU_FOLD rows, in pairs of neighbours, until one row is left. */
#define FOLD(name, type) \
    static void name(const type (*x)[PITCH], int rows, int n, double *restrict sum) { \
        if (rows == HU_FOLD) { \
            for (int i = 0; i < n; i++) { \
                const double a = (double)x[0][i] + (double)x[1][i], b = (double)x[2][i] + (double)x[3][i]; \
                const double c = (double)x[4][i] + (double)x[5][i], d = (double)x[6][i] + (double)x[7][i]; \
                sum[i] = (a + b) + (c + d); \
            } \
            return; \
        } \
        for (int i = 0; i < n; i++) { \
            double some[HU_FOLD]; \
            for (int row = 0; row < rows; row++) some[row] = (double)x[row][i]; \
            for (int left = rows; left > 1; left = (left + 1) / 2) { \
                for (int k = 0; k < left / 2; k++) some[k] = some[2 * k] + some[2 * k + 1]; \
                if (left & 1) some[left / 2] = some[left - 1]; \
            } \
            sum[i] = some[0]; \
        } \
    }
_Static_assert(HU_FOLD * HU_FOLD == 1 << HU_TREE, "rows of a group");
FOLD(fold_terms, float)
FOLD(fold_sums, double)

typedef double vd __attribute__((vector_size(8 * VL)));
#define WIDENED(p) __builtin_convertvector(ldf(p), vd)

/* Returns the sum of HU_CAP terms, or of their squares or products, by a flag of HU_OF_*. The stretch is halved until one
 * number is left. */
INLINE double sum_of(const float *x, const float *y, const int of) {
    enum { LEFT = HU_CAP / 16 };
    double left[LEFT] ALIGNED;
#define AT(k) (of & HU_OF_SQUARE ? WIDENED(x + k * LEFT) * WIDENED(x + k * LEFT) \
               : of & HU_OF_PRODUCT ? WIDENED(x + k * LEFT) * WIDENED(y + k * LEFT) : WIDENED(x + k * LEFT))
#define FOUR(k) ((AT(k) + AT((k + 8))) + (AT((k + 4)) + AT((k + 12))))
    for (int i = 0; i < LEFT; i += VL, x += VL, y += VL) {
        const vd sum = (FOUR(0) + FOUR(2)) + (FOUR(1) + FOUR(3));
        memcpy(left + i, &sum, sizeof sum);
    }
#undef FOUR
#undef AT
    return hu_halved(left, LEFT);
}

/* Returns the same sum of n terms, padded with zeros. */
static double sum_of_stretch(float *x, float *y, int n, int of) {
    if (n > HU_CAP / 2) {
        for (int i = n; i < HU_CAP; i++) x[i] = y[i] = 0.0f;
        if (of & HU_OF_SQUARE) return sum_of(x, y, HU_OF_SQUARE);
        return of & HU_OF_PRODUCT ? sum_of(x, y, HU_OF_PRODUCT) : sum_of(x, y, 0);
    }
    double few[HU_CAP / 2] ALIGNED;
    int width = 1;
    while (width < n) width *= 2;
    for (int i = 0; i < n; i++)
        few[i] = of & HU_OF_SQUARE ? (double)x[i] * x[i] : of & HU_OF_PRODUCT ? (double)x[i] * y[i] : x[i];
    for (int i = n; i < width; i++) few[i] = 0.0;
    return hu_halved(few, width);
}

/* Computes the sums of one stretch of HU_CAP elements of a row. */
static void measure_stretch(const hu_work *w, int64_t row, int64_t col, int n, scratch *t, int in_fold) {
    const int64_t a_row = (w->cols + HU_CAP - 1) / HU_CAP, stretch = row * a_row + col / HU_CAP;
    hu_piece piece = {.n = (n + HU_UNIT - 1) / HU_UNIT * HU_UNIT, .count = n};
    give_values(w, row, col, t, &piece);
    for (int k = 0; k < w->slots; k++) {
        piece.state[k] = t->state[k];
        read_stretch(&w->slot[k], t->decode[k], row, col, w->cols, n, t, t->state[k]);
        for (int i = n; i < piece.n; i++) t->state[k][i] = 0.0f;
    }
    for (int k = 0, v = 0; k < w->terms; k++) {
        piece.term[k] = w->term[k] & HU_OF_BY_COLUMN ? t->of_row[v++][in_fold] : t->term[k];
        piece.factor[k] = t->factor[k];
    }
    piece.grad = grad_of(w, row * w->cols + col, n, t->grad);
    piece.param = !(w->flags & HU_READS_PARAM) ? piece.grad : param_of(w, row * w->cols + col, n, t->param);
    t->run(&piece);
    for (int k = 0; k < w->terms; k++) {
        float *x = piece.term[k];
        w->sums[k * w->rows * a_row + stretch] =
            w->term[k] & HU_OF_LARGEST ? *x : sum_of_stretch(x, piece.factor[k], n, w->term[k]);
    }
}

/* Measures one stretch of a row, or of each row of a group, whose columns are also added up. */
static void measure(const hu_work *w, int64_t unit, scratch *t) {
    const int64_t a_row = (w->cols + HU_CAP - 1) / HU_CAP, col = unit % a_row * HU_CAP, group = unit / a_row;
    const int n = w->cols - col < HU_CAP ? (int)(w->cols - col) : HU_CAP, vectors = by_column(w);
    if (!vectors) {
        measure_stretch(w, group, col, n, t, 0);
        return;
    }
    const int64_t first = group << HU_TREE, left = w->rows - first;
    const int rows = left < 1 << HU_TREE ? (int)left : 1 << HU_TREE;
    for (int row = 0; row < rows; row++) {
        const int inside = row % HU_FOLD, last = row == rows - 1;
        measure_stretch(w, first + row, col, n, t, inside);
        if (inside + 1 < HU_FOLD && !last) continue;
        for (int v = 0; v < vectors; v++) {
            fold_terms(t->of_row[v], inside + 1, n, t->of_rows[v][row / HU_FOLD]);
            double *const sum = w->column_sums + (v * groups(w) + group) * w->cols + col;
            if (last) fold_sums(t->of_rows[v], row / HU_FOLD + 1, n, sum);
        }
    }
}

static void run(const hu_work *w, int64_t unit, int64_t last) {
    scratch t;
    t.run = program_of(w);
    for (int k = 0; k < w->slots; k++)
        t.decode[k] = decoder(w->slot[k].format), t.encode[k] = encoder(w->slot[k].format);
    if (w->sums) {
        for (; unit < last; unit++) measure(w, unit, &t);
        return;
    }
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
    const int64_t edge = s->block && s->block < cols ? s->block : cols; /* pieces end where large blocks end */
    for (int64_t row = 0; row < rows; row++)
        for (int64_t col = 0, n; col < cols; col += n) {
            n = cols - col < length ? cols - col : length;
            if (edge > HU_CAP && n > edge - col % edge) n = edge - col % edge;
            prefetch_codes(s, row, col, cols, (int)n);
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
                 .slots = 1, .slot = s};
    const int large = wide(s, cols), length = !s->block || large ? HU_CAP : (int)(HU_CAP / s->block * s->block);
    t.encode[0] = encoder(s->format);
    const int64_t rows_a_block = s->block > cols ? rows : 1, edge = large && s->block < cols ? s->block : cols;
    for (int64_t row = 0; row < rows; row += rows_a_block)
        for (int64_t col = 0; col < cols; col += edge) {
            const int64_t end = cols - col < edge ? cols : col + edge;
            span big = {{0}, 0};
            for (big.measured = !large; big.measured < 2; big.measured++)
                for (int64_t r = row; r < row + rows_a_block; r++)
                    for (int64_t c = col; c < end; c += length)
                        encode_piece(&w, r, c, (int)(end - c < length ? end - c : length), in, &t, large ? &big : NULL);
            if (large) put_scale(s->format, big.largest[0], s->scale, scale_index(s, row, col, cols));
        }
}

const hu_isa CONCAT(hu_isa_, HU_ISA) = {TEXT(HU_ISA), units, run, decode_all, encode_all, find};
