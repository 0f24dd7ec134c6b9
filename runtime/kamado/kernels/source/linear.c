/* What Python calls: which implementation, which threads, and the product of some rows with a matrix. */
#include "kernels.h"

#include <stdatomic.h>
#include <string.h>

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

#define FORMS 2 /* what Python must know of the interface and of the forms above; counted up with every change */
#define SMALL 4096 /* values of activations that every thread rounds for itself, rather than wait for the others */
#define STREAMED_BLOCKS 8 /* so few blocks of rows take less time than the weights do from memory */
#define RUN_BLOCKS 8

/* GCC's OpenMP interface, of the library that torch has loaded: so both have the same threads. */
static void (*team_run)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
static int (*team_index)(void);
static int (*team_size)(void);
static void (*team_barrier)(void);

static const Implementation *implementations[] = {
#if defined(__x86_64__)
    &kamado_avx512,
    &kamado_avx2,
#endif
    &kamado_portable,
};

PUBLIC int kamado_forms(void) { return FORMS; }

/* The place of the best implementation for this CPU: one of those from there on may be asked for. */
PUBLIC int kamado_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    /* Every CPU with AVX2 converts float16; some compilers have no name for that. */
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vnni");
    return avx2 ? !avx512 : 2;
#else
    return 0;
#endif
}

/* Its name; NULL behind the last. */
PUBLIC const char *kamado_name(int which) {
    int count = (int)(sizeof implementations / sizeof *implementations);
    return which >= 0 && which < count ? implementations[which]->name : NULL;
}

PUBLIC void kamado_team(void *run, void *index, void *size, void *barrier) {
    memcpy(&team_run, &run, sizeof run);
    memcpy(&team_index, &index, sizeof index);
    memcpy(&team_size, &size, sizeof size);
    memcpy(&team_barrier, &barrier, sizeof barrier);
}

typedef struct {
    const Implementation *with;
    const float *x;
    const uint8_t *values;
    const uint16_t *scales;
    const float *bias;
    float *y;
    int64_t x_stride, y_stride;
    int rows, in, out, weight_bits, bits, blocks;
    int alone;
    int8_t *rounded;
    float *x_scales;
    int32_t *x_sums;
    atomic_int taken;
} Product;

/* Where a block begins: their sizes differ by one row at the most. */
static int first_row(const Product *p, int block) {
    int each = p->rows / p->blocks, more = p->rows % p->blocks;
    return block * each + (block < more ? block : more);
}

static void round_blocks(const Product *p, int from, int to, int8_t *rounded, float *scales, int32_t *sums) {
    int groups = p->in / GROUP, bytes = p->bits / 8;
    Rounder rounder = p->bits == 16 ? p->with->round16 : p->with->round8;
    for (int block = from; block < to; block++) {
        int first = first_row(p, block), R = first_row(p, block + 1) - first;
        ptrdiff_t at = (ptrdiff_t)first * groups;
        for (int r = 0; r < R; r++)
            rounder(
                p->x + (first + r) * p->x_stride, p->in, R, rounded + at * GROUP * bytes + 4 * r, scales + at + r,
                sums + at + r
            );
    }
}

static void multiply(
    const Product *p, int panel, int from, int to, const int8_t *rounded, const float *scales, const int32_t *sums
) {
    int groups = p->in / GROUP, left = p->out - panel * PANEL;
    Multiplier multiplier = p->weight_bits == 4 ? p->with->multiply4x8
                            : p->bits == 16     ? p->with->multiply8x16
                                                : p->with->multiply8x8;
    ptrdiff_t start = (ptrdiff_t)panel * groups * PANEL;
    Tile tile = {
        .values = p->values + start * GROUP * p->weight_bits / 8,
        .scales = p->scales + start,
        .groups = groups,
        .width = left < PANEL ? left : PANEL,
        .bias = p->bias ? p->bias + panel * PANEL : NULL,
        .y_stride = p->y_stride,
    };
    for (int block = from; block < to; block++) {
        int first = first_row(p, block);
        ptrdiff_t at = (ptrdiff_t)first * groups;
        tile.x = rounded + at * GROUP * (p->bits / 8);
        tile.x_scales = scales + at;
        tile.x_sums = sums + at;
        tile.y = p->y + first * p->y_stride + panel * PANEL;
        multiplier(&tile, first_row(p, block + 1) - first);
    }
}

static int share(int count, int index, int size) { return (int)((int64_t)count * index / size); }

static void work(void *data) {
    Product *p = data;
    int index = p->alone ? 0 : team_index(), size = p->alone ? 1 : team_size();
    int panels = (p->out + PANEL - 1) / PANEL;
    int from = share(panels, index, size), to = share(panels, index + 1, size);
    if ((int64_t)p->rows * p->in <= SMALL) {
        int8_t rounded[2 * SMALL];
        float scales[SMALL / GROUP];
        int32_t sums[SMALL / GROUP];
        round_blocks(p, 0, p->blocks, rounded, scales, sums);
        for (int panel = from; panel < to; panel++) multiply(p, panel, 0, p->blocks, rounded, scales, sums);
        return;
    }
    round_blocks(p, share(p->blocks, index, size), share(p->blocks, index + 1, size), p->rounded, p->x_scales, p->x_sums);
    if (size > 1) team_barrier();
    if (p->blocks <= STREAMED_BLOCKS) {
        for (int panel = from; panel < to; panel++)
            multiply(p, panel, 0, p->blocks, p->rounded, p->x_scales, p->x_sums);
        return;
    }
    /* Whoever is free takes the next piece: threads need not be equally fast. */
    int runs = (p->blocks + RUN_BLOCKS - 1) / RUN_BLOCKS;
    for (int piece; (piece = atomic_fetch_add(&p->taken, 1)) < runs * panels;) {
        int begin = piece % runs * RUN_BLOCKS, end = begin + RUN_BLOCKS;
        multiply(
            p, piece / runs, begin, end < p->blocks ? end : p->blocks, p->rounded, p->x_scales, p->x_sums
        );
    }
}

/* Bytes that `kamado_linear` needs to work in. */
PUBLIC int64_t kamado_space(int rows, int in, int bits) { return (int64_t)rows * (in / GROUP) * (GROUP * (bits / 8) + 8); }

/* y (rows, out) = x (rows, in) times the transposed matrix, plus bias (may be NULL). Strides in values; `space` aligned to
   4 bytes. `in`: whole groups. 4-bit weights take activations of 8 bits only. */
PUBLIC void kamado_linear(
    int which, const float *x, int64_t x_stride, int rows, int in, int out, int weight_bits, int bits,
    const void *values, const void *scales, const float *bias, float *y, int64_t y_stride, void *space, int threads
) {
    const Implementation *with = implementations[which];
    Product p = {
        .with = with,
        .x = x,
        .values = values,
        .scales = scales,
        .bias = bias,
        .y = y,
        .x_stride = x_stride,
        .y_stride = y_stride,
        .rows = rows,
        .in = in,
        .out = out,
        .weight_bits = weight_bits,
        .bits = bits,
        .blocks = (rows + with->max_rows - 1) / with->max_rows,
        .alone = threads <= 1 || team_run == NULL,
    };
    ptrdiff_t groups = (ptrdiff_t)rows * (in / GROUP);
    p.x_scales = space;
    p.x_sums = (int32_t *)(p.x_scales + groups);
    p.rounded = (int8_t *)(p.x_sums + groups);
    if (p.alone)
        work(&p);
    else
        team_run(work, &p, (unsigned)threads, 0);
}
