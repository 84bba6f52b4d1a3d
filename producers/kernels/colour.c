/* Brightness, contrast, saturation and gray, equal to Pillow's ImageEnhance and convert("L"). */
#include "kernels.h"

/* ITU-R 601-2 luma in 16-bit fixed point, rounded to nearest. */
static inline uint8_t luma(uint8_t r, uint8_t g, uint8_t b)
{
    return (uint8_t)((19595u * r + 38470u * g + 7471u * b + 0x8000u) >> 16);
}

/* Interpolates from the degenerate image to the pixel (factor < 1), or extrapolates (factor > 1):
 * two roundings to float, then truncated and clipped. */
static inline uint8_t blended(int degenerate, int pixel, float factor)
{
    float change = factor * (float)(pixel - degenerate);
    float value = (float)degenerate + change;
    value = value > 0.0f ? value : 0.0f;
    return (uint8_t)(int)(value < 255.0f ? value : 255.0f);
}

/* The degenerate image is black. */
VECTORISED
void brightness(uint8_t *planes, ptrdiff_t n, float factor)
{
    for (ptrdiff_t i = 0; i < 3 * n; i++)
        planes[i] = blended(0, planes[i], factor);
}

/* The degenerate image is one gray level: the mean luma, rounded half up. */
VECTORISED
void contrast(uint8_t *planes, ptrdiff_t n, float factor)
{
    uint64_t sum = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        sum += luma(planes[i], planes[n + i], planes[2 * n + i]);
    int mean = (int)((double)sum / (double)n + 0.5);
    for (ptrdiff_t i = 0; i < 3 * n; i++)
        planes[i] = blended(mean, planes[i], factor);
}

/* The degenerate image is the gray version. */
VECTORISED
void saturation(uint8_t *planes, ptrdiff_t n, float factor)
{
    uint8_t *restrict r = planes, *restrict g = planes + n, *restrict b = planes + 2 * n;
    for (ptrdiff_t i = 0; i < n; i++) {
        int degenerate = luma(r[i], g[i], b[i]);
        r[i] = blended(degenerate, r[i], factor);
        g[i] = blended(degenerate, g[i], factor);
        b[i] = blended(degenerate, b[i], factor);
    }
}

/* Sets all three planes to the luma. */
VECTORISED
void gray(uint8_t *planes, ptrdiff_t n)
{
    uint8_t *restrict r = planes, *restrict g = planes + n, *restrict b = planes + 2 * n;
    for (ptrdiff_t i = 0; i < n; i++)
        r[i] = g[i] = b[i] = luma(r[i], g[i], b[i]);
}
