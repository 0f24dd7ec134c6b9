/* What Python calls: which implementation, which threads, and the product of some rows with a matrix. */
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() ((void)0)
#endif
#if defined(_WIN32)
#include <windows.h>
#define YIELD() SwitchToThread()
#else
#include <sched.h>
#define YIELD() sched_yield()
#endif

#define FORMS 8 /* what Python must know of the interface and of the forms above; counted up with every change */
#define STREAMED_ROWS 64 /* so few take less time than the weights do from memory */
#define RUN_ROWS 48
#define SPINS 10000 /* of a thread that waits, before it gives its CPU to others in between: a tenth of a millisecond */
#define AHEAD 4096 /* bytes between what is asked for and what is read, of one panel alone */
#define MOST_AHEAD (64 << 10) /* of two: what will be kept until it is read */

Team kamado_torch_team;

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

const Implementation *kamado_implementation(int which) { return implementations[which]; }

PUBLIC void kamado_team(void *run, void *index, void *size) {
    memcpy(&kamado_torch_team.run, &run, sizeof run);
    memcpy(&kamado_torch_team.index, &index, sizeof index);
    memcpy(&kamado_torch_team.size, &size, sizeof size);
}

/* The next call of another thread is microseconds away, where that is not kept from running: OpenMP's own barriers send a thread
   to sleep after a few, once the program has more threads than there are CPUs, and to wake up takes longer than that. */
void kamado_wait(Barrier *barrier, int size, int *passed) {
    int wanted = ++*passed * size;
    atomic_fetch_add(&barrier->arrived, 1);
    for (int spins = 0; atomic_load(&barrier->arrived) < wanted; spins++) {
        if (spins < SPINS)
            PAUSE();
        else
            YIELD();
    }
}

void kamado_cut(Product *p, int threads) {
    p->form = p->weight_bits == 8 && p->bits == 8 && p->with->round_split ? SPLIT : WHOLE;
    int most = p->form == SPLIT ? p->with->max_split_rows : p->with->max_rows, panels = (p->out + PANEL - 1) / PANEL;
    p->blocks = (p->rows + most - 1) / most;
    p->each = p->blocks ? p->rows / p->blocks : 0;
    p->more = p->rows - p->blocks * p->each;
    p->strip_panels = panels >= 8 * threads ? WIDEST : 1; /* each thread gets several of them */
    p->strips = (panels + p->strip_panels - 1) / p->strip_panels;
}

void kamado_round(const Product *p, int from, int to, const Rounded *x) {
    int groups = p->in / GROUP, bytes = p->form == SPLIT || p->bits == 16 ? 2 : 1;
    Rounder rounder = p->form == SPLIT ? p->with->round_split : p->bits == 16 ? p->with->round16 : p->with->round8;
    for (int block = 0, first = 0; block < p->blocks && first < to; block++) {
        int end = first_row(p, block + 1), R = end - first, word = p->form == SPLIT ? 8 : 4;
        ptrdiff_t at = (ptrdiff_t)first * groups;
        for (int row = from > first ? from : first; row < end && row < to; row++)
            rounder(
                p->x + row * p->x_stride, p->in, R, x->values + at * GROUP * bytes + word * (row - first),
                x->scales + at + row - first, x->sums + at + row - first
            );
        first = end;
    }
}

void kamado_multiply(const Product *p, int strip, int from, int to, const Rounded *x) {
    int groups = p->in / GROUP, count = to - from, panel = strip * p->strip_panels, end = panel + p->strip_panels;
    int bytes = p->form == SPLIT || p->bits == 16 ? 2 : 1, panels = (p->out + PANEL - 1) / PANEL;
    Multiplier multiplier = p->weight_bits == 4 ? p->with->multiply4x8
                            : p->bits == 16     ? p->with->multiply8x16
                                                : p->with->multiply8x8;
    Multiplier wide = multiplier == p->with->multiply8x8 ? p->with->wide8x8 : NULL;
    ptrdiff_t size = (ptrdiff_t)groups * PANEL * GROUP * p->weight_bits / 8;
    if (end > panels) end = panels;
    for (int together; panel < end; panel += together) {
        together = wide && end - panel == 2 ? 2 : 1;
        int left = p->out - panel * PANEL;
        Tile tile = {
            .values = p->values + panel * size,
            .scales = p->scales + (ptrdiff_t)panel * groups * PANEL,
            .groups = groups,
            .width = left < together * PANEL ? left : together * PANEL,
            .bias = p->bias ? p->bias + panel * PANEL : NULL,
            .y_stride = p->y_stride,
        };
        for (int block = from; block < to; block++) {
            int first = first_row(p, block);
            ptrdiff_t at = (ptrdiff_t)first * groups;
            tile.x = x->values + at * GROUP * bytes;
            tile.x_scales = x->scales + at;
            tile.x_sums = x->sums + at;
            tile.y = p->y + first * p->y_stride + panel * PANEL;
            /* One block alone runs through the memory; of several, each asks for its part of what comes next. */
            int runs_through = count == 1 && (together == 1 || together * size > MOST_AHEAD);
            tile.ahead = tile.values + (runs_through ? AHEAD : together * size + size / count * (block - from));
            tile.ahead_step = 64 / count;
            (together == 2 ? wide : multiplier)(&tile, first_row(p, block + 1) - first);
        }
    }
}

int kamado_share(int count, int index, int size) { return (int)((int64_t)count * index / size); }

typedef struct {
    Product product;
    Rounded x;
    int alone;
    Barrier barrier;
    atomic_int taken;
} Job;

static void work(void *data) {
    Job *job = data;
    const Product *p = &job->product;
    int index = job->alone ? 0 : kamado_torch_team.index(), size = job->alone ? 1 : kamado_torch_team.size();
    int from = kamado_share(p->strips, index, size), to = kamado_share(p->strips, index + 1, size);
    if ((int64_t)p->rows * p->in <= SMALL) {
        int8_t values[2 * SMALL];
        float scales[SMALL / GROUP];
        int32_t sums[SMALL / GROUP];
        Rounded x = {values, scales, sums};
        kamado_round(p, 0, p->rows, &x);
        for (int strip = from; strip < to; strip++) kamado_multiply(p, strip, 0, p->blocks, &x);
        return;
    }
    kamado_round(p, kamado_share(p->rows, index, size), kamado_share(p->rows, index + 1, size), &job->x);
    int passed = 0;
    kamado_wait(&job->barrier, size, &passed);
    if (p->rows <= STREAMED_ROWS) {
        for (int strip = from; strip < to; strip++) kamado_multiply(p, strip, 0, p->blocks, &job->x);
        return;
    }
    /* Whoever is free takes the next piece: threads need not be equally fast. */
    int runs = (p->rows + RUN_ROWS - 1) / RUN_ROWS;
    for (int piece; (piece = atomic_fetch_add(&job->taken, 1)) < runs * p->strips;) {
        int run = piece % runs;
        kamado_multiply(p, piece / runs, kamado_share(p->blocks, run, runs), kamado_share(p->blocks, run + 1, runs), &job->x);
    }
}

/* Bytes that `kamado_linear` needs to work in. */
PUBLIC int64_t kamado_space(int rows, int in) { return (int64_t)rows * (in / GROUP) * (GROUP * 2 + 8); }

/* y (rows, out) = x (rows, in) times the transposed matrix, plus bias (may be NULL). Strides in values; `space` aligned to
   4 bytes. `in`: whole groups. 4-bit weights take activations of 8 bits only. */
PUBLIC void kamado_linear(
    int which, const float *x, int64_t x_stride, int rows, int in, int out, int weight_bits, int bits,
    const void *values, const void *scales, const float *bias, float *y, int64_t y_stride, void *space, int threads
) {
    const Implementation *with = implementations[which];
    Job job = {
        .product =
            {
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
            },
        .alone = threads <= 1 || kamado_torch_team.run == NULL,
    };
    kamado_cut(&job.product, threads > 1 ? threads : 1);
    ptrdiff_t groups = (ptrdiff_t)rows * (in / GROUP);
    job.x.scales = space;
    job.x.sums = (int32_t *)(job.x.scales + groups);
    job.x.values = (int8_t *)(job.x.sums + groups);
    if (job.alone)
        work(&job);
    else
        kamado_torch_team.run(work, &job, (unsigned)threads, 0);
}
