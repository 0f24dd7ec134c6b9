/* Products of activations with weights of 8 or 4 bits. Plain C; nothing of Python or torch.

   Weights lie in panels of 16 outputs and groups of 32 inputs, so that one pass over the memory, front to back, serves any
   number of rows.
     8 bits   int8  [panel][group][8][16][4]: byte (j, o, i) is input 4 j + i of output o
     4 bits   uint8 [panel][group][4][16][4]: the low half of byte (j, o, i) is input 4 j + i, the high half input
              16 + 4 j + i; 8 means zero
     scales   float16 [panel][group][16]
   Activations are rounded to whole numbers, with a scale for each group of each row: of 16 bits (up to 32767), or of 8
   (up to 127). Sums within a group are exact; groups are added in their order, in float32, with one rounding for each. So a
   row has the same result in whatever company.
   Rows are taken in blocks of R, in which the rounded values of four inputs of each row lie side by side:
     8 bits   int8  [in / 4][R][4]
     16 bits  int16 [in / 4][2][R][2]: inputs 4 j and 4 j + 2, then 4 j + 1 and 4 j + 3
     split    int8  [in / 4][R][2][4], of 8 bits: their magnitudes, then -1 for the negative ones and 0 for the others
     scales, and sums of the rounded values (split: of the magnitudes of the negative ones): [group][R] */
#ifndef KAMADO_KERNELS_H
#define KAMADO_KERNELS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PANEL 16
#define GROUP 32
#define WIDEST 2 /* panels of a strip */
#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

#define MOST_ROWS 12 /* of a block, in any implementation */
/* Activations that small count as zeros: their reciprocals would leave the range of float32. */
#define TINY 1e-30f
#define LARGEST 3.402823466e38f

/* One block of rows and one panel, or two of them. */
typedef struct {
    const uint8_t *values;
    const uint16_t *scales;
    const uint8_t *ahead; /* asked for, so many bytes more with every 64 of a panel's values: what comes next */
    int ahead_step;
    const int8_t *x;
    const float *x_scales;
    const int32_t *x_sums;
    int groups;
    int width; /* outputs that there are */
    const float *bias; /* of the first output; may be NULL */
    float *y;
    ptrdiff_t y_stride;
} Tile;

/* Rounds the n values of a row to their place in a block of R rows. */
typedef void (*Rounder)(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums);
typedef void (*Multiplier)(const Tile *tile, int R);

typedef struct {
    const char *name;
    int max_rows, max_split_rows; /* of a block */
    Rounder round8, round16, round_split; /* the last may be NULL: then nothing reads split values */
    Multiplier multiply8x8, multiply8x16, multiply4x8; /* bits of weights x bits of activations, 8x8 of split ones if there are */
    Multiplier wide8x8; /* two panels at once; may be NULL */
} Implementation;

/* Some rows and a matrix. Rows are in blocks of `each` rows, the first `more` of them of one more; outputs in strips of some panels. */
typedef struct {
    const Implementation *with;
    const float *x;
    const uint8_t *values;
    const uint16_t *scales;
    const float *bias; /* may be NULL */
    float *y;
    int64_t x_stride, y_stride;
    int rows, in, out, weight_bits, bits;
    int form, blocks, each, more, strip_panels, strips; /* as `kamado_cut` finds them */
} Product;

enum { WHOLE, SPLIT, NUM_FORMS };

/* Rounded rows, in their blocks. */
typedef struct {
    int8_t *values;
    float *scales;
    int32_t *sums;
} Rounded;

/* Finds the form of activations that it reads, and cuts its rows and outputs, for so many threads. */
void kamado_cut(Product *p, int threads);
/* Where a block begins. */
static inline int first_row(const Product *p, int block) { return block * p->each + (block < p->more ? block : p->more); }
/* Rounds the rows from `from` to `to` into their places. */
void kamado_round(const Product *p, int from, int to, const Rounded *x);
/* One strip of outputs for the blocks from `from` to `to`. */
void kamado_multiply(const Product *p, int strip, int from, int to, const Rounded *x);
int kamado_share(int count, int index, int size);
const Implementation *kamado_implementation(int which);

/* GCC's OpenMP interface, of the library that torch has loaded: so both have the same threads. NULL without one. */
typedef struct {
    void (*run)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
    int (*index)(void);
    int (*size)(void);
} Team;
extern Team kamado_torch_team;

/* Where the threads of a team wait for each other. */
typedef struct {
    atomic_int arrived; /* from 0 on, never taken back */
} Barrier;

/* Returns when all `size` threads have called this as often. `passed`: how often this thread has, from 0 on. */
void kamado_wait(Barrier *barrier, int size, int *passed);

#define SMALL 4096 /* values of activations that every thread rounds for itself, rather than wait for the others */

extern const Implementation kamado_portable;
#if defined(__x86_64__)
extern const Implementation kamado_avx2, kamado_avx512;
void kamado_round8_avx2(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums);
void kamado_round16_avx2(const float *x, int n, int R, int8_t *rounded, float *scales, int32_t *sums);
#endif

#endif
