/* A turn of the colour circle: to Pillow's HSV in bytes, and back. */
#include "kernels.h"

/* Nearest integer, halves up, of a value that is not negative. */
static inline int rounded(double value)
{
    int whole = (int)value;
    return whole + (value - whole >= 0.5);
}

/* A channel's value in one of the sixths, counted from where the channel starts to fall: at its
 * peak it is v, it falls along q to p, and rises along t. */
static inline int level(int sixth, int v, int p, int q, int t)
{
    sixth -= 6 * (sixth >= 6);
    int high = (sixth == 0) | (sixth == 5), low = (sixth == 2) | (sixth == 3);
    return high * v + low * p + (sixth == 1) * q + (sixth == 4) * t;
}

/* Pillow's arithmetic mixes float and double; each conversion below is one of its roundings. Where it
 * divides by 6 or 255, this multiplies, which is faster and gives the same for all colours. The
 * loop has no branches, so that it can be vectorised: grey pixels, whose hue and saturation are 0
 * by definition, divide by 1 instead of by their chroma of 0, and that makes both 0. */
VECTORISED
void hue(uint8_t *planes, ptrdiff_t n, float factor)
{
    int shift = (int)((double)factor * 255.0); /* of 255 steps, although hues wrap at 256 */
    uint8_t *restrict red = planes, *restrict green = planes + n, *restrict blue = planes + 2 * n;
    for (ptrdiff_t i = 0; i < n; i++) {
        int r = red[i], g = green[i], b = blue[i];
        int max = r > g ? r : g, min = r < g ? r : g;
        max = max > b ? max : b;
        min = min < b ? min : b;

        /* To HSV. The circle starts at red; green and blue follow at 2 and 4 sixths. The two parts
         * that differ from the maximum, in units of the chroma, say how far from there. */
        int chroma = max - min;
        float unit = (float)(chroma + (chroma == 0));
        int is_r = r == max, is_g = !is_r & (g == max), is_b = !(is_r | is_g);
        int first = is_r ? b : is_g ? r : g, second = is_r ? g : is_g ? b : r;
        double start = 2 * is_g + 4 * is_b;
        double ahead = (float)(max - first) / unit, behind = (float)(max - second) / unit;
        double turn = (double)(float)(start + ahead - behind) * (1.0 / 6.0) + 1.0;
        float circle = (float)(turn - (turn >= 1.0));
        uint8_t h = (uint8_t)((int)((double)circle * 255.0) + shift);
        float share = (float)chroma / (float)(max + (max == 0));
        int s = (int)((double)share * 255.0);

        /* And back: a sixth of the circle runs from one of six corners to the next. */
        double sixths = (double)((float)h) * (6.0 / 255.0);
        int sixth = (int)sixths;
        float f = (float)(sixths - (double)(float)sixth), fs = (float)((double)(float)s * (1.0 / 255.0));
        int p = rounded((double)(float)max * (1.0 - (double)fs));
        int q = rounded((double)(float)max * (1.0 - (double)(fs * f)));
        int t = rounded((double)(float)max * (1.0 - (double)fs * (1.0 - (double)f)));
        red[i] = (uint8_t)level(sixth, max, p, q, t);
        green[i] = (uint8_t)level(sixth + 4, max, p, q, t);
        blue[i] = (uint8_t)level(sixth + 2, max, p, q, t);
    }
}
