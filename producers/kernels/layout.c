/* Changes of the pixel layout. */
#include "kernels.h"

/* Copies three planes of n bytes to n pixels of three bytes. */
VECTORISED
void interleave(const uint8_t *planes, ptrdiff_t n, uint8_t *restrict pixels)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        pixels[3 * i] = planes[i];
        pixels[3 * i + 1] = planes[n + i];
        pixels[3 * i + 2] = planes[2 * n + i];
    }
}
