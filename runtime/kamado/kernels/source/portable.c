/* For any CPU; what the others compute, but for the last bit of float32. */
#include "kernels.h"

#include <math.h>
#include <string.h>

static float half_value(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff, bits;
    float value = (float)magnitude * 0x1p-24f; /* below 2^-14 that is all */
    if (magnitude >= 0x7c00) {
        bits = 0x7f800000u | (magnitude & 0x3ff) << 13;
    } else if (magnitude >= 0x400) {
        bits = (magnitude + (112u << 10)) << 13;
    } else {
        memcpy(&bits, &value, 4);
    }
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

/* The largest magnitude; NaN is larger than any. */
static float largest(const float *x) {
    uint32_t most = 0;
    float value;
    for (int i = 0; i < GROUP; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    memcpy(&value, &most, 4);
    return value;
}

static inline void round_row(const float *x, int n, int R, int bits, int8_t *rounded, float *scales, int32_t *sums) {
    const float top = bits == 16 ? 32767.0f : 127.0f;
    for (int g = 0; g < n / GROUP; g++, x += GROUP, rounded += (ptrdiff_t)GROUP * bits / 8 * R, scales += R, sums += R) {
        float most = largest(x);
        int usable = most >= TINY && most <= LARGEST;
        float inverse = usable ? top / most : 0.0f;
        *scales = most < TINY ? 0.0f : most <= LARGEST ? most / top : NAN;
        *sums = 0;
        for (int i = 0; i < GROUP; i++) {
            int32_t value = usable ? (int32_t)rintf(x[i] * inverse) : 0;
            *sums += value;
            if (bits == 8) {
                rounded[(ptrdiff_t)(i / 4) * R * 4 + i % 4] = (int8_t)value;
            } else {
                int16_t wide = (int16_t)value;
                memcpy(rounded + (ptrdiff_t)(i / 4 * 2 + i % 2) * R * 4 + i % 4 / 2 * 2, &wide, 2);
            }
        }
    }
}

static void round8(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums) {
    round_row(x, n, R, 8, rounded, scales, sums);
}

static void round16(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums) {
    round_row(x, n, R, 16, rounded, scales, sums);
}

/* The weights of one group and panel as [32][16]. */
static void unpack(const uint8_t *values, int bits, int16_t (*out)[PANEL]) {
    for (int k = 0; k < GROUP; k++) {
        for (int o = 0; o < PANEL; o++) {
            if (bits == 8) {
                out[k][o] = (int8_t)values[k / 4 * 64 + 4 * o + k % 4];
            } else {
                int byte = values[k / 4 % 4 * 64 + 4 * o + k % 4];
                out[k][o] = (int16_t)((k < 16 ? byte & 15 : byte >> 4) - 8);
            }
        }
    }
}

static inline int16_t rounded_at(const int8_t *x, int R, int k, int bits) {
    int16_t wide;
    if (bits == 8) return x[(ptrdiff_t)(k / 4) * R * 4 + k % 4];
    memcpy(&wide, x + (ptrdiff_t)(k / 4 * 2 + k % 2) * R * 4 + k % 4 / 2 * 2, 2);
    return wide;
}

static inline void multiply(const Tile *tile, int R, int weight_bits, int bits) {
    float sums[MOST_ROWS][PANEL] = {{0}};
    for (int g = 0; g < tile->groups; g++) {
        int16_t weights[GROUP][PANEL];
        float scales[PANEL];
        unpack(tile->values + (ptrdiff_t)g * GROUP * PANEL * weight_bits / 8, weight_bits, weights);
        for (int o = 0; o < PANEL; o++) scales[o] = half_value(tile->scales[(ptrdiff_t)g * PANEL + o]);
        const int8_t *x = tile->x + (ptrdiff_t)g * GROUP * bits / 8 * R;
        for (int r = 0; r < R; r++) {
            int32_t whole[PANEL] = {0};
            for (int k = 0; k < GROUP; k++) {
                int16_t value = rounded_at(x + 4 * r, R, k, bits);
                for (int o = 0; o < PANEL; o++) whole[o] += weights[k][o] * value;
            }
            float scale = tile->x_scales[(ptrdiff_t)g * R + r];
            for (int o = 0; o < PANEL; o++) sums[r][o] += (float)whole[o] * (scales[o] * scale);
        }
    }
    for (int r = 0; r < R; r++)
        for (int o = 0; o < tile->width; o++)
            tile->y[r * tile->y_stride + o] = sums[r][o] + (tile->bias ? tile->bias[o] : 0.0f);
}

static void multiply8x8(const Tile *tile, int R) { multiply(tile, R, 8, 8); }
static void multiply8x16(const Tile *tile, int R) { multiply(tile, R, 8, 16); }
static void multiply4x8(const Tile *tile, int R) { multiply(tile, R, 4, 8); }

const Implementation kamado_portable = {
    .name = "portable",
    .max_rows = MOST_ROWS,
    .round8 = round8,
    .round16 = round16,
    .multiply8x8 = multiply8x8,
    .multiply8x16 = multiply8x16,
    .multiply4x8 = multiply4x8,
};

/* Outputs of a matrix, float32 (count, in), in full precision. 0: one of `rows` is not among the `out` there are. */
PUBLIC int kamado_rows(
    const uint8_t *values, const uint16_t *scales, int weight_bits, int in, int64_t out, const int64_t *rows, int64_t count, float *y
) {
    int groups = in / GROUP, bytes = GROUP * weight_bits / 8;
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= out) return 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t first = rows[i] / PANEL * groups;
        int place = (int)(rows[i] % PANEL);
        for (int g = 0; g < groups; g++, y += GROUP) {
            float scale = half_value(scales[(first + g) * PANEL + place]);
            const uint8_t *from = values + (first + g) * bytes * PANEL + 4 * place;
            for (int k = 0; k < bytes; k++) {
                uint8_t value = from[k / 4 * 4 * PANEL + k % 4];
                if (weight_bits == 8) {
                    y[k] = (float)(int8_t)value * scale;
                } else {
                    y[k] = (float)((value & 15) - 8) * scale;
                    y[16 + k] = (float)((value >> 4) - 8) * scale;
                }
            }
        }
    }
    return 1;
}
