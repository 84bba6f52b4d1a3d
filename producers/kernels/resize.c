/* Resizing with antialiasing, as Pillow up to version 12 does it: columns first, then rows. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Coefficients have 22 bits behind the point: 8 bits of pixel, 2 for overshoot, 32 in all. */
#define PRECISION 22
#define HALF (1 << (PRECISION - 1))
#define LANES 32

/* Which input pixels make an output pixel, and with which share. */
struct coefficients {
    ptrdiff_t most;   /* the most taps of an output pixel */
    ptrdiff_t *first; /* [size] its first input pixel */
    ptrdiff_t *count; /* [size] how many there are */
    int32_t *shares;  /* [size][most] their shares */
};

static double kernel(enum filter filter, double x)
{
    x = fabs(x);
    if (filter == BILINEAR)
        return x < 1.0 ? 1.0 - x : 0.0;
    const double a = -0.5; /* Keys' cubic */
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

static void release(struct coefficients c)
{
    free(c.first);
    free(c.count);
    free(c.shares);
}

/* The kernel, widened to the scale when shrinking, around each output pixel's centre; normalised in
 * double precision to the sum 1, then rounded half away from zero. */
static int compute(struct coefficients *c, enum filter filter, ptrdiff_t from, ptrdiff_t to)
{
    double scale = (double)from / (double)to, widened = scale < 1.0 ? 1.0 : scale;
    double support = (filter == BILINEAR ? 1.0 : 2.0) * widened;
    c->most = (ptrdiff_t)ceil(support) * 2 + 1;
    c->first = calloc((size_t)to, sizeof *c->first);
    c->count = calloc((size_t)to, sizeof *c->count);
    c->shares = calloc((size_t)(to * c->most), sizeof *c->shares);
    double *exact = calloc((size_t)c->most, sizeof *exact);
    int failed = !c->first || !c->count || !c->shares || !exact;
    for (ptrdiff_t i = 0; i < to && !failed; i++) {
        double centre = ((double)i + 0.5) * scale, sum = 0.0;
        ptrdiff_t first = (ptrdiff_t)(centre - support + 0.5);
        ptrdiff_t end = (ptrdiff_t)(centre + support + 0.5);
        first = first < 0 ? 0 : first;
        end = end > from ? from : end;
        for (ptrdiff_t k = 0; k < end - first; k++) {
            exact[k] = kernel(filter, ((double)(k + first) - centre + 0.5) * (1.0 / widened));
            sum += exact[k];
        }
        for (ptrdiff_t k = 0; k < end - first; k++) {
            double share = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << PRECISION);
            c->shares[i * c->most + k] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
        }
        c->first[i] = first;
        c->count[i] = end - first;
    }
    free(exact);
    return failed ? -1 : 0;
}

static inline uint8_t clipped(int32_t sum)
{
    sum >>= PRECISION;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* out[j] = sum of shares[k] * in[k * stride + j], rounded and clipped, for n neighbours j. */
VECTORISED
static void combine(const uint8_t *restrict in, ptrdiff_t stride, const int32_t *restrict shares,
                    ptrdiff_t count, uint8_t *restrict out, ptrdiff_t n)
{
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        int32_t sums[LANES];
        for (int l = 0; l < LANES; l++)
            sums[l] = HALF;
        for (ptrdiff_t k = 0; k < count; k++)
            for (int l = 0; l < LANES; l++)
                sums[l] += shares[k] * in[k * stride + j + l];
        for (int l = 0; l < LANES; l++)
            out[j + l] = clipped(sums[l]);
    }
    for (; j < n; j++) {
        int32_t sum = HALF;
        for (ptrdiff_t k = 0; k < count; k++)
            sum += shares[k] * in[k * stride + j];
        out[j] = clipped(sum);
    }
}

/* Columns of LANES rows: rows of pixels are turned into columns of neighbouring rows, so that the
 * sums of many rows are one vector, and turned back into lines of three planes' rows. */
VECTORISED
static void resize_columns(const uint8_t *rows, ptrdiff_t pitch, ptrdiff_t from,
                           const struct coefficients *c, uint8_t *turned, uint8_t *lines,
                           ptrdiff_t to, ptrdiff_t height)
{
    for (ptrdiff_t y = 0; y < height; y++)
        for (ptrdiff_t x = 0; x < from; x++)
            for (int p = 0; p < 3; p++)
                turned[(x * 3 + p) * LANES + y] = rows[y * pitch + x * 3 + p];
    for (ptrdiff_t i = 0; i < to; i++) {
        uint8_t column[3 * LANES];
        combine(turned + c->first[i] * 3 * LANES, 3 * LANES, c->shares + i * c->most, c->count[i],
                column, 3 * LANES);
        for (ptrdiff_t y = 0; y < height; y++)
            for (int p = 0; p < 3; p++)
                lines[(y * 3 + p) * to + i] = column[p * LANES + y];
    }
}

int resize(const uint8_t *poster, ptrdiff_t poster_width, struct box box, enum filter filter,
           uint8_t *planes, ptrdiff_t width, ptrdiff_t height)
{
    struct coefficients across = {0}, down = {0};
    uint8_t *turned = calloc((size_t)box.width, 3 * LANES);
    uint8_t *lines = malloc((size_t)(box.height * 3 * width));
    int failed = !turned || !lines || compute(&across, filter, box.width, width) ||
                 compute(&down, filter, box.height, height);
    if (!failed) {
        const uint8_t *corner = poster + (box.top * poster_width + box.left) * 3;
        for (ptrdiff_t y = 0; y < box.height; y += LANES) {
            ptrdiff_t left = box.height - y;
            resize_columns(corner + y * poster_width * 3, poster_width * 3, box.width, &across,
                           turned, lines + y * 3 * width, width, left < LANES ? left : LANES);
        }
        for (ptrdiff_t i = 0; i < height; i++)
            for (int p = 0; p < 3; p++)
                combine(lines + (down.first[i] * 3 + p) * width, 3 * width,
                        down.shares + i * down.most, down.count[i],
                        planes + (p * height + i) * width, width);
    }
    release(across);
    release(down);
    free(turned);
    free(lines);
    return failed ? -1 : 0;
}
