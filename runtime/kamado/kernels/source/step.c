/* A whole forward of a Llama-like decoder for rows of one token each, in one call.

   Each row reads and writes the pages of its sequence. For each layer threads do, with a barrier behind each line:
     norm, rounding; q, k, v
     rotation, write to the page; where rows are of one sequence, a barrier
     attention: whoever is free takes the next key-value head of a row
     rounding; o, added to the row
     norm, rounding; gate and up, silu(gate) * up
     rounding; down, added to the row
   A number is computed by one thread in one order, whichever it is: results depend neither on the number of threads nor on
   the rows of other sequences, nor on which rows of one come in one call. */
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2
#define LANES 8
#define RUN 64 /* values of a head that are summed up at once */

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
    float *keys, *values; /* (pages, page tokens, key-value heads, dim) */
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm;
    Matrix head;
    int32_t num_layers, hidden, heads, kv_heads, dim, inner, page_tokens;
    float eps, scale;
} Model;

typedef struct {
    const Implementation *with;
    const Model *model;
    int rows, alone, table_width, linked;
    float *x; /* (rows, hidden), changed */
    const float *cos, *sin; /* (rows, dim) */
    const int32_t *lengths, *slots, *tables; /* (rows): keys with the new one, and its place; (rows, table_width) */
    float *logits;
    float *normed, *qkv, *attended, *inner, *up, *added, *scores;
    ptrdiff_t scores_each;
    Rounded shared;
    atomic_int taken[2];
} Step;

/* One thread of a step, with room for rows that it rounds for itself. */
typedef struct {
    Step *step;
    int index, size;
    int8_t values[2 * SMALL];
    float normed[SMALL], scales[SMALL / GROUP];
    int32_t sums[SMALL / GROUP];
} Worker;

INLINE float sum_of(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* e^x: 2^n times the series of e^r to its seventh power, |r| <= ln 2 / 2. Beyond -87 and 88 as there; NaN stays. */
INLINE __m256 exp_of(__m256 x) {
    const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e430p-1f), x); /* ln 2 in two parts */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-1.90465421e-9f), r);
    __m256 power = _mm256_set1_ps(1.0f / 5040);
    for (int i = 0; i < 7; i++) power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(series[i]));
    __m256i two_to_n = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(power, _mm256_castsi256_ps(two_to_n));
}

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

/* The sums of eight vectors. */
INLINE __m256 sums_of(const __m256 *v) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/* The pages of one row, as one key-value head sees them. */
typedef struct {
    const float *keys, *values;
    const int32_t *pages;
    int page_tokens, length;
    ptrdiff_t stride;
} Past;

INLINE ptrdiff_t place(const Past *past, int token) {
    return ((ptrdiff_t)past->pages[token / past->page_tokens] * past->page_tokens + token % past->page_tokens) * past->stride;
}

/* Products of `heads` queries with all keys, eight keys at a time: pages are whole multiples of that, and what is in a page
   behind the length is overwritten. */
INLINE void score(const float *q, int heads, const int dim, const Past *past, float scale, float *scores, int padded) {
    for (int t = 0; t < padded; t += LANES) {
        const float *k = past->keys + place(past, t);
        for (int h = 0; h < heads; h++) {
            __m256 sums[LANES];
            for (int j = 0; j < LANES; j++) sums[j] = _mm256_setzero_ps();
            for (int i = 0; i < dim; i += LANES) {
                __m256 query = _mm256_loadu_ps(q + (ptrdiff_t)h * dim + i);
                for (int j = 0; j < LANES; j++)
                    sums[j] = _mm256_fmadd_ps(query, _mm256_loadu_ps(k + j * past->stride + i), sums[j]);
            }
            _mm256_storeu_ps(scores + (ptrdiff_t)h * padded + t, _mm256_mul_ps(sums_of(sums), _mm256_set1_ps(scale)));
        }
    }
    for (int h = 0; h < heads; h++)
        for (int t = past->length; t < padded; t++) scores[(ptrdiff_t)h * padded + t] = -INFINITY;
}

/* Scores become weights that are still to be divided by what is returned. */
AVX2 static float weigh(float *scores, int length, int padded) {
    __m256 most = _mm256_set1_ps(-INFINITY), sum = _mm256_setzero_ps();
    for (int t = 0; t < padded; t += LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(scores + t));
    float lanes[LANES], top;
    _mm256_storeu_ps(lanes, most);
    top = lanes[0];
    for (int i = 1; i < LANES; i++) top = lanes[i] > top ? lanes[i] : top;
    for (int t = 0; t < padded; t += LANES)
        _mm256_storeu_ps(scores + t, exp_of(_mm256_sub_ps(_mm256_loadu_ps(scores + t), _mm256_set1_ps(top))));
    for (int t = length; t < padded; t++) scores[t] = 0.0f;
    for (int t = 0; t < padded; t += LANES) sum = _mm256_add_ps(sum, _mm256_loadu_ps(scores + t));
    return sum_of(sum);
}

/* `vectors` times eight values of a head, from `first` on: values times weights. */
INLINE void blend(const Past *past, const float *weights, float total, int first, const int vectors, float *to) {
    __m256 sums[RUN / LANES], by = _mm256_set1_ps(1.0f / total);
    for (int i = 0; i < vectors; i++) sums[i] = _mm256_setzero_ps();
    for (int t = 0; t < past->length; t++) {
        const float *v = past->values + place(past, t) + first;
        __m256 weight = _mm256_set1_ps(weights[t]);
        for (int i = 0; i < vectors; i++) sums[i] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(v + LANES * i), sums[i]);
    }
    for (int i = 0; i < vectors; i++) _mm256_storeu_ps(to + first + LANES * i, _mm256_mul_ps(sums[i], by));
}

AVX2 static void attend(const float *q, int heads, int dim, const Past *past, float scale, float *to, float *scores) {
    int padded = (past->length + LANES - 1) / LANES * LANES;
    switch (dim) {
        case 64: score(q, heads, 64, past, scale, scores, padded); break;
        case 128: score(q, heads, 128, past, scale, scores, padded); break;
        default: score(q, heads, dim, past, scale, scores, padded);
    }
    for (int h = 0; h < heads; h++) {
        float *weights = scores + (ptrdiff_t)h * padded;
        float total = weigh(weights, past->length, padded);
        for (int first = 0; first < dim; first += RUN) {
            if (dim - first >= RUN)
                blend(past, weights, total, first, RUN / LANES, to + (ptrdiff_t)h * dim);
            else
                blend(past, weights, total, first, (dim - first) / LANES, to + (ptrdiff_t)h * dim);
        }
    }
}

static void wait_for_all(const Worker *w) {
    if (w->size > 1) kamado_torch_team.barrier();
}

/* Rows (rows, in), normed where there is a norm, as the products read them. Few are made by every thread for itself, of many
   each makes its share. */
static Rounded round_rows(Worker *w, const float *x, const float *norm, int in, int x_bits) {
    Step *s = w->step;
    int own = (int64_t)s->rows * in <= SMALL;
    int from = own ? 0 : kamado_share(s->rows, w->index, w->size);
    int to = own ? s->rows : kamado_share(s->rows, w->index + 1, w->size);
    Rounded made = own ? (Rounded){w->values, w->scales, w->sums} : s->shared;
    if (norm) {
        float *normed = own ? w->normed : s->normed;
        for (int r = from; r < to; r++) norm_row(x + (ptrdiff_t)r * in, norm, in, s->model->eps, normed + (ptrdiff_t)r * in);
        x = normed;
    }
    Product p = {.with = s->with, .x = x, .x_stride = in, .rows = s->rows, .in = in, .bits = x_bits};
    p.blocks = kamado_blocks(s->with, s->rows);
    kamado_round(&p, from, to, &made);
    if (!own) wait_for_all(w);
    return made;
}

static Product product_of(const Step *s, const Matrix *matrix, int in, float *y, int64_t y_stride) {
    return (Product){
        .with = s->with,
        .values = matrix->values,
        .scales = matrix->scales,
        .bias = matrix->bias,
        .y = y,
        .y_stride = y_stride,
        .rows = s->rows,
        .in = in,
        .out = matrix->out,
        .weight_bits = matrix->bits,
        .bits = matrix->x_bits,
        .blocks = kamado_blocks(s->with, s->rows),
    };
}

static int panels_of(const Matrix *matrix) { return (matrix->out + PANEL - 1) / PANEL; }

/* q, k and v of each row one behind the other. */
static void make_qkv(Worker *w, const Layer *layer) {
    Step *s = w->step;
    const Matrix *parts[] = {&layer->q, &layer->k, &layer->v};
    int hidden = s->model->hidden, width = layer->q.out + layer->k.out + layer->v.out, done = 0, offset = 0;
    Rounded x = round_rows(w, s->x, layer->norm, hidden, layer->q.x_bits);
    int panels = width / PANEL;
    int from = kamado_share(panels, w->index, w->size), to = kamado_share(panels, w->index + 1, w->size);
    for (int i = 0; i < 3; i++) {
        Product p = product_of(s, parts[i], hidden, s->qkv + offset, width);
        int count = panels_of(parts[i]);
        for (int panel = from > done ? from : done; panel < to && panel < done + count; panel++)
            kamado_multiply(&p, panel - done, 0, p.blocks, &x);
        done += count;
        offset += parts[i]->out;
    }
}

/* Turns the queries and the key of one key-value head of one row, and writes it and its value to their page. */
static void turn_head(const Step *s, const Layer *layer, int row, int head) {
    const Model *m = s->model;
    int dim = m->dim, queries = m->heads / m->kv_heads;
    ptrdiff_t all = (ptrdiff_t)m->heads * dim, kept = (ptrdiff_t)m->kv_heads * dim;
    float *q = s->qkv + row * (all + 2 * kept) + (ptrdiff_t)head * queries * dim;
    float *k = s->qkv + row * (all + 2 * kept) + all + (ptrdiff_t)head * dim, *v = k + kept;
    const float *cos = s->cos + (ptrdiff_t)row * dim, *sin = s->sin + (ptrdiff_t)row * dim;
    for (int i = 0; i < queries; i++) {
        if (layer->q_norm) norm_row(q + (ptrdiff_t)i * dim, layer->q_norm, dim, m->eps, q + (ptrdiff_t)i * dim);
        rotate(q + (ptrdiff_t)i * dim, cos, sin, dim);
    }
    if (layer->k_norm) norm_row(k, layer->k_norm, dim, m->eps, k);
    rotate(k, cos, sin, dim);
    ptrdiff_t at = s->slots[row] * kept + (ptrdiff_t)head * dim;
    memcpy(layer->keys + at, k, sizeof(float) * (size_t)dim);
    memcpy(layer->values + at, v, sizeof(float) * (size_t)dim);
}

static void attend_head(const Worker *w, const Layer *layer, int row, int head) {
    const Step *s = w->step;
    const Model *m = s->model;
    int dim = m->dim, queries = m->heads / m->kv_heads;
    ptrdiff_t all = (ptrdiff_t)m->heads * dim, kept = (ptrdiff_t)m->kv_heads * dim;
    Past past = {
        .keys = layer->keys + (ptrdiff_t)head * dim,
        .values = layer->values + (ptrdiff_t)head * dim,
        .pages = s->tables + (ptrdiff_t)row * s->table_width,
        .page_tokens = m->page_tokens,
        .length = s->lengths[row],
        .stride = kept,
    };
    const float *q = s->qkv + row * (all + 2 * kept) + (ptrdiff_t)head * queries * dim;
    float *to = s->attended + row * all + (ptrdiff_t)head * queries * dim;
    attend(q, queries, dim, &past, m->scale, to, s->scores + w->index * s->scores_each);
}

static void make_attention(const Worker *w, const Layer *layer, atomic_int *taken) {
    const Step *s = w->step;
    int heads = s->model->kv_heads, items = s->rows * heads;
    if (s->linked) {
        int to = kamado_share(items, w->index + 1, w->size);
        for (int item = kamado_share(items, w->index, w->size); item < to; item++)
            turn_head(s, layer, item / heads, item % heads);
        wait_for_all(w);
    }
    for (int item; (item = atomic_fetch_add(taken, 1)) < items;) {
        if (!s->linked) turn_head(s, layer, item / heads, item % heads);
        attend_head(w, layer, item / heads, item % heads);
    }
}

/* x += a product. */
static void add_product(Worker *w, const float *from, int in, const Matrix *matrix) {
    Step *s = w->step;
    int hidden = s->model->hidden, panels = panels_of(matrix);
    Rounded x = round_rows(w, from, NULL, in, matrix->x_bits);
    Product p = product_of(s, matrix, in, s->added, hidden);
    for (int panel = kamado_share(panels, w->index, w->size); panel < kamado_share(panels, w->index + 1, w->size); panel++) {
        kamado_multiply(&p, panel, 0, p.blocks, &x);
        for (int r = 0; r < s->rows; r++) {
            ptrdiff_t at = (ptrdiff_t)r * hidden + panel * PANEL;
            add_to(s->x + at, s->added + at, PANEL);
        }
    }
}

static void make_inner(Worker *w, const Layer *layer) {
    Step *s = w->step;
    int hidden = s->model->hidden, inner = s->model->inner, panels = inner / PANEL;
    Rounded x = round_rows(w, s->x, layer->inner_norm, hidden, layer->gate.x_bits);
    Product gate = product_of(s, &layer->gate, hidden, s->inner, inner), up = product_of(s, &layer->up, hidden, s->up, inner);
    for (int panel = kamado_share(panels, w->index, w->size); panel < kamado_share(panels, w->index + 1, w->size); panel++) {
        kamado_multiply(&gate, panel, 0, gate.blocks, &x);
        kamado_multiply(&up, panel, 0, up.blocks, &x);
        for (int r = 0; r < s->rows; r++) {
            ptrdiff_t at = (ptrdiff_t)r * inner + panel * PANEL;
            gate_with(s->inner + at, s->up + at, PANEL);
        }
    }
}

static void work(void *data) {
    Step *s = data;
    const Model *m = s->model;
    Worker w;
    w.step = s;
    w.index = s->alone ? 0 : kamado_torch_team.index();
    w.size = s->alone ? 1 : kamado_torch_team.size();
    for (int l = 0; l < m->num_layers; l++) {
        const Layer *layer = m->layers + l;
        make_qkv(&w, layer);
        wait_for_all(&w);
        /* Nobody has looked at the other counter since two barriers ago, or will before the next. */
        if (w.index == 0) atomic_store(&s->taken[(l + 1) % 2], 0);
        make_attention(&w, layer, &s->taken[l % 2]);
        wait_for_all(&w);
        add_product(&w, s->attended, m->heads * m->dim, &layer->o);
        wait_for_all(&w);
        make_inner(&w, layer);
        wait_for_all(&w);
        add_product(&w, s->inner, m->inner, &layer->down);
        wait_for_all(&w);
    }
    Rounded x = round_rows(&w, s->x, m->norm, m->hidden, m->head.x_bits);
    Product p = product_of(s, &m->head, m->hidden, s->logits, m->head.out);
    int panels = panels_of(&m->head);
    for (int panel = kamado_share(panels, w.index, w.size); panel < kamado_share(panels, w.index + 1, w.size); panel++)
        kamado_multiply(&p, panel, 0, p.blocks, &x);
}

/* Lays a step's working memory out from `at` on; returns its bytes. */
static int64_t lay_out(Step *s, char *at, int longest, int threads) {
    const Model *m = s->model;
    int64_t all = (int64_t)m->heads * m->dim, kept = (int64_t)m->kv_heads * m->dim, used = 0;
    int64_t widest = all > m->inner ? all : m->inner;
    if (m->hidden > widest) widest = m->hidden;
    s->scores_each = (int64_t)(m->heads / m->kv_heads) * ((longest + LANES - 1) / LANES * LANES);
    struct {
        float **part;
        int64_t size;
    } parts[] = {
        {&s->normed, (int64_t)s->rows * m->hidden}, {&s->added, (int64_t)s->rows * m->hidden},
        {&s->qkv, s->rows * (all + 2 * kept)},      {&s->attended, s->rows * all},
        {&s->inner, (int64_t)s->rows * m->inner},   {&s->up, (int64_t)s->rows * m->inner},
        {&s->scores, s->scores_each * threads},     {&s->shared.scales, s->rows * (widest / GROUP)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].part = (float *)(at + used);
        used += parts[i].size * (int64_t)sizeof(float);
    }
    s->shared.sums = (int32_t *)(at + used);
    used += s->rows * (widest / GROUP) * 4;
    s->shared.values = (int8_t *)(at + used);
    return used + s->rows * widest * 2;
}

/* Bytes that `kamado_step` needs to work in; `longest`: the largest of its lengths. */
PUBLIC int64_t kamado_step_space(const Model *model, int rows, int longest, int threads) {
    Step s = {.model = model, .rows = rows};
    char none = 0;
    return lay_out(&s, &none, longest, threads > 1 ? threads : 1);
}

/* Logits (rows, vocabulary) of rows (rows, hidden), which are changed. hidden, inner and heads * dim: whole groups; dim and
   outputs but the logits: multiples of 16; pages: multiples of 8 tokens. `linked`: some rows are of one sequence. `space`
   aligned to 4 bytes. */
PUBLIC void kamado_step(
    int which, const Model *model, int rows, float *x, const float *cos, const float *sin, const int32_t *lengths,
    const int32_t *slots, const int32_t *tables, int table_width, int longest, int linked, float *logits, void *space,
    int threads
) {
    Step s = {
        .with = kamado_implementation(which),
        .model = model,
        .rows = rows,
        .alone = threads <= 1 || kamado_torch_team.run == NULL,
        .table_width = table_width,
        .linked = linked,
        .x = x,
        .cos = cos,
        .sin = sin,
        .lengths = lengths,
        .slots = slots,
        .tables = tables,
        .logits = logits,
    };
    lay_out(&s, space, longest, threads > 1 ? threads : 1);
    if (s.alone)
        work(&s);
    else
        kamado_torch_team.run(work, &s, (unsigned)threads, 0);
}

#endif
