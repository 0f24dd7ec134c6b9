/* For CPUs with AVX2, FMA and F16C. */
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2
#define MAX_ROWS 5 /* whose sums leave registers for the rest */
#define MAX_SPLIT_ROWS 3

typedef struct {
    __m256i values[4];
    int32_t sum;
} RoundedGroup;

/* One group times `top` / its largest magnitude, as whole numbers of 32 bits, and their sum; `negative`: of the magnitudes of the
   negative ones. */
INLINE RoundedGroup round_group(const float *x, float top, const int negative, float *scale) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256 in[4];
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        in[i] = _mm256_loadu_ps(x + 8 * i);
        /* Read as whole numbers magnitudes have the same order, and NaN is the largest. */
        most = _mm256_max_epi32(most, _mm256_and_si256(magnitude, _mm256_castps_si256(in[i])));
    }
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    float largest = _mm_cvtss_f32(_mm_castsi128_ps(half));
    *scale = largest < TINY ? 0.0f : largest <= LARGEST ? largest / top : __builtin_nanf("");
    __m256 inverse = _mm256_set1_ps(largest < TINY ? 0.0f : top / largest);
    RoundedGroup result;
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        result.values[i] = _mm256_cvtps_epi32(_mm256_mul_ps(in[i], inverse));
        sum = negative ? _mm256_sub_epi32(sum, _mm256_min_epi32(result.values[i], _mm256_setzero_si256()))
                       : _mm256_add_epi32(sum, result.values[i]);
    }
    half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    result.sum = _mm_cvtsi128_si32(half);
    return result;
}

/* Eight words of 32 bits, R words apart. */
INLINE void put_words(__m256i words, int R, int8_t *to) {
    if (R == 1) {
        _mm256_storeu_si256((__m256i *)to, words);
        return;
    }
    int32_t each[8];
    _mm256_storeu_si256((__m256i *)each, words);
    for (int j = 0; j < 8; j++) memcpy(to + (ptrdiff_t)4 * R * j, &each[j], 4);
}

/* Whole numbers of 8 bits, in order. */
INLINE __m256i bytes_of(const RoundedGroup *it) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i low = _mm256_packs_epi32(it->values[0], it->values[1]), high = _mm256_packs_epi32(it->values[2], it->values[3]);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
}

AVX2 void kamado_round8_avx2(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums) {
    for (int g = 0; g < n / GROUP; g++, rounded += (ptrdiff_t)GROUP * R) {
        RoundedGroup it = round_group(x + (ptrdiff_t)GROUP * g, 127.0f, 0, scales + (ptrdiff_t)g * R);
        sums[(ptrdiff_t)g * R] = it.sum;
        put_words(bytes_of(&it), R, rounded);
    }
}

AVX2 static void round_split(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums) {
    for (int g = 0; g < n / GROUP; g++, rounded += (ptrdiff_t)2 * GROUP * R) {
        RoundedGroup it = round_group(x + (ptrdiff_t)GROUP * g, 127.0f, 1, scales + (ptrdiff_t)g * R);
        sums[(ptrdiff_t)g * R] = it.sum;
        __m256i bytes = bytes_of(&it), magnitudes = _mm256_abs_epi8(bytes), signs = _mm256_cmpgt_epi8(_mm256_setzero_si256(), bytes);
        __m256i low = _mm256_unpacklo_epi32(magnitudes, signs), high = _mm256_unpackhi_epi32(magnitudes, signs);
        int64_t each[8];
        _mm256_storeu_si256((__m256i *)each, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256((__m256i *)(each + 4), _mm256_permute2x128_si256(low, high, 0x31));
        for (int j = 0; j < 8; j++) memcpy(rounded + (ptrdiff_t)8 * R * j, &each[j], 8);
    }
}

AVX2 void kamado_round16_avx2(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums) {
    /* Of four inputs the first and third, then the second and fourth. */
    const __m256i pairs = _mm256_setr_epi8(
        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15
    );
    for (int g = 0; g < n / GROUP; g++, rounded += (ptrdiff_t)2 * GROUP * R) {
        RoundedGroup it = round_group(x + (ptrdiff_t)GROUP * g, 32767.0f, 0, scales + (ptrdiff_t)g * R);
        sums[(ptrdiff_t)g * R] = it.sum;
        for (int i = 0; i < 2; i++) {
            __m256i wide = _mm256_packs_epi32(it.values[2 * i], it.values[2 * i + 1]);
            wide = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(wide, 0xd8), pairs);
            put_words(wide, R, rounded + (ptrdiff_t)32 * R * i);
        }
    }
}

/* The CPU alone asks for too few of the weights that come next at once. */
INLINE void ask(const uint8_t *ahead) { _mm_prefetch((const char *)ahead, _MM_HINT_T1); }

/* Both lie in registers here, and what was written before them is computed before. Left to itself the compiler computes several
   rows at once, and moves their sums to memory and back for it (a seventh of the time, GCC 12). */
INLINE void hold(__m256i *a, __m256i *b) { __asm__ volatile("" : "+x"(*a), "+x"(*b)); }

/* The sums of a row after one more group. */
INLINE void after_group(__m256 *sums, const __m256i *whole, const __m256 *scales, float x_scale) {
    for (int half = 0; half < 2; half++)
        sums[half] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[half]), _mm256_mul_ps(scales[half], _mm256_set1_ps(x_scale)), sums[half]);
}

INLINE void scales_at(const Tile *tile, int g, __m256 *scales) {
    for (int half = 0; half < 2; half++)
        scales[half] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(tile->scales + (ptrdiff_t)PANEL * g + 8 * half)));
}

INLINE __m256i word_at(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
}

INLINE void store(const Tile *tile, const int R, const int vectors, const __m256 *sums) {
    for (int r = 0; r < R; r++, sums += vectors) {
        float *y = tile->y + r * tile->y_stride;
        if (tile->width == 8 * vectors) {
            for (int v = 0; v < vectors; v++) {
                __m256 sum = sums[v];
                if (tile->bias) sum = _mm256_add_ps(sum, _mm256_loadu_ps(tile->bias + 8 * v));
                _mm256_storeu_ps(y + 8 * v, sum);
            }
        } else {
            float all[WIDEST * PANEL];
            for (int v = 0; v < vectors; v++) _mm256_storeu_ps(all + 8 * v, sums[v]);
            for (int o = 0; o < 8 * vectors && o < tile->width; o++) y[o] = all[o] + (tile->bias ? tile->bias[o] : 0.0f);
        }
    }
}

/* Magnitudes of activations times weights with their signs: pairs stay within 16 bits (2 * 127 * 128). Signs are turned by
   turning all bits, which any unit of the CPU can do; that gives a magnitude too little for each negative activation. Weights
   are read anew for each row, as part of an instruction: a core that runs two threads is short of instructions first. */
INLINE void multiply_split(const Tile *tile, const int R, const int panels) {
    const int vectors = 2 * panels;
    const ptrdiff_t apart = (ptrdiff_t)tile->groups * PANEL * GROUP;
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *values = tile->values, *ahead = tile->ahead;
    const int8_t *x = tile->x;
    __m256 sums[MAX_SPLIT_ROWS * 2 * WIDEST];
    for (int i = 0; i < R * vectors; i++) sums[i] = _mm256_setzero_ps();
    for (int g = 0; g < tile->groups; g++) {
        __m256i whole[MAX_SPLIT_ROWS][2 * WIDEST];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < vectors; v++) whole[r][v] = _mm256_set1_epi32(tile->x_sums[(ptrdiff_t)g * R + r]);
        for (int j = 0; j < 8; j++, values += 64, ahead += tile->ahead_step, x += 8 * R) {
            for (int panel = 0; panel < panels; panel++) ask(ahead + panel * apart);
            for (int r = 0; r < R; r++) {
                __m256i magnitudes = word_at(x + 8 * r), signs = word_at(x + 8 * r + 4);
                for (int v = 0; v < vectors; v++) {
                    __m256i w = _mm256_loadu_si256((const __m256i *)(values + v / 2 * apart + 32 * (v % 2)));
                    __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_xor_si256(w, signs));
                    whole[r][v] = _mm256_add_epi32(whole[r][v], _mm256_madd_epi16(ones, pairs));
                }
                for (int v = 0; v < vectors; v += 2) hold(whole[r] + v, whole[r] + v + 1);
                __asm__ volatile("" ::: "memory"); /* no weights are kept for the next row */
            }
        }
        for (int panel = 0; panel < panels; panel++) {
            __m256 scales[2];
            scales_at(tile, g + panel * tile->groups, scales);
            for (int r = 0; r < R; r++)
                after_group(sums + r * vectors + 2 * panel, whole[r] + 2 * panel, scales, tile->x_scales[(ptrdiff_t)g * R + r]);
        }
    }
    store(tile, R, vectors, sums);
}

INLINE void multiply8x8(const Tile *tile, const int R) { multiply_split(tile, R, 1); }
INLINE void wide8x8(const Tile *tile, const int R) { multiply_split(tile, R, 2); }

INLINE void multiply8x16(const Tile *tile, const int R) {
    const uint8_t *values = tile->values, *ahead = tile->ahead;
    const int8_t *x = tile->x;
    __m256 sums[MAX_ROWS][2], scales[2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int g = 0; g < tile->groups; g++) {
        __m256i whole[MAX_ROWS][2];
        for (int r = 0; r < R; r++) whole[r][0] = whole[r][1] = _mm256_setzero_si256();
        for (int j = 0; j < 8; j++, values += 64, ahead += tile->ahead_step, x += 8 * R) {
            ask(ahead);
            __m256i even[2], odd[2];
            for (int half = 0; half < 2; half++) {
                __m256i w = _mm256_loadu_si256((const __m256i *)(values + 32 * half));
                even[half] = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
                odd[half] = _mm256_srai_epi16(w, 8);
            }
            hold(even, even + 1);
            hold(odd, odd + 1);
            for (int r = 0; r < R; r++) {
                __m256i first = word_at(x + 4 * r), second = word_at(x + 4 * (R + r));
                for (int half = 0; half < 2; half++) {
                    whole[r][half] = _mm256_add_epi32(whole[r][half], _mm256_madd_epi16(even[half], first));
                    whole[r][half] = _mm256_add_epi32(whole[r][half], _mm256_madd_epi16(odd[half], second));
                }
                hold(whole[r], whole[r] + 1);
            }
        }
        scales_at(tile, g, scales);
        for (int r = 0; r < R; r++) after_group(sums[r], whole[r], scales, tile->x_scales[(ptrdiff_t)g * R + r]);
    }
    store(tile, R, 2, &sums[0][0]);
}

/* Weights as 0 to 15: all eight pairs of a group fit into 16 bits (8 * 2 * 15 * 127). What is 8 too much for each input
   goes away with the sum of the activations. */
INLINE void multiply4x8(const Tile *tile, const int R) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    const uint8_t *values = tile->values, *ahead = tile->ahead;
    const int8_t *x = tile->x;
    __m256 sums[MAX_ROWS][2], scales[2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int g = 0; g < tile->groups; g++, x += GROUP * R) {
        __m256i pairs[MAX_ROWS][2];
        for (int r = 0; r < R; r++) pairs[r][0] = pairs[r][1] = _mm256_setzero_si256();
        for (int j = 0; j < 4; j++, values += 64, ahead += tile->ahead_step) {
            ask(ahead);
            __m256i w[2], above[2];
            for (int half = 0; half < 2; half++) {
                __m256i both = _mm256_loadu_si256((const __m256i *)(values + 32 * half));
                w[half] = _mm256_and_si256(low, both);
                above[half] = _mm256_and_si256(low, _mm256_srli_epi16(both, 4));
            }
            hold(w, w + 1);
            hold(above, above + 1);
            for (int r = 0; r < R; r++) {
                __m256i first = word_at(x + 4 * (R * j + r)), second = word_at(x + 4 * (R * (j + 4) + r));
                for (int half = 0; half < 2; half++) {
                    pairs[r][half] = _mm256_add_epi16(pairs[r][half], _mm256_maddubs_epi16(w[half], first));
                    pairs[r][half] = _mm256_add_epi16(pairs[r][half], _mm256_maddubs_epi16(above[half], second));
                }
                hold(pairs[r], pairs[r] + 1);
            }
        }
        scales_at(tile, g, scales);
        for (int r = 0; r < R; r++) {
            __m256i excess = _mm256_set1_epi32(8 * tile->x_sums[(ptrdiff_t)g * R + r]), whole[2];
            for (int half = 0; half < 2; half++)
                whole[half] = _mm256_sub_epi32(_mm256_madd_epi16(ones, pairs[r][half]), excess);
            after_group(sums[r], whole, scales, tile->x_scales[(ptrdiff_t)g * R + r]);
        }
    }
    store(tile, R, 2, &sums[0][0]);
}

/* Loops over rows are laid out for each number of them. */
#define CASE(name, R) case R: name(tile, R); break;
#define FOR_EACH_R(name, more)                              \
    AVX2 static void name##_avx2(const Tile *tile, int R) { \
        switch (R) { CASE(name, 1) CASE(name, 2) CASE(name, 3) more } \
    }
FOR_EACH_R(multiply8x8, )
FOR_EACH_R(wide8x8, )
FOR_EACH_R(multiply8x16, CASE(multiply8x16, 4) CASE(multiply8x16, 5))
FOR_EACH_R(multiply4x8, CASE(multiply4x8, 4) CASE(multiply4x8, 5))

const Implementation kamado_avx2 = {
    .name = "avx2",
    .max_rows = MAX_ROWS,
    .max_split_rows = MAX_SPLIT_ROWS,
    .round8 = kamado_round8_avx2,
    .round16 = kamado_round16_avx2,
    .round_split = round_split,
    .multiply8x8 = multiply8x8_avx2,
    .multiply8x16 = multiply8x16_avx2,
    .multiply4x8 = multiply4x8_avx2,
    .wide8x8 = wide8x8_avx2,
};

#endif
