/* Gaussian blur: torchvision's result, which is torch's convolution with a square kernel, without
 * computing it for every pixel.
 *
 * The rule: the kernel is the outer product of the weights, rounded to float; the picture is
 * continued by reflection; a value is the sum over the kernel's rows and columns, in this order,
 * of single-rounded multiply-adds, then rounded to nearest, halves to even.
 *
 * Two one-dimensional passes give the same sum except for roundings. So they give every value,
 * except those that are closer to a half than both sums' errors together; these are summed by the
 * rule.
 */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNIT 0x1p-24f /* maximum relative error of one rounding */
#define LANES 8       /* number of values that are summed by the rule at once */
#define SCALE 0x1p64f /* scales the smallest weights out of the slow subnormal range; exact */

struct blurring {
    ptrdiff_t width, height, taps, radius;
    const float *weights; /* [taps] */
    float *square;        /* [taps][taps], times SCALE */
    ptrdiff_t reach;      /* number of taps to either side in the two passes */
    float doubt;          /* maximum difference of both sums */
    ptrdiff_t pitch;      /* distance of rows in the padded plane */
    float *padded;        /* [height + 2 radius][pitch] */
    float *smooth;        /* padded, smoothed along rows: [height + 2 radius][width] */
    float *row;           /* [width] */
    uint8_t *doubtful;    /* [width] flags of the row's values in doubt */
    ptrdiff_t *near;      /* [height * width] positions of all values in doubt */
};

/* The bound on the difference of both sums. Pixels are at most 255, so a partial sum is at most
 * 255 times the weights so far. One rounding is off by at most UNIT times its result; a
 * multiply-add also by no more than its product, as leaving the sum alone would be. The rule's sum:
 * that, for every weight. Each pass: one such sum per tap, and over all taps together the products
 * and the sums of two, 1 each. The square's own rounding, 1; and what lies beyond the reach is left
 * out, on two sides in two passes. Second-order terms are far below the tenth that is added. */
static void bound(struct blurring *b)
{
    double so_far = 0.0, rule = 0.0, beyond = 0.0;
    for (ptrdiff_t i = 0; i < b->taps * b->taps; i++) {
        double weight = b->square[i] / SCALE;
        so_far += weight;
        rule += weight < UNIT * so_far ? weight : UNIT * so_far;
    }
    b->reach = b->radius;
    while (b->reach > 0 && beyond + b->weights[b->radius - b->reach] < UNIT)
        beyond += b->weights[b->radius - b->reach--];
    double passes = 2.0 * (double)(b->reach + 1 + 2) * UNIT;
    b->doubt = (float)(1.1 * 255.0 * (rule + passes + UNIT + 4.0 * beyond));
}

/* Position of a pixel outside of the image: reflected at its edges, which are not repeated. */
static ptrdiff_t reflected(ptrdiff_t at, ptrdiff_t size)
{
    at = at < 0 ? -at : at;
    return at < size ? at : 2 * (size - 1) - at;
}

VECTORISED
static void pad(const struct blurring *b, const uint8_t *plane)
{
    for (ptrdiff_t y = -b->radius; y < b->height + b->radius; y++) {
        const uint8_t *from = plane + reflected(y, b->height) * b->width;
        float *to = b->padded + (y + b->radius) * b->pitch;
        for (ptrdiff_t x = 0; x < b->width; x++)
            to[b->radius + x] = from[x];
        for (ptrdiff_t x = 1; x <= b->radius; x++) {
            to[b->radius - x] = from[x];
            to[b->radius + b->width - 1 + x] = from[b->width - 1 - x];
        }
    }
}

/* out[x] = the sum of weights times values that lie symmetrically at multiples of step. */
VECTORISED
static void smooth(const struct blurring *b, const float *restrict middle, ptrdiff_t step,
                   float *restrict out)
{
    for (ptrdiff_t x = 0; x < b->width; x++)
        out[x] = b->weights[b->radius] * middle[x];
    for (ptrdiff_t k = 1; k <= b->reach; k++) {
        float weight = b->weights[b->radius + k];
        for (ptrdiff_t x = 0; x < b->width; x++)
            out[x] += weight * (middle[x - k * step] + middle[x + k * step]);
    }
}

/* Rounds row y, and adds the positions of its values in doubt to the list. Most rows have none, so
 * the positions are only searched for if there is one. */
VECTORISED
static ptrdiff_t round_row(const struct blurring *b, ptrdiff_t y, ptrdiff_t count,
                           uint8_t *restrict out)
{
    /* A byte pointer may alias anything: restrict promises that no store changes these. */
    const float *restrict row = b->row;
    uint8_t *restrict doubtful = b->doubtful;
    const ptrdiff_t width = b->width;
    const float doubt = b->doubt;
    int any = 0;
    for (ptrdiff_t x = 0; x < width; x++) {
        int nearest = (int)(row[x] + 0.5f);
        int near = fabsf(fabsf(row[x] - (float)nearest) - 0.5f) <= doubt;
        out[x] = (uint8_t)nearest;
        doubtful[x] = (uint8_t)near;
        any |= near;
    }
    for (ptrdiff_t x = 0; any && x < width; x++) {
        b->near[count] = y * width + x;
        count += doubtful[x];
    }
    return count;
}

/* Sums the values in doubt by the rule: LANES independent sums at a time, to hide latency. */
FUSED
static void sum_by_the_rule(const struct blurring *b, ptrdiff_t count, uint8_t *plane)
{
    for (ptrdiff_t start = 0; start < count; start += LANES) {
        const float *corners[LANES];
        float sums[LANES] = {0};
        ptrdiff_t filled = count - start < LANES ? count - start : LANES;
        for (ptrdiff_t l = 0; l < LANES; l++) {
            ptrdiff_t at = b->near[start + (l < filled ? l : 0)];
            corners[l] = b->padded + at / b->width * b->pitch + at % b->width;
        }
        for (ptrdiff_t i = 0; i < b->taps; i++)
            for (ptrdiff_t j = 0; j < b->taps; j++)
                for (int l = 0; l < LANES; l++)
                    sums[l] = fmaf(corners[l][i * b->pitch + j], b->square[i * b->taps + j],
                                   sums[l]);
        for (ptrdiff_t l = 0; l < filled; l++)
            plane[b->near[start + l]] = (uint8_t)lrintf(sums[l] / SCALE);
    }
}

static void blur_plane(const struct blurring *b, uint8_t *plane)
{
    pad(b, plane);
    for (ptrdiff_t y = 0; y < b->height + 2 * b->radius; y++)
        smooth(b, b->padded + y * b->pitch + b->radius, 1, b->smooth + y * b->width);
    ptrdiff_t count = 0;
    for (ptrdiff_t y = 0; y < b->height; y++) {
        smooth(b, b->smooth + (y + b->radius) * b->width, b->width, b->row);
        count = round_row(b, y, count, plane + y * b->width);
    }
    sum_by_the_rule(b, count, plane);
}

int blur(uint8_t *planes, ptrdiff_t width, ptrdiff_t height, const float *weights, ptrdiff_t taps)
{
    struct blurring b = {.width = width, .height = height, .taps = taps, .weights = weights};
    b.radius = taps / 2;
    b.pitch = width + 2 * b.radius;
    ptrdiff_t rows = height + 2 * b.radius;
    b.square = malloc((size_t)(taps * taps) * sizeof *b.square);
    b.padded = malloc((size_t)(rows * b.pitch) * sizeof *b.padded);
    b.smooth = malloc((size_t)(rows * width) * sizeof *b.smooth);
    b.row = malloc((size_t)width * sizeof *b.row);
    b.doubtful = malloc((size_t)width);
    b.near = malloc((size_t)(height * width) * sizeof *b.near);
    int failed = !b.square || !b.padded || !b.smooth || !b.row || !b.doubtful || !b.near;
    if (!failed) {
        for (ptrdiff_t i = 0; i < taps * taps; i++)
            b.square[i] = weights[i / taps] * weights[i % taps] * SCALE;
        bound(&b);
        for (int p = 0; p < 3; p++)
            blur_plane(&b, planes + p * width * height);
    }
    free(b.square);
    free(b.padded);
    free(b.smooth);
    free(b.row);
    free(b.doubtful);
    free(b.near);
    return failed ? -1 : 0;
}
