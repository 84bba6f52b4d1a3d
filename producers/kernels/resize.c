/* Resizing with antialiasing, equal to Pillow up to version 12: columns first, then rows. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

/* Coefficients have 22 fractional bits: 8 bits of pixel, 2 for overshoot, 32 in total. */
#define PRECISION 22
#define HALF (1 << (PRECISION - 1))
#define LOW_BITS 11
#define LOW_MASK ((1 << LOW_BITS) - 1)
#define LANES 32  /* side of the transposed blocks, and neighbours that are summed at once */
#define STRIP 512 /* number of rows whose columns are resized at a time */
#ifndef MANYVIEWS_LANES
#define MANYVIEWS_LANES 64 /* maximum neighbours in a vector; tests build it with less */
#endif

/* The input pixels of each output pixel, and their shares. */
struct coefficients {
    ptrdiff_t most;   /* maximum number of taps */
    ptrdiff_t *first; /* [size] first input pixel of each output pixel */
    ptrdiff_t *count; /* [size] number of its input pixels */
    int32_t *shares;  /* [size][most] their shares, then 0 */
    int32_t *pairs;   /* [size][most] the shares for vectors of pairs, see sum_pairs */
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
    free(c.pairs);
}

/* A share is 2^11 times its high part plus its low part, of 16 bits each; a word holds two. */
static void split(const int32_t *shares, ptrdiff_t most, int32_t *pairs)
{
    for (ptrdiff_t k = 0; k < most; k += 2) {
        uint32_t high[2], low[2];
        for (int i = 0; i < 2; i++) {
            high[i] = (uint32_t)(shares[k + i] >> LOW_BITS) & 0xFFFF;
            low[i] = (uint32_t)shares[k + i] & LOW_MASK;
        }
        pairs[k] = (int32_t)(high[1] << 16 | high[0]);
        pairs[k + 1] = (int32_t)(low[1] << 16 | low[0]);
    }
}

/* The kernel, widened to the scale when shrinking, around each output pixel's centre; normalised in
 * double precision to the sum 1, then rounded half away from zero. */
static int compute(struct coefficients *c, enum filter filter, ptrdiff_t from, ptrdiff_t to)
{
    double scale = (double)from / (double)to, widened = scale < 1.0 ? 1.0 : scale;
    double support = (filter == BILINEAR ? 1.0 : 2.0) * widened;
    c->most = (ptrdiff_t)ceil(support) * 2 + 2; /* even, at least one more than needed */
    c->first = calloc((size_t)to, sizeof *c->first);
    c->count = calloc((size_t)to, sizeof *c->count);
    c->shares = calloc((size_t)(to * c->most), sizeof *c->shares);
    c->pairs = calloc((size_t)(to * c->most), sizeof *c->pairs);
    double *exact = calloc((size_t)c->most, sizeof *exact);
    int failed = !c->first || !c->count || !c->shares || !c->pairs || !exact;
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
        split(c->shares + i * c->most, c->most, c->pairs + i * c->most);
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

#ifdef __x86_64__
/* sum_lanes for LANES neighbours at once. Multiplying 32-bit integers is slow; there is an
 * instruction that multiplies 16-bit ones and adds two products, here those of two taps. Shares
 * are wider, so it is used for their high and their low parts. */
__attribute__((target("avx2")))
static void sum_pairs(const uint8_t *in, ptrdiff_t stride, const int32_t *pairs, ptrdiff_t count,
                      uint8_t *out)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (ptrdiff_t k = 0; k < count; k += 2, in += 2 * stride) {
        __m256i one = _mm256_loadu_si256((const __m256i *)in);
        /* If the number of taps is odd, the last partner's share is 0. */
        __m256i two = k + 1 < count ? _mm256_loadu_si256((const __m256i *)(in + stride)) : zero;
        __m256i first = _mm256_unpacklo_epi8(one, two), second = _mm256_unpackhi_epi8(one, two);
        __m256i taps[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                           _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
        for (int i = 0; i < 4; i++) {
            __m256i of_high = _mm256_madd_epi16(taps[i], _mm256_set1_epi32(pairs[k]));
            __m256i of_low = _mm256_madd_epi16(taps[i], _mm256_set1_epi32(pairs[k + 1]));
            high[i] = _mm256_add_epi32(high[i], of_high);
            low[i] = _mm256_add_epi32(low[i], of_low);
        }
    }
    for (int i = 0; i < 4; i++) {
        low[i] = _mm256_add_epi32(low[i], _mm256_set1_epi32(HALF));
        high[i] = _mm256_add_epi32(_mm256_slli_epi32(high[i], LOW_BITS), low[i]);
        high[i] = _mm256_srai_epi32(high[i], PRECISION);
    }
    /* Packing clips, and reverses the reordering by unpacking. */
    __m256i first = _mm256_packs_epi32(high[0], high[1]);
    __m256i second = _mm256_packs_epi32(high[2], high[3]);
    _mm256_storeu_si256((__m256i *)out, _mm256_packus_epi16(first, second));
}

/* The same for twice as many neighbours, by an instruction that also adds to the sum. */
__attribute__((target("avx512bw,avx512vnni")))
static void sum_wide_pairs(const uint8_t *in, ptrdiff_t stride, const int32_t *pairs, ptrdiff_t
count,
                     uint8_t *out)
{
    const __m512i zero = _mm512_setzero_si512();
    __m512i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (ptrdiff_t k = 0; k < count; k += 2, in += 2 * stride) {
        __m512i one = _mm512_loadu_si512(in);
        __m512i two = k + 1 < count ? _mm512_loadu_si512(in + stride) : zero;
        __m512i first = _mm512_unpacklo_epi8(one, two), second = _mm512_unpackhi_epi8(one, two);
        __m512i taps[4] = {_mm512_unpacklo_epi8(first, zero), _mm512_unpackhi_epi8(first, zero),
                           _mm512_unpacklo_epi8(second, zero), _mm512_unpackhi_epi8(second, zero)};
        for (int i = 0; i < 4; i++) {
            high[i] = _mm512_dpwssd_epi32(high[i], taps[i], _mm512_set1_epi32(pairs[k]));
            low[i] = _mm512_dpwssd_epi32(low[i], taps[i], _mm512_set1_epi32(pairs[k + 1]));
        }
    }
    for (int i = 0; i < 4; i++) {
        low[i] = _mm512_add_epi32(low[i], _mm512_set1_epi32(HALF));
        high[i] = _mm512_add_epi32(_mm512_slli_epi32(high[i], LOW_BITS), low[i]);
        high[i] = _mm512_srai_epi32(high[i], PRECISION);
    }
    __m512i first = _mm512_packs_epi32(high[0], high[1]);
    __m512i second = _mm512_packs_epi32(high[2], high[3]);
    _mm512_storeu_si512(out, _mm512_packus_epi16(first, second));
}
#endif

/* out[j] = sum of shares[k] * in[k * stride + j], rounded and clipped, for n neighbours j. */
VECTORISED
static void sum_lanes(const uint8_t *restrict in, ptrdiff_t stride, const int32_t *restrict shares,
                      ptrdiff_t count, uint8_t *restrict out, ptrdiff_t n)
{
    int32_t sums[LANES];
    for (ptrdiff_t j = 0; j < n; j++)
        sums[j] = HALF;
    for (ptrdiff_t k = 0; k < count; k++)
        for (ptrdiff_t j = 0; j < n; j++)
            sums[j] += shares[k] * in[k * stride + j];
    for (ptrdiff_t j = 0; j < n; j++)
        out[j] = clipped(sums[j]);
}

/* Computes output pixel i of n neighbouring lines whose elements are `stride` apart. */
static void combine(const struct coefficients *c, ptrdiff_t i, const uint8_t *in, ptrdiff_t stride,
                    uint8_t *out, ptrdiff_t n)
{
    ptrdiff_t j = 0;
    in += c->first[i] * stride;
#ifdef __x86_64__
    int wide = MANYVIEWS_LANES >= 64 && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vnni");
    for (; j + 2 * LANES <= n && wide; j += 2 * LANES)
        sum_wide_pairs(in + j, stride, c->pairs + i * c->most, c->count[i], out + j);
    int vectors = MANYVIEWS_LANES >= 32 && __builtin_cpu_supports("avx2");
    for (; j + LANES <= n && vectors; j += LANES)
        sum_pairs(in + j, stride, c->pairs + i * c->most, c->count[i], out + j);
#endif
    for (; j < n; j += LANES)
        sum_lanes(in + j, stride, c->shares + i * c->most, c->count[i], out + j,
                  n - j < LANES ? n - j : LANES);
}

/* Most blocks are complete, and a length that the compiler knows is far faster. */
static inline void copy(uint8_t *to, const uint8_t *from, ptrdiff_t n)
{
    if (n == LANES)
        memcpy(to, from, LANES);
    else
        memcpy(to, from, (size_t)n);
}

/* Rows become columns: `high` rows of n bytes, to n rows of LANES, the first `high` bytes of each
 * theirs. An index of a block is five bits of its row and five of its column. Dealing the block's
 * two halves out in turn moves each bit up by one and the highest to the end: after five times,
 * rows and columns have changed places. */
static void turn(const uint8_t *from, ptrdiff_t pitch, ptrdiff_t high, ptrdiff_t n, uint8_t *to)
{
    enum { HALF_BLOCK = LANES * LANES / 2 };
    uint8_t blocks[2][2 * HALF_BLOCK] = {{0}};
    for (ptrdiff_t x = 0; x < n; x += LANES) {
        ptrdiff_t wide = n - x < LANES ? n - x : LANES;
        for (ptrdiff_t y = 0; y < high; y++)
            copy(blocks[0] + y * LANES, from + y * pitch + x, wide);
        for (int round = 0; round < 5; round++) {
            const uint8_t *restrict dealt = blocks[round % 2];
            uint8_t *restrict out = blocks[(round + 1) % 2];
            for (int i = 0; i < HALF_BLOCK; i++) {
                out[2 * i] = dealt[i];
                out[2 * i + 1] = dealt[HALF_BLOCK + i];
            }
        }
        memcpy(to + x * LANES, blocks[1], (size_t)(wide * LANES));
    }
}

struct poster *turned(const uint8_t *pixels, ptrdiff_t width, ptrdiff_t height)
{
    /* Columns may be read up to LANES behind their end. An odd number of cache lines apart, they
     * do not all compete for the same few places of the cache. */
    ptrdiff_t pitch = (height + LANES + 63) / 64 * 64 | 64, plane = width * pitch;
    struct poster *poster = calloc(1, sizeof *poster + (size_t)(3 * plane));
    uint8_t *strip = malloc((size_t)(3 * width * LANES));
    if (!poster || !strip) {
        free(poster);
        free(strip);
        return NULL;
    }
    *poster = (struct poster){.width = width, .height = height, .pitch = pitch};
    for (ptrdiff_t y = 0; y < height; y += LANES) {
        ptrdiff_t high = height - y < LANES ? height - y : LANES;
        turn(pixels + y * 3 * width, 3 * width, high, 3 * width, strip);
        for (ptrdiff_t x = 0; x < width; x++)
            for (int p = 0; p < 3; p++)
                memcpy(poster->columns + p * plane + x * pitch + y, strip + (3 * x + p) * LANES,
                LANES);
    }
    free(strip);
    return poster;
}

/* The columns of up to STRIP rows from `from` on, which are those of one plane, become lines that
 * are three planes' rows apart; mirrored, the last column comes first. */
static void resize_columns(const uint8_t *from, ptrdiff_t pitch, ptrdiff_t rows, int mirrored,
                           const struct coefficients *c, uint8_t *lines, ptrdiff_t width)
{
    uint8_t columns[LANES][STRIP], back[STRIP * LANES];
    ptrdiff_t whole = (rows + LANES - 1) / LANES * LANES;
    for (ptrdiff_t i = 0; i < width; i += LANES) {
        ptrdiff_t wide = width - i < LANES ? width - i : LANES;
        for (ptrdiff_t k = 0; k < wide; k++)
            combine(c, mirrored ? width - 1 - i - k : i + k, from, pitch, columns[k], whole);
        turn(columns[0], STRIP, wide, rows, back);
        for (ptrdiff_t y = 0; y < rows; y++)
            copy(lines + y * 3 * width + i, back + y * LANES, wide);
    }
}

int resize(const struct poster *poster, struct box box, enum filter filter, int mirrored,
           uint8_t *planes, ptrdiff_t width, ptrdiff_t height)
{
    struct coefficients across = {0}, down = {0};
    uint8_t *lines = malloc((size_t)(box.height * 3 * width));
    int failed = !lines || compute(&across, filter, box.width, width) ||
                 compute(&down, filter, box.height, height);
    if (!failed) {
        ptrdiff_t pitch = poster->pitch;
        for (ptrdiff_t y = 0; y < box.height; y += STRIP)
            for (int p = 0; p < 3; p++)
                resize_columns(poster->columns + (p * poster->width + box.left) * pitch + box.top +
                y,
                               pitch, box.height - y < STRIP ? box.height - y : STRIP, mirrored,
                               &across, lines + (y * 3 + p) * width, width);
        for (ptrdiff_t i = 0; i < height; i++)
            for (int p = 0; p < 3; p++)
                combine(&down, i, lines + p * width, 3 * width, planes + (p * height + i) * width,
                        width);
    }
    release(across);
    release(down);
    free(lines);
    return failed ? -1 : 0;
}
