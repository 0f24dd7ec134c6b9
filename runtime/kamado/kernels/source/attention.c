/* Attention of some queries over keys and values in pages, a few keys at a time. */
#include "attention.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

#define VALUES 64 /* values of a head that are summed up at once */
#define NEAR 64 /* keys whose values stay in the innermost cache while all queries go over them */

/* The sums of eight vectors. */
INLINE __m256 sums_of(const __m256 *v) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/* Of tokens from a multiple of eight on: pages are whole multiples of that. */
INLINE ptrdiff_t place(const Past *past, int token) {
    return ((ptrdiff_t)past->pages[token / past->page_tokens] * past->page_tokens + token % past->page_tokens) * past->stride;
}

/* Asks for what comes next: heads of tokens lie too far apart for the CPU to guess it. */
INLINE void fetch(const Past *past, const float *from) {
    for (int j = 0; j < LANES; j++, from += past->stride)
        for (int i = 0; i < past->fetched; i += 16) _mm_prefetch((const char *)(from + i), _MM_HINT_T1);
}

/* Products of queries with the next KEYS keys, eight keys at a time; what is in a page behind the last is overwritten. */
INLINE void score(const Queries *of, const int dim, const Past *past, int from, float *scores) {
    int count = of->rows * of->each, most = visible(of, count - 1, from);
    __m256 scale = _mm256_set1_ps(of->scale);
    for (int t = 0; t < most; t += LANES) {
        ptrdiff_t at = place(past, from + t);
        const float *k = past->keys + at;
        if (t + LANES < most) fetch(past, past->keys + place(past, from + t + LANES));
        fetch(past, past->values + at);
        int hidden = from + t + 1 - of->keys, i = hidden > 0 ? hidden * of->each : 0;
        for (; i < count; i++) {
            const float *q = of->q + (ptrdiff_t)i * dim;
            __m256 sums[LANES];
            for (int j = 0; j < LANES; j++) sums[j] = _mm256_setzero_ps();
            for (int d = 0; d < dim; d += LANES) {
                __m256 query = _mm256_loadu_ps(q + d);
                for (int j = 0; j < LANES; j++)
                    sums[j] = _mm256_fmadd_ps(query, _mm256_loadu_ps(k + j * past->stride + d), sums[j]);
            }
            _mm256_storeu_ps(scores + (ptrdiff_t)i * KEYS + t, _mm256_mul_ps(sums_of(sums), scale));
        }
    }
    for (int i = 0; i < count; i++)
        for (int t = visible(of, i, from); t % LANES; t++) scores[(ptrdiff_t)i * KEYS + t] = -INFINITY;
}

/* Scores become weights, relative to the highest, which is put behind their sum. */
AVX2 static void weigh(float *scores, int length, float *total) {
    int padded = (length + LANES - 1) / LANES * LANES;
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
    total[0] = sum_of(sum);
    total[1] = top;
}

/* `vectors` times eight values of a head, from `first` on: values of `count` tokens times weights, added to `to`. */
INLINE void blend(const Past *past, const float *weights, int token, int count, int first, const int vectors, float *to) {
    __m256 sums[VALUES / LANES];
    for (int i = 0; i < vectors; i++) sums[i] = _mm256_loadu_ps(to + first + LANES * i);
    for (int t = 0; t < count; t += LANES) {
        const float *v = past->values + place(past, token + t) + first;
        int here = count - t < LANES ? count - t : LANES;
        for (int j = 0; j < here; j++, v += past->stride) {
            __m256 weight = _mm256_set1_ps(weights[t + j]);
            for (int i = 0; i < vectors; i++) sums[i] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(v + LANES * i), sums[i]);
        }
    }
    for (int i = 0; i < vectors; i++) _mm256_storeu_ps(to + first + LANES * i, sums[i]);
}

AVX2 void kamado_look(const Queries *of, const Past *past, int from, float *scores, float *seen) {
    int dim = of->dim, count = of->rows * of->each, most = visible(of, count - 1, from);
    ptrdiff_t wide = dim + 2;
    switch (dim) {
        case 64: score(of, 64, past, from, scores); break;
        case 128: score(of, 128, past, from, scores); break;
        default: score(of, dim, past, from, scores);
    }
    for (int i = 0; i < count; i++) {
        int length = visible(of, i, from);
        if (!length) continue;
        weigh(scores + (ptrdiff_t)i * KEYS, length, seen + i * wide + dim);
        memset(seen + i * wide, 0, sizeof(float) * (size_t)dim);
    }
    for (int begin = 0; begin < most; begin += NEAR) {
        for (int i = 0; i < count; i++) {
            const float *weights = scores + (ptrdiff_t)i * KEYS + begin;
            int length = visible(of, i, from) - begin, first = 0;
            if (length > NEAR) length = NEAR;
            if (length < 1) continue;
            for (; first + VALUES <= dim; first += VALUES)
                blend(past, weights, from + begin, length, first, VALUES / LANES, seen + i * wide);
            if (first < dim) blend(past, weights, from + begin, length, first, (dim - first) / LANES, seen + i * wide);
        }
    }
}

AVX2 void kamado_put_together(float *seen, const float *more, int dim) {
    float top = seen[dim + 1] > more[dim + 1] ? seen[dim + 1] : more[dim + 1];
    __m256 before = exp_of(_mm256_set1_ps(seen[dim + 1] - top)), behind = exp_of(_mm256_set1_ps(more[dim + 1] - top));
    for (int i = 0; i < dim; i += LANES) {
        __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(seen + i), before);
        _mm256_storeu_ps(seen + i, _mm256_fmadd_ps(_mm256_loadu_ps(more + i), behind, sum));
    }
    __m256 total = _mm256_mul_ps(_mm256_set1_ps(seen[dim]), before);
    seen[dim] = _mm256_cvtss_f32(_mm256_fmadd_ps(_mm256_set1_ps(more[dim]), behind, total));
    seen[dim + 1] = top;
}

AVX2 void kamado_finish(const float *seen, int dim, float *to) {
    __m256 by = _mm256_set1_ps(1.0f / seen[dim]);
    for (int i = 0; i < dim; i += LANES) _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_loadu_ps(seen + i), by));
}

#endif
