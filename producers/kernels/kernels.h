/* Operations on the pixels of one view. Each file implements one group, and states its rule.
 *
 * A view is three consecutive planes of n bytes: red, green and blue. Every result is a function
 * of the arguments alone: no operation depends on the CPU, the compiler or earlier calls.
 * Multiplications and additions are never contracted (the build sets -ffp-contract=off); where a
 * rule requires one rounding, the code calls fmaf.
 */
#ifndef MANYVIEWS_KERNELS_H
#define MANYVIEWS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* The compiler emits such a function for several CPUs, and the loader chooses one of the variants.
 * All variants compute the same result. */
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

enum filter { BILINEAR = 2, BICUBIC = 3 }; /* Pillow's constants */

struct box {
    ptrdiff_t left, top, width, height;
};

/* A poster, prepared for resizing: three consecutive planes, stored by columns. */
struct poster {
    ptrdiff_t width, height;
    ptrdiff_t pitch; /* distance of columns in bytes */
    uint8_t columns[];
};

/* resize.c: NULL or -1 if there is no memory; the caller frees the poster. */
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

/* blur.c: an odd number of one-dimensional weights; returns 0, or -1 if there is no memory. */
int blur(uint8_t *planes, ptrdiff_t width, ptrdiff_t height, const float *weights, ptrdiff_t taps);

#endif
