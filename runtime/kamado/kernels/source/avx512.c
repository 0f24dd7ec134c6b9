/* For CPUs with AVX-512 and its instructions for sums of products of whole numbers (VNNI). */
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX512
#define MAX_ROWS 12

INLINE __m512i word_at(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

/* Weights that come next: the CPU alone asks for too few of them at once. */
INLINE void ask(const uint8_t *ahead) { _mm_prefetch((const char *)ahead, _MM_HINT_T1); }

INLINE void add_group(const Tile *tile, const int R, int g, const __m512i *whole, __m512 *sums) {
    __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(tile->scales + (ptrdiff_t)PANEL * g)));
    for (int r = 0; r < R; r++) {
        __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(tile->x_scales[(ptrdiff_t)g * R + r]));
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r]), scale, sums[r]);
    }
}

INLINE void store(const Tile *tile, const int R, const __m512 *sums) {
    __mmask16 there = (__mmask16)((1u << tile->width) - 1);
    for (int r = 0; r < R; r++) {
        __m512 sum = sums[r];
        if (tile->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, tile->bias));
        _mm512_mask_storeu_ps(tile->y + r * tile->y_stride, there, sum);
    }
}

/* The instruction wants one side without a sign: weights are raised by 128, and 128 times the sum of the activations is
   taken off beforehand. */
INLINE void multiply8x8(const Tile *tile, const int R) {
    const __m512i raise = _mm512_set1_epi8((char)0x80);
    const uint8_t *values = tile->values, *ahead = tile->ahead;
    const int8_t *x = tile->x;
    __m512 sums[MAX_ROWS];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int g = 0; g < tile->groups; g++) {
        __m512i whole[MAX_ROWS];
        for (int r = 0; r < R; r++)
            whole[r] = _mm512_slli_epi32(_mm512_set1_epi32(-tile->x_sums[(ptrdiff_t)g * R + r]), 7);
        for (int j = 0; j < 8; j++, values += 64, ahead += tile->ahead_step, x += 4 * R) {
            ask(ahead);
            __m512i w = _mm512_xor_si512(raise, _mm512_loadu_si512(values));
            for (int r = 0; r < R; r++) whole[r] = _mm512_dpbusd_epi32(whole[r], w, word_at(x + 4 * r));
        }
        add_group(tile, R, g, whole, sums);
    }
    store(tile, R, sums);
}

INLINE void multiply8x16(const Tile *tile, const int R) {
    const uint8_t *values = tile->values, *ahead = tile->ahead;
    const int8_t *x = tile->x;
    __m512 sums[MAX_ROWS];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int g = 0; g < tile->groups; g++) {
        __m512i whole[MAX_ROWS];
        for (int r = 0; r < R; r++) whole[r] = _mm512_setzero_si512();
        for (int j = 0; j < 8; j++, values += 64, ahead += tile->ahead_step, x += 8 * R) {
            ask(ahead);
            __m512i w = _mm512_loadu_si512(values);
            __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), odd = _mm512_srai_epi16(w, 8);
            for (int r = 0; r < R; r++) whole[r] = _mm512_dpwssd_epi32(whole[r], even, word_at(x + 4 * r));
            for (int r = 0; r < R; r++) whole[r] = _mm512_dpwssd_epi32(whole[r], odd, word_at(x + 4 * (R + r)));
        }
        add_group(tile, R, g, whole, sums);
    }
    store(tile, R, sums);
}

INLINE void multiply4x8(const Tile *tile, const int R) {
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *values = tile->values, *ahead = tile->ahead;
    const int8_t *x = tile->x;
    __m512 sums[MAX_ROWS];
    for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
    for (int g = 0; g < tile->groups; g++, x += GROUP * R) {
        __m512i whole[MAX_ROWS];
        for (int r = 0; r < R; r++)
            whole[r] = _mm512_slli_epi32(_mm512_set1_epi32(-tile->x_sums[(ptrdiff_t)g * R + r]), 3);
        for (int j = 0; j < 4; j++, values += 64, ahead += tile->ahead_step) {
            ask(ahead);
            __m512i both = _mm512_loadu_si512(values);
            __m512i w = _mm512_and_si512(low, both), above = _mm512_and_si512(low, _mm512_srli_epi16(both, 4));
            for (int r = 0; r < R; r++) whole[r] = _mm512_dpbusd_epi32(whole[r], w, word_at(x + 4 * (R * j + r)));
            for (int r = 0; r < R; r++) whole[r] = _mm512_dpbusd_epi32(whole[r], above, word_at(x + 4 * (R * (j + 4) + r)));
        }
        add_group(tile, R, g, whole, sums);
    }
    store(tile, R, sums);
}

/* Loops over rows are laid out for each number of them. */
#define CASE(name, R) case R: name(tile, R); break;
#define FOR_EACH_R(name)                                       \
    AVX512 static void name##_avx512(const Tile *tile, int R) { \
        switch (R) {                                           \
            CASE(name, 1) CASE(name, 2) CASE(name, 3) CASE(name, 4) CASE(name, 5) CASE(name, 6)      \
            CASE(name, 7) CASE(name, 8) CASE(name, 9) CASE(name, 10) CASE(name, 11) CASE(name, 12)   \
        }                                                      \
    }
FOR_EACH_R(multiply8x8)
FOR_EACH_R(multiply8x16)
FOR_EACH_R(multiply4x8)

const Implementation kamado_avx512 = {
    .name = "avx512-vnni",
    .max_rows = MAX_ROWS,
    .round8 = kamado_round8_avx2,
    .round16 = kamado_round16_avx2,
    .multiply8x8 = multiply8x8_avx512,
    .multiply8x16 = multiply8x16_avx512,
    .multiply4x8 = multiply4x8_avx512,
};

#endif
