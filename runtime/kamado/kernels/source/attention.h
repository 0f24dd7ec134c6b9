/* What the forward of a decoder is made of, for CPUs with AVX2, FMA and F16C: vectors of eight, and attention over pages. */
#ifndef KAMADO_ATTENTION_H
#define KAMADO_ATTENTION_H

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2
#define LANES 8
#define NEAR 64 /* keys whose values stay in the innermost cache while all queries go over them */
#define KEYS 128 /* what a query sees is summed up over so many keys, and these sums are put together in their order */

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

/* How pages hold numbers; of 8 bits, integers or e4m3 floats, each vector of a head has a scale. */
enum { FLOAT32, FLOAT16, INT8, FP8 };

static inline int bytes_of(int form) { return form == FLOAT32 ? 4 : form == FLOAT16 ? 2 : 1; }

static inline int has_scales(int form) { return form >= INT8; }

/* The keys, or the values, of all pages: (tokens, heads, dim), and scales (tokens, heads) for 8 bits. */
typedef struct {
    char *numbers;
    float *scales;
} Pool;

/* The pages of one sequence, as one key-value head sees them. */
typedef struct {
    Pool keys, values; /* from this head on */
    const int32_t *pages;
    int page_tokens, form;
    int heads;
    ptrdiff_t stride; /* numbers of a token */
    int fetched; /* numbers of each token that are asked for ahead, from this head's on: also other heads', which come next */
    float *restored; /* room for NEAR vectors, where they are not float32 */
} Past;

/* The queries of some rows for one key-value head: `each` of a row, (rows, each, dim). The first row sees `keys` keys, the next
   one more. */
typedef struct {
    const float *q;
    int rows, each, dim, keys;
    float scale;
} Queries;

/* Of the keys from `from` on, how many a query sees within the next KEYS. */
static inline int visible(const Queries *of, int query, int from) {
    int left = of->keys + query / of->each - from;
    return left < 0 ? 0 : left > KEYS ? KEYS : left;
}

/* Puts a vector of one head to where it is kept, in the form of the pages, as `RoundedPageStore` and `EightBits` do. */
void kamado_keep(const float *x, int dim, int form, Pool to);
/* What queries have seen of some keys, (queries, dim + 2): the sum of values times weights, the sum of weights, and the score
   that weights are relative to. */
void kamado_look(const Queries *of, const Past *past, int from, float *scores, float *seen);
/* What a query has seen, and what it has seen of the keys behind these. */
void kamado_put_together(float *seen, const float *more, int dim);
/* The values that a query comes to. */
void kamado_finish(const float *seen, int dim, float *to);

#endif
#endif
