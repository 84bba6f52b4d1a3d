/* Operations on the pixels of one view; each file holds one, and says which rule it follows.
 *
 * A view is three planes of n bytes, red, green and blue, one behind the other. Every result is
 * a function of the arguments alone: no operation here depends on the CPU, the compiler or on
 * what was computed before. Multiplications and additions are never contracted (the build says
 * -ffp-contract=off); where a rule wants one rounding, the code says fmaf.
 */
#ifndef MANYVIEWS_KERNELS_H
#define MANYVIEWS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* The compiler makes such a function several times, and the loader takes the one that suits the CPU.
 * All of them compute the same. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(MANYVIEWS_ONE_VERSION)
#if __GNUC__ >= 12 && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#define FUSED __attribute__((target_clones("arch=x86-64-v4", "fma", "default")))
#else
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#define FUSED __attribute__((target_clones("fma", "default")))
#endif
#else
#define VECTORISED
#define FUSED
#endif

enum filter { BILINEAR = 2, BICUBIC = 3 }; /* Pillow's numbers */

struct box {
    ptrdiff_t left, top, width, height;
};

/* A poster as it is resized from: three planes of its columns, one behind the other. */
struct poster {
    ptrdiff_t width, height;
    ptrdiff_t pitch; /* from one column to the next */
    uint8_t columns[];
};

/* resize.c: NULL or -1 without memory; the poster is to be freed. */
struct poster *turned(const uint8_t *pixels, ptrdiff_t width, ptrdiff_t height);
int resize(const struct poster *poster, struct box box, enum filter filter, int mirrored,
           uint8_t *planes, ptrdiff_t width, ptrdiff_t height);

/* colour.c */
void brightness(uint8_t *planes, ptrdiff_t n, float factor);
void contrast(uint8_t *planes, ptrdiff_t n, float factor);
void saturation(uint8_t *planes, ptrdiff_t n, float factor);
void gray(uint8_t *planes, ptrdiff_t n);

/* hue.c */
void hue(uint8_t *planes, ptrdiff_t n, float factor);

/* layout.c */
void interleave(const uint8_t *planes, ptrdiff_t n, uint8_t *pixels);

/* blur.c: weights are those of one dimension, an odd number of them; 0, or -1 without memory. */
int blur(uint8_t *planes, ptrdiff_t width, ptrdiff_t height, const float *weights, ptrdiff_t taps);

#endif
