/* Attention of some queries over keys and values in pages, a few keys at a time. */
#include "attention.h"

#if defined(__x86_64__)

#include <float.h>
#include <math.h>
#include <string.h>

#define TILE 3 /* queries that are computed at once: their sums fill the registers */
#define VECTORS 4 /* of values that are summed up at once */
#define MOST_HALF 65504.0f /* larger numbers are kept as this one */

/* Of neighbours, of `a` and of `b` in turn: as one instruction does, which takes longer. */
INLINE __m256 sums_of_pairs(__m256 a, __m256 b) { return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)); }

/* The sums of four vectors. */
INLINE __m128 sums_of(const __m256 *v) {
    __m256 pairs = sums_of_pairs(sums_of_pairs(v[0], v[1]), sums_of_pairs(v[2], v[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/* Of a token, and those behind it up to a multiple of eight: pages are whole multiples of that. */
INLINE ptrdiff_t place(const Past *past, int token) {
    return (ptrdiff_t)past->pages[token / past->page_tokens] * past->page_tokens + token % past->page_tokens;
}

INLINE const char *vector_at(const Past *past, Pool pool, ptrdiff_t place) {
    return pool.numbers + place * past->stride * bytes_of(past->form);
}

/* Eight numbers, exactly, but for their scale. */
INLINE __m256 eight_at(const char *at, const int form) {
    if (form == FLOAT32) return _mm256_loadu_ps((const float *)at);
    if (form == FLOAT16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
    __m128i codes = _mm_loadl_epi64((const __m128i *)at);
    if (form == INT8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    /* The bits of e4m3, moved, are a float16 of a 256th of the number. */
    return _mm256_cvtph_ps(_mm_andnot_si128(_mm_set1_epi16(0x4000), _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7)));
}

/* What the numbers of four tokens that lie one behind the other are multiplied with. */
INLINE __m128 scales_at(const Past *past, Pool pool, ptrdiff_t place, const int form) {
    const float *at = pool.scales + place * past->heads;
    __m128 four = _mm_setr_ps(at[0], at[past->heads], at[2 * past->heads], at[3 * past->heads]);
    return form == FP8 ? _mm_mul_ps(four, _mm_set1_ps(256.0f)) : four;
}

/* Whether so many queries read what is kept as it is. For more of them it is restored once, which gives the same bits. */
INLINE int reads_as_kept(const int form, int count) {
    return form == FLOAT32 || count <= (form == FLOAT16 ? 2 * TILE : TILE);
}

/* Vectors of tokens that lie one behind the other, as float32, but for their scales. */
INLINE void restore(const Past *past, Pool pool, ptrdiff_t place, int count, const int dim, const int form, float *to) {
    const char *from = vector_at(past, pool, place);
    for (int t = 0; t < count; t++, from += past->stride * bytes_of(form), to += dim)
        for (int d = 0; d < dim; d += LANES) _mm256_storeu_ps(to + d, eight_at(from + d * bytes_of(form), form));
}

/* Of the keys from `from` on, how many a query sees within the next NEAR. */
INLINE int near(const Queries *of, int query, int from) {
    int count = visible(of, query, from);
    return count < NEAR ? count : NEAR;
}

/* Asks for what comes next: heads of tokens lie too far apart for the CPU to guess it. */
INLINE void fetch(const Past *past, Pool pool, ptrdiff_t place) {
    const char *from = vector_at(past, pool, place);
    for (int j = 0; j < LANES; j++, from += past->stride * bytes_of(past->form))
        for (int i = 0; i < past->fetched * bytes_of(past->form); i += 64) _mm_prefetch(from + i, _MM_HINT_T1);
}

/* Of so many queries left, how many are next. */
INLINE int tile_of(int left) { return left < TILE ? left : TILE; }

/* Products of `some` queries with eight keys, `apart` bytes from one to the next. */
INLINE void score_some(
    const float *q, const int some, const int dim, const char *k, ptrdiff_t apart, const int form, const __m128 *scales, float *scores
) {
    for (int half = 0; half < 2; half++, k += 4 * apart) {
        __m256 sums[TILE][4];
        for (int i = 0; i < some; i++)
            for (int j = 0; j < 4; j++) sums[i][j] = _mm256_setzero_ps();
        for (int d = 0; d < dim; d += LANES) {
            __m256 query[TILE];
            for (int i = 0; i < some; i++) query[i] = _mm256_loadu_ps(q + (ptrdiff_t)i * dim + d);
            for (int j = 0; j < 4; j++) {
                __m256 key = eight_at(k + j * apart + d * bytes_of(form), form);
                for (int i = 0; i < some; i++) sums[i][j] = _mm256_fmadd_ps(query[i], key, sums[i][j]);
            }
        }
        for (int i = 0; i < some; i++)
            _mm_storeu_ps(scores + (ptrdiff_t)i * KEYS + 4 * half, _mm_mul_ps(sums_of(sums[i]), scales[half]));
    }
}

/* Products of `count` queries with eight keys. */
INLINE void score_eight(
    const float *q, int count, const int dim, const char *k, ptrdiff_t apart, const int form, const __m128 *scales, float *scores
) {
    for (int some; count > 0; count -= some, q += (ptrdiff_t)some * dim, scores += (ptrdiff_t)some * KEYS) {
        some = tile_of(count);
        switch (some) {
            case TILE: score_some(q, TILE, dim, k, apart, form, scales, scores); break;
            case 2: score_some(q, 2, dim, k, apart, form, scales, scores); break;
            default: score_some(q, 1, dim, k, apart, form, scales, scores);
        }
    }
}

/* Products of queries with the next KEYS keys, eight keys at a time; what is in a page behind the last is overwritten. */
INLINE void score(const Queries *of, const int dim, const Past *past, const int form, int from, float *scores) {
    int count = of->rows * of->each, most = visible(of, count - 1, from);
    __m128 scales[2] = {_mm_set1_ps(of->scale), _mm_set1_ps(of->scale)};
    for (int t = 0; t < most; t += LANES) {
        ptrdiff_t at = place(past, from + t);
        if (t + LANES < most) fetch(past, past->keys, place(past, from + t + LANES));
        fetch(past, past->values, at);
        if (has_scales(form))
            for (int half = 0; half < 2; half++)
                scales[half] = _mm_mul_ps(_mm_set1_ps(of->scale), scales_at(past, past->keys, at + 4 * half, form));
        int hidden = from + t + 1 - of->keys, first = hidden > 0 ? hidden * of->each : 0;
        const float *q = of->q + (ptrdiff_t)first * dim;
        float *to = scores + (ptrdiff_t)first * KEYS + t;
        if (!reads_as_kept(form, count)) {
            restore(past, past->keys, at, LANES, dim, form, past->restored);
            score_eight(q, count - first, dim, (const char *)past->restored, dim * (ptrdiff_t)sizeof(float), FLOAT32, scales, to);
        } else
            score_eight(q, count - first, dim, vector_at(past, past->keys, at), past->stride * bytes_of(form), form, scales, to);
    }
    for (int i = 0; i < count; i++)
        for (int t = visible(of, i, from); t % LANES; t++) scores[(ptrdiff_t)i * KEYS + t] = -INFINITY;
}

/* All bits in the first `count` lanes, none in the others. */
INLINE __m256 first_lanes(int count) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
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
    for (int t = 0; t < padded; t += LANES) {
        __m256 weights = exp_of(_mm256_sub_ps(_mm256_loadu_ps(scores + t), _mm256_set1_ps(top)));
        if (length - t < LANES) weights = _mm256_and_ps(weights, first_lanes(length - t));
        _mm256_storeu_ps(scores + t, weights);
        sum = _mm256_add_ps(sum, weights);
    }
    total[0] = sum_of(sum);
    total[1] = top;
}

/* Weights of the next KEYS values take their scales in. */
INLINE void weigh_scales(const Queries *of, const Past *past, const int form, int from, float *weights) {
    int count = of->rows * of->each, most = visible(of, count - 1, from);
    for (int t = 0; t < most; t += 4) {
        __m128 scales = scales_at(past, past->values, place(past, from + t), form);
        for (int i = 0; i < count; i++) {
            float *four = weights + (ptrdiff_t)i * KEYS + t;
            if (t < visible(of, i, from)) _mm_storeu_ps(four, _mm_mul_ps(_mm_loadu_ps(four), scales));
        }
    }
}

/* `vectors` times eight values of a head, from `first` on: values of `count` tokens times weights, added to what each of
   `some` queries has in `to`, which lie `wide` apart. */
INLINE void blend(
    const Past *past, const int form, const float *weights, int token, int count, int first, const int some, const int vectors, float *to,
    ptrdiff_t wide
) {
    __m256 sums[TILE][VECTORS];
    for (int i = 0; i < some; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = _mm256_loadu_ps(to + i * wide + first + LANES * v);
    for (int t = 0, here; t < count; t += here) {
        const char *value = vector_at(past, past->values, place(past, token + t)) + first * bytes_of(form);
        here = LANES - (token + t) % LANES;
        if (here > count - t) here = count - t;
        for (int j = 0; j < here; j++, value += past->stride * bytes_of(form)) {
            __m256 weight[TILE];
            for (int i = 0; i < some; i++) weight[i] = _mm256_set1_ps(weights[(ptrdiff_t)i * KEYS + t + j]);
            for (int v = 0; v < vectors; v++) {
                __m256 eight = eight_at(value + LANES * v * bytes_of(form), form);
                for (int i = 0; i < some; i++) sums[i][v] = _mm256_fmadd_ps(weight[i], eight, sums[i][v]);
            }
        }
    }
    for (int i = 0; i < some; i++)
        for (int v = 0; v < vectors; v++) _mm256_storeu_ps(to + i * wide + first + LANES * v, sums[i][v]);
}

/* The same for all values of a head. */
INLINE void blend_all(const Past *past, const int form, const float *weights, int token, int count, int dim, const int some, float *to) {
    int first = 0;
    for (; first + VECTORS * LANES <= dim; first += VECTORS * LANES)
        blend(past, form, weights, token, count, first, some, VECTORS, to, dim + 2);
    for (; first < dim; first += LANES) blend(past, form, weights, token, count, first, some, 1, to, dim + 2);
}

/* The same for all queries and the next NEAR keys from `begin` on, which is `token` in `past`. */
INLINE void blend_near(const Queries *of, const Past *past, const int form, const float *weights, int begin, int token, float *seen) {
    int dim = of->dim, count = of->rows * of->each;
    ptrdiff_t wide = dim + 2;
    for (int i = 0, some; i < count; i += some) {
        const float *its = weights + (ptrdiff_t)i * KEYS;
        float *to = seen + i * wide;
        int joint = near(of, i, begin);
        some = tile_of(count - i);
        switch (some) {
            case TILE: blend_all(past, form, its, token, joint, dim, TILE, to); break;
            case 2: blend_all(past, form, its, token, joint, dim, 2, to); break;
            default: blend_all(past, form, its, token, joint, dim, 1, to);
        }
        for (int next = 1; next < some; next++) { /* may see a few more than the first of them */
            int more = near(of, i + next, begin) - joint;
            if (more) blend_all(past, form, its + next * KEYS + joint, token + joint, more, dim, 1, to + next * wide);
        }
    }
}

INLINE void look(const Queries *of, const Past *past, const int form, int from, float *scores, float *seen) {
    int dim = of->dim, count = of->rows * of->each, most = visible(of, count - 1, from);
    ptrdiff_t wide = dim + 2;
    switch (dim) {
        case 64: score(of, 64, past, form, from, scores); break;
        case 128: score(of, 128, past, form, from, scores); break;
        default: score(of, dim, past, form, from, scores);
    }
    for (int i = 0; i < count; i++) {
        int length = visible(of, i, from);
        if (!length) continue;
        weigh(scores + (ptrdiff_t)i * KEYS, length, seen + i * wide + dim);
        memset(seen + i * wide, 0, sizeof(float) * (size_t)dim);
    }
    if (has_scales(form)) weigh_scales(of, past, form, from, scores);
    for (int begin = from, end = from + most; begin < end; begin += NEAR) {
        const float *weights = scores + begin - from;
        if (reads_as_kept(form, count)) {
            blend_near(of, past, form, weights, begin, begin, seen);
            continue;
        }
        for (int token = begin; token < begin + NEAR && token < end; token += LANES) {
            int some = end - token < LANES ? end - token : LANES;
            restore(past, past->values, place(past, token), some, dim, form, past->restored + (ptrdiff_t)(token - begin) * dim);
        }
        int32_t only = 0;
        Past restored = {.values = {(char *)past->restored, NULL}, .pages = &only, .page_tokens = NEAR, .form = FLOAT32, .stride = dim};
        blend_near(of, &restored, FLOAT32, weights, begin, 0, seen);
    }
}

AVX2 void kamado_look(const Queries *of, const Past *past, int from, float *scores, float *seen) {
    switch (past->form) {
        case FLOAT32: look(of, past, FLOAT32, from, scores, seen); break;
        case FLOAT16: look(of, past, FLOAT16, from, scores, seen); break;
        case INT8: look(of, past, INT8, from, scores, seen); break;
        default: look(of, past, FP8, from, scores, seen);
    }
}

/* The largest magnitude; NaN where there is infinity or NaN. */
INLINE float largest(const float *x, int dim) {
    __m256 most = _mm256_setzero_ps(), none = _mm256_setzero_ps();
    for (int d = 0; d < dim; d += LANES) {
        __m256 v = _mm256_loadu_ps(x + d);
        most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v));
        none = _mm256_add_ps(none, _mm256_mul_ps(v, _mm256_setzero_ps()));
    }
    float lanes[LANES], top = 0.0f;
    _mm256_storeu_ps(lanes, most);
    for (int i = 0; i < LANES; i++) top = lanes[i] > top ? lanes[i] : top;
    return top + sum_of(none);
}

/* The nearest e4m3 of numbers up to 448, ties to even, in the low byte of each lane. */
INLINE __m256i e4m3_of(__m256 x) {
    __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    __m256i bits = _mm256_castps_si256(magnitude);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    __m256i usual = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7ffff)), odd), 20);
    usual = _mm256_sub_epi32(usual, _mm256_set1_epi32((127 - 7) << 3));
    __m256i small = _mm256_cvtps_epi32(_mm256_mul_ps(magnitude, _mm256_set1_ps(512.0f))); /* without an exponent */
    __m256 is_small = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ);
    __m256i code = _mm256_blendv_epi8(usual, small, _mm256_castps_si256(is_small));
    return _mm256_or_si256(code, _mm256_slli_epi32(_mm256_srli_epi32(_mm256_castps_si256(x), 31), 7));
}

AVX2 void kamado_keep(const float *x, int dim, int form, Pool to) {
    if (form == FLOAT32) {
        memcpy(to.numbers, x, sizeof(float) * (size_t)dim);
        return;
    }
    if (form == FLOAT16) {
        for (int d = 0; d < dim; d += LANES) { /* infinity becomes NaN, which stays */
            __m256 v = _mm256_loadu_ps(x + d), none = _mm256_sub_ps(v, v);
            v = _mm256_add_ps(_mm256_max_ps(_mm256_set1_ps(-MOST_HALF), _mm256_min_ps(_mm256_set1_ps(MOST_HALF), v)), none);
            _mm_storeu_si128((__m128i *)(to.numbers + 2 * d), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        }
        return;
    }
    float top = largest(x, dim) / (form == INT8 ? 127.0f : 448.0f);
    *to.scales = top < FLT_MIN ? FLT_MIN : top;
    for (int d = 0; d < dim; d += LANES) {
        __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + d), _mm256_set1_ps(*to.scales));
        __m256i codes = form == INT8 ? _mm256_and_si256(_mm256_cvtps_epi32(v), _mm256_set1_epi32(0xff)) : e4m3_of(v);
        __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
        _mm_storel_epi64((__m128i *)(to.numbers + d), _mm_packus_epi16(half, half));
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
