/* A whole forward of a Llama-like decoder over packed rows, in one call: of answers one token each, of prompts many.

   For each layer threads do, with a barrier behind each line:
     norm, rounding; q, k, v
     rotation, write to the pages; where a row sees keys of another one, a barrier
     attention: some rows of one sequence and a key-value head at a time; where that is too little for all threads, a run of
       keys at a time, and a barrier before these are put together
     rounding; o, added to the rows
     norm, rounding; gate and up, silu(gate) * up
     rounding; down, added to the rows
   Behind the keys and values of the last layer only rows with logits go on.
   Of many rows whoever is free takes the next piece of a line. A number is computed by one thread in one order, whichever it is: results
   depend neither on the number of threads nor on the rows of other sequences, nor on which rows of one come in one call. */
#include "attention.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

#define QUERIES 32 /* that go over keys together, if a head has not more of them */
#define PIECE_ROWS 96 /* whose activations stay in the cache while matrices pass */
#define SHARES 3 /* a thread takes this part of what would be its own of the rest of a line */
#define LINES 5 /* of a layer, with pieces to be taken */

/* What Python fills in; `kamado.kernels.step` has the same. Matrices in the order of kernels.h. */
typedef struct {
    const uint8_t *values;
    const uint16_t *scales;
    const float *bias; /* may be NULL */
    int32_t out, bits, x_bits;
} Matrix;

typedef struct {
    const float *norm, *inner_norm;
    const float *q_norm, *k_norm; /* of each head; may be NULL */
    Matrix q, k, v, o, gate, up, down;
    Pool keys, values;
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm;
    Matrix head;
    int32_t num_layers, hidden, heads, kv_heads, dim, inner, page_tokens;
    int32_t kept; /* form of the pages */
    float eps, scale;
} Model;

/* Rows that are new tokens of one sequence, one behind the other. */
typedef struct {
    int32_t first, rows;
    int32_t keys; /* that the first of them sees, its own with them */
} Run;

typedef struct {
    int32_t rows, num_runs, table_width, num_wanted;
    float *x; /* (rows, hidden), changed */
    const float *cos, *sin; /* (rows, dim) */
    const Run *runs;
    const int32_t *tables; /* (runs, table width): pages */
    const int32_t *wanted; /* rows with logits, in order */
    float *logits; /* (wanted, vocabulary) */
} Batch;

/* Some rows of a run, and the keys from one multiple of KEYS to another. */
typedef struct {
    int32_t run, first, rows, from, to;
    int32_t last; /* whether it is the last of these rows */
} Piece;

typedef struct {
    const Implementation *with;
    const Model *model;
    const Batch *batch;
    int alone, num_pieces;
    int rows; /* that go on: the first ones of `x` */
    int linked; /* whether keys of this call are read by others than who writes them */
    int split; /* whether the keys of a row are several pieces */
    float *normed, *qkv, *attended, *inner, *up, *added, *seen, *scores;
    ptrdiff_t scores_each;
    Rounded shared[NUM_FORMS];
    Piece *pieces;
    Barrier barrier;
    atomic_int *taken; /* (layers, LINES), and the last line */
} Step;

/* One thread of a step, with room for rows that it rounds for itself. */
typedef struct {
    Step *step;
    int index, size;
    int passed; /* barriers */
    int8_t values[NUM_FORMS][2 * SMALL];
    float normed[SMALL], scales[NUM_FORMS][SMALL / GROUP];
    int32_t sums[NUM_FORMS][SMALL / GROUP];
} Worker;

/* Rows, rounded in each form that somebody reads. */
typedef struct {
    Rounded forms[NUM_FORMS];
} Activations;

/* Root mean square norm; `to` may be `x`. */
AVX2 static void norm_row(const float *x, const float *weight, int n, float eps, float *to) {
    __m256 squares = _mm256_setzero_ps();
    for (int i = 0; i < n; i += LANES) {
        __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    __m256 by = _mm256_set1_ps(1.0f / sqrtf(sum_of(squares) / (float)n + eps));
    for (int i = 0; i < n; i += LANES)
        _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), by), _mm256_loadu_ps(weight + i)));
}

/* gate = silu(gate) * up */
AVX2 static void gate_with(float *gate, const float *up, int n) {
    for (int i = 0; i < n; i += LANES) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 below = _mm256_add_ps(exp_of(_mm256_sub_ps(_mm256_setzero_ps(), g)), _mm256_set1_ps(1.0f));
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(_mm256_div_ps(g, below), _mm256_loadu_ps(up + i)));
    }
}

AVX2 static void add_to(float *x, const float *more, int n) {
    for (int i = 0; i < n; i += LANES)
        _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(more + i)));
}

/* The first half of a head turns against the second. */
AVX2 static void rotate(float *x, const float *cos, const float *sin, int dim) {
    int half = dim / 2;
    for (int i = 0; i < half; i += LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
        __m256 minus = _mm256_mul_ps(b, _mm256_loadu_ps(sin + i)), plus = _mm256_mul_ps(a, _mm256_loadu_ps(sin + half + i));
        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, _mm256_loadu_ps(cos + i), minus));
        _mm256_storeu_ps(x + half + i, _mm256_fmadd_ps(b, _mm256_loadu_ps(cos + half + i), plus));
    }
}

static void wait_for_all(Worker *w) {
    kamado_wait(&w->step->barrier, w->size, &w->passed);
}

/* Calls of `take` by all threads give pieces from 0 to `count`, some at a time: [from, to). At first much, since memory is read
   faster in one go, then ever less, so that all end at the same time, however fast they are. */
static int take(const Worker *w, atomic_int *taken, int count, int *from, int *to) {
    int at = atomic_load_explicit(taken, memory_order_relaxed), some;
    do {
        some = (count - at) / (SHARES * w->size);
        if (some < 1) some = 1;
    } while (at < count && !atomic_compare_exchange_weak_explicit(taken, &at, at + some, memory_order_relaxed, memory_order_relaxed));
    *from = at;
    *to = at + some;
    return at < count;
}

static atomic_int *line(const Worker *w, int layer, int line) { return w->step->taken + layer * LINES + line; }

static Product product_of(const Worker *w, const Matrix *matrix, int rows, int in, float *y, int64_t y_stride) {
    Product p = {
        .with = w->step->with,
        .values = matrix->values,
        .scales = matrix->scales,
        .bias = matrix->bias,
        .y = y,
        .y_stride = y_stride,
        .rows = rows,
        .in = in,
        .out = matrix->out,
        .weight_bits = matrix->bits,
        .bits = matrix->x_bits,
    };
    kamado_cut(&p, w->size);
    return p;
}

/* Rows (rows, in), normed where there is a norm, as the readers want them. Few are made by every thread for itself, of many each
   makes its share. */
static Activations round_rows(Worker *w, const float *x, const float *norm, const Product *readers, int num_readers) {
    Step *s = w->step;
    int rows = readers->rows, in = readers->in, own = (int64_t)rows * in <= SMALL, made = 0;
    int from = own ? 0 : kamado_share(rows, w->index, w->size), to = own ? rows : kamado_share(rows, w->index + 1, w->size);
    if (norm) {
        float *normed = own ? w->normed : s->normed;
        for (int r = from; r < to; r++) norm_row(x + (ptrdiff_t)r * in, norm, in, s->model->eps, normed + (ptrdiff_t)r * in);
        x = normed;
    }
    Activations result;
    for (int i = 0; i < num_readers; i++) {
        Product p = readers[i];
        if (made & 1 << p.form) continue;
        made |= 1 << p.form;
        p.x = x;
        p.x_stride = in;
        result.forms[p.form] = own ? (Rounded){w->values[p.form], w->scales[p.form], w->sums[p.form]} : s->shared[p.form];
        kamado_round(&p, from, to, &result.forms[p.form]);
    }
    if (!own) wait_for_all(w);
    return result;
}

/* Pieces of a product: rows that fit into the cache go over all strips, then the next ones. */
static int runs_of(const Product *p) { return (p->rows + PIECE_ROWS - 1) / PIECE_ROWS; }

/* Where the blocks of one of `runs` begin, and its rows. */
static int first_block(const Product *p, int run, int runs) { return kamado_share(p->blocks, run, runs); }
static int first_row_of(const Product *p, int run, int runs) { return first_row(p, first_block(p, run, runs)); }

static void multiply(const Product *p, int run, int runs, int strip, const Activations *x) {
    kamado_multiply(p, strip, first_block(p, run, runs), first_block(p, run + 1, runs), &x->forms[p->form]);
}

/* q, k and v of each row one behind the other. */
static void make_qkv(Worker *w, const Layer *layer, int l) {
    Step *s = w->step;
    const Matrix *parts[] = {&layer->q, &layer->k, &layer->v};
    int hidden = s->model->hidden, width = layer->q.out + layer->k.out + layer->v.out, offset = 0, strips = 0, from, to;
    Product products[3];
    for (int i = 0; i < 3; i++) {
        products[i] = product_of(w, parts[i], s->batch->rows, hidden, s->qkv + offset, width);
        offset += parts[i]->out;
        strips += products[i].strips;
    }
    Activations x = round_rows(w, s->batch->x, layer->norm, products, 3);
    int runs = runs_of(products);
    while (take(w, line(w, l, 0), strips * runs, &from, &to)) {
        for (int piece = from; piece < to; piece++) {
            int strip = piece % strips, i = 0;
            for (; strip >= products[i].strips; i++) strip -= products[i].strips;
            multiply(products + i, piece / strips, runs, strip, &x);
        }
    }
}

/* What a head has kept of a token. */
static Pool vector_of(const Model *m, Pool pool, ptrdiff_t slot, int head) {
    ptrdiff_t vector = slot * m->kv_heads + head;
    return (Pool){pool.numbers + vector * m->dim * bytes_of(m->kept), pool.scales ? pool.scales + vector : NULL};
}

/* Turns the queries and the key of one key-value head of one row, and writes it and its value to their page. */
static void turn_head(const Step *s, const Layer *layer, const Run *run, const int32_t *pages, int row, int head) {
    const Model *m = s->model;
    int dim = m->dim, queries = m->heads / m->kv_heads, position = run->keys - 1 + row - run->first;
    ptrdiff_t all = (ptrdiff_t)m->heads * dim, kept = (ptrdiff_t)m->kv_heads * dim;
    float *q = s->qkv + row * (all + 2 * kept) + (ptrdiff_t)head * queries * dim;
    float *k = s->qkv + row * (all + 2 * kept) + all + (ptrdiff_t)head * dim, *v = k + kept;
    const float *cos = s->batch->cos + (ptrdiff_t)row * dim, *sin = s->batch->sin + (ptrdiff_t)row * dim;
    for (int i = 0; i < queries; i++) {
        if (layer->q_norm) norm_row(q + (ptrdiff_t)i * dim, layer->q_norm, dim, m->eps, q + (ptrdiff_t)i * dim);
        rotate(q + (ptrdiff_t)i * dim, cos, sin, dim);
    }
    if (layer->k_norm) norm_row(k, layer->k_norm, dim, m->eps, k);
    rotate(k, cos, sin, dim);
    ptrdiff_t slot = (ptrdiff_t)pages[position / m->page_tokens] * m->page_tokens + position % m->page_tokens;
    kamado_keep(k, dim, m->kept, vector_of(m, layer->keys, slot, head));
    kamado_keep(v, dim, m->kept, vector_of(m, layer->values, slot, head));
}

static const int32_t *pages_of(const Step *s, int run) { return s->batch->tables + (ptrdiff_t)run * s->batch->table_width; }

/* A thread's share of all heads of all rows. */
static void turn_share(const Worker *w, const Layer *layer) {
    const Step *s = w->step;
    int heads = s->model->kv_heads, from = kamado_share(s->batch->rows, w->index, w->size);
    int to = kamado_share(s->batch->rows, w->index + 1, w->size);
    for (int r = 0; r < s->batch->num_runs; r++) {
        const Run *run = s->batch->runs + r;
        int begin = run->first > from ? run->first : from, end = run->first + run->rows < to ? run->first + run->rows : to;
        for (int row = begin; row < end; row++)
            for (int head = 0; head < heads; head++) turn_head(s, layer, run, pages_of(s, r), row, head);
    }
}

/* Queries that go over keys together, at the most. */
static int most_queries(const Model *m) {
    int each = m->heads / m->kv_heads;
    return each > QUERIES ? each : QUERIES / each * each;
}

/* What the queries of a piece for one key-value head see: their part of `attended`, or of `seen` where keys are split. */
static void attend(const Worker *w, const Layer *layer, int index, int head, int fetched) {
    const Step *s = w->step;
    const Model *m = s->model;
    const Piece *piece = s->pieces + index;
    const Run *run = s->batch->runs + piece->run;
    int dim = m->dim, each = m->heads / m->kv_heads, count = most_queries(m);
    ptrdiff_t all = (ptrdiff_t)m->heads * dim, kept = (ptrdiff_t)m->kv_heads * dim, wide = dim + 2;
    Past past = {
        .keys = vector_of(m, layer->keys, 0, head),
        .values = vector_of(m, layer->values, 0, head),
        .pages = pages_of(s, piece->run),
        .page_tokens = m->page_tokens,
        .form = m->kept,
        .heads = m->kv_heads,
        .stride = kept,
        .fetched = fetched,
    };
    past.restored = s->scores + w->index * s->scores_each;
    float *q = past.restored + (ptrdiff_t)NEAR * dim, *scores = q + (ptrdiff_t)count * dim;
    for (int r = 0; r < piece->rows; r++) {
        const float *row = s->qkv + (piece->first + r) * (all + 2 * kept) + (ptrdiff_t)head * each * dim;
        memcpy(q + (ptrdiff_t)r * each * dim, row, sizeof(float) * (size_t)(each * dim));
    }
    Queries queries = {
        .q = q,
        .rows = piece->rows,
        .each = each,
        .dim = dim,
        .keys = run->keys + piece->first - run->first,
        .scale = m->scale,
    };
    float *more = scores + (ptrdiff_t)count * KEYS;
    float *seen = s->split ? s->seen + ((ptrdiff_t)index * m->kv_heads + head) * count * wide : more + count * wide;
    kamado_look(&queries, &past, piece->from, scores, seen);
    for (int from = piece->from + KEYS; from < piece->to; from += KEYS) {
        kamado_look(&queries, &past, from, scores, more);
        for (int i = 0; i < piece->rows * each; i++)
            if (visible(&queries, i, from)) kamado_put_together(seen + i * wide, more + i * wide, dim);
    }
    if (s->split) return;
    for (int i = 0; i < piece->rows * each; i++)
        kamado_finish(seen + i * wide, dim, s->attended + (piece->first + i / each) * all + (ptrdiff_t)(head * each + i % each) * dim);
}

/* Puts together what was seen in the pieces of the same rows, which end with this one. */
static void join(const Step *s, int last, int head) {
    const Model *m = s->model;
    const Piece *piece = s->pieces + last;
    const Run *run = s->batch->runs + piece->run;
    int dim = m->dim, each = m->heads / m->kv_heads, first = last - piece->from / KEYS;
    ptrdiff_t wide = dim + 2, apart = (ptrdiff_t)m->kv_heads * most_queries(m) * wide;
    float *seen = s->seen + first * apart + (ptrdiff_t)head * most_queries(m) * wide;
    for (int i = 0; i < piece->rows * each; i++, seen += wide) {
        int row = piece->first + i / each, keys = run->keys + row - run->first;
        for (int p = 1; p <= last - first && p * KEYS < keys; p++) kamado_put_together(seen, seen + p * apart, dim);
        kamado_finish(seen, dim, s->attended + ((ptrdiff_t)row * m->heads + head * each + i % each) * dim);
    }
}

/* Whether it is the layer behind whose keys only some rows go on. */
static int leaves_rows(const Step *s, int l) { return l == s->model->num_layers - 1 && s->batch->num_wanted < s->batch->rows; }

/* Whether some row of a piece has logits. */
static int is_wanted(const Batch *batch, const Piece *piece) {
    for (int i = 0; i < batch->num_wanted; i++)
        if (batch->wanted[i] >= piece->first && batch->wanted[i] < piece->first + piece->rows) return 1;
    return 0;
}

/* Behind the last attention: rows with logits become the first ones. */
static void keep_wanted(Worker *w) {
    Step *s = w->step;
    const Batch *batch = s->batch;
    ptrdiff_t hidden = s->model->hidden, all = (ptrdiff_t)s->model->heads * s->model->dim;
    if (w->index == 0) {
        for (int i = 0; i < batch->num_wanted; i++) {
            ptrdiff_t from = batch->wanted[i];
            memmove(batch->x + i * hidden, batch->x + from * hidden, sizeof(float) * (size_t)hidden);
            memmove(s->attended + i * all, s->attended + from * all, sizeof(float) * (size_t)all);
        }
        s->rows = batch->num_wanted;
    }
    wait_for_all(w);
}

static void make_attention(Worker *w, const Layer *layer, int l) {
    const Step *s = w->step;
    int heads = s->model->kv_heads, items = s->num_pieces * heads, from, to;
    /* Keys of one token's heads lie side by side: where there are enough pieces, a thread takes all heads. */
    int some = s->num_pieces >= 8 * w->size ? heads : 1;
    int fewer = leaves_rows(s, l);
    if (s->linked) {
        turn_share(w, layer);
        wait_for_all(w);
    }
    while (take(w, line(w, l, 1), items / some, &from, &to)) {
        for (int item = from * some; item < to * some; item++) {
            int index = s->num_pieces - 1 - item / heads; /* the longest first */
            const Piece *piece = s->pieces + index;
            if (!s->linked)
                turn_head(s, layer, s->batch->runs + piece->run, pages_of(s, piece->run), piece->first, item % heads);
            if (fewer && !is_wanted(s->batch, piece)) continue;
            int fetched = some == 1 ? s->model->dim : item % heads ? 0 : heads * s->model->dim;
            attend(w, layer, index, item % heads, fetched);
        }
    }
    if (!s->split) return;
    wait_for_all(w);
    for (int item = kamado_share(items, w->index, w->size); item < kamado_share(items, w->index + 1, w->size); item++)
        if (s->pieces[item / heads].last && !(fewer && !is_wanted(s->batch, s->pieces + item / heads))) join(s, item / heads, item % heads);
}

/* x += a product. */
static void add_product(Worker *w, const float *with, int in, const Matrix *matrix, atomic_int *taken) {
    Step *s = w->step;
    int hidden = s->model->hidden, from, to;
    Product p = product_of(w, matrix, s->rows, in, s->added, hidden);
    Activations x = round_rows(w, with, NULL, &p, 1);
    int width = p.strip_panels * PANEL, runs = runs_of(&p);
    while (take(w, taken, p.strips * runs, &from, &to)) {
        for (int piece = from; piece < to; piece++) {
            int run = piece / p.strips, strip = piece % p.strips, end = first_row_of(&p, run + 1, runs);
            multiply(&p, run, runs, strip, &x);
            for (int r = first_row_of(&p, run, runs); r < end; r++) {
                ptrdiff_t at = (ptrdiff_t)r * hidden + strip * width;
                add_to(s->batch->x + at, s->added + at, width);
            }
        }
    }
}

static void make_inner(Worker *w, const Layer *layer, int l) {
    Step *s = w->step;
    int hidden = s->model->hidden, inner = s->model->inner, from, to;
    Product gate = product_of(w, &layer->gate, s->rows, hidden, s->inner, inner);
    Product up = product_of(w, &layer->up, s->rows, hidden, s->up, inner);
    Activations x = round_rows(w, s->batch->x, layer->inner_norm, (Product[]){gate, up}, 2);
    /* Where both read other forms, their blocks differ, and so would the rows of their runs. */
    int width = gate.strip_panels * PANEL, runs = gate.form == up.form ? runs_of(&gate) : 1;
    while (take(w, line(w, l, 3), gate.strips * runs, &from, &to)) {
        for (int piece = from; piece < to; piece++) {
            int run = piece / gate.strips, strip = piece % gate.strips, end = first_row_of(&gate, run + 1, runs);
            multiply(&gate, run, runs, strip, &x);
            multiply(&up, run, runs, strip, &x);
            for (int r = first_row_of(&gate, run, runs); r < end; r++) {
                ptrdiff_t at = (ptrdiff_t)r * inner + strip * width;
                gate_with(s->inner + at, s->up + at, width);
            }
        }
    }
}

static void make_logits(Worker *w) {
    Step *s = w->step;
    const Model *m = s->model;
    int from, to;
    if (!s->rows) return;
    Product p = product_of(w, &m->head, s->rows, m->hidden, s->batch->logits, m->head.out);
    Activations x = round_rows(w, s->batch->x, m->norm, &p, 1);
    int runs = runs_of(&p);
    while (take(w, line(w, m->num_layers, 0), p.strips * runs, &from, &to))
        for (int piece = from; piece < to; piece++) multiply(&p, piece / p.strips, runs, piece % p.strips, &x);
}

static void work(void *data) {
    Step *s = data;
    const Model *m = s->model;
    Worker w;
    w.step = s;
    w.passed = 0;
    w.index = s->alone ? 0 : kamado_torch_team.index();
    w.size = s->alone ? 1 : kamado_torch_team.size();
    for (int l = 0; l < m->num_layers; l++) {
        const Layer *layer = m->layers + l;
        make_qkv(&w, layer, l);
        wait_for_all(&w);
        make_attention(&w, layer, l);
        wait_for_all(&w);
        if (leaves_rows(s, l)) keep_wanted(&w);
        add_product(&w, s->attended, m->heads * m->dim, &layer->o, line(&w, l, 2));
        wait_for_all(&w);
        make_inner(&w, layer, l);
        wait_for_all(&w);
        add_product(&w, s->inner, m->inner, &layer->down, line(&w, l, 4));
        wait_for_all(&w);
    }
    make_logits(&w);
}

/* How attention is cut to pieces; `pieces` may be NULL, to count them. */
static int cut(Step *s, int threads, Piece *pieces) {
    const Model *m = s->model;
    int most = most_queries(m) / (m->heads / m->kv_heads), whole = 0, longest = 0, count = 0;
    s->linked = 0;
    for (int r = 0; r < s->batch->num_runs; r++) {
        const Run *run = s->batch->runs + r;
        whole += (run->rows + most - 1) / most;
        if (run->keys + run->rows > longest) longest = run->keys + run->rows;
        s->linked |= run->rows > 1;
    }
    s->split = threads > 1 && whole * m->kv_heads < 4 * threads && longest > 2 * KEYS;
    s->linked |= s->split;
    for (int r = 0; r < s->batch->num_runs; r++) {
        const Run *run = s->batch->runs + r;
        for (int begin = 0; begin < run->rows; begin += most) {
            int rows = run->rows - begin < most ? run->rows - begin : most, keys = run->keys + begin + rows - 1;
            int each = s->split ? KEYS : keys;
            for (int from = 0; from < keys; from += each, count++) {
                int to = keys - from > each ? from + each : keys;
                if (pieces) pieces[count] = (Piece){r, run->first + begin, rows, from, to, to == keys};
            }
        }
    }
    return count;
}

/* Lays a step's working memory out from `at` on; returns its bytes. */
static int64_t lay_out(Step *s, char *at, int threads) {
    const Model *m = s->model;
    int64_t all = (int64_t)m->heads * m->dim, kept = (int64_t)m->kv_heads * m->dim, used = 0;
    int64_t widest = all > m->inner ? all : m->inner, rows = s->batch->rows, wide = most_queries(m) * (int64_t)(m->dim + 2);
    if (m->hidden > widest) widest = m->hidden;
    s->num_pieces = cut(s, threads, NULL);
    s->scores_each = (most_queries(m) + NEAR) * (int64_t)m->dim + most_queries(m) * KEYS + 2 * wide;
    struct {
        void **part;
        int64_t bytes;
    } parts[] = {
        {(void **)&s->normed, rows * m->hidden * 4},
        {(void **)&s->added, rows * m->hidden * 4},
        {(void **)&s->qkv, rows * (all + 2 * kept) * 4},
        {(void **)&s->attended, rows * all * 4},
        {(void **)&s->inner, rows * m->inner * 4},
        {(void **)&s->up, rows * m->inner * 4},
        {(void **)&s->seen, s->split ? s->num_pieces * m->kv_heads * wide * 4 : 0},
        {(void **)&s->scores, s->scores_each * threads * 4},
        {(void **)&s->shared[WHOLE].scales, rows * (widest / GROUP) * 4},
        {(void **)&s->shared[WHOLE].sums, rows * (widest / GROUP) * 4},
        {(void **)&s->shared[SPLIT].scales, rows * (widest / GROUP) * 4},
        {(void **)&s->shared[SPLIT].sums, rows * (widest / GROUP) * 4},
        {(void **)&s->pieces, s->num_pieces * (int64_t)sizeof(Piece)},
        {(void **)&s->taken, (m->num_layers * LINES + 1) * (int64_t)sizeof(atomic_int)},
        {(void **)&s->shared[WHOLE].values, rows * widest * 2},
        {(void **)&s->shared[SPLIT].values, rows * widest * 2},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].part = at + used;
        used += parts[i].bytes;
    }
    return used;
}

/* Bytes that `kamado_step` needs to work in. */
PUBLIC int64_t kamado_step_space(const Model *model, const Batch *batch, int threads) {
    Step s = {.model = model, .batch = batch};
    char none = 0;
    return lay_out(&s, &none, threads > 1 ? threads : 1);
}

/* The forward of a batch. hidden, inner and heads * dim: whole groups; dim and outputs but the logits: multiples of 16; pages:
   multiples of 8 tokens; runs in the order of their rows, and all rows in runs. `space` aligned to 4 bytes. */
PUBLIC void kamado_step(int which, const Model *model, const Batch *batch, void *space, int threads) {
    Step s = {
        .with = kamado_implementation(which),
        .model = model,
        .batch = batch,
        .rows = batch->rows,
        .alone = threads <= 1 || kamado_torch_team.run == NULL,
    };
    lay_out(&s, space, threads > 1 ? threads : 1);
    cut(&s, threads, s.pieces);
    for (int i = 0; i <= model->num_layers * LINES; i++) atomic_init(s.taken + i, 0);
    if (s.alone)
        work(&s);
    else
        kamado_torch_team.run(work, &s, (unsigned)threads, 0);
}

#endif
