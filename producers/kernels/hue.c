/* Rotation of the hue: conversion to Pillow's HSV in bytes, and back. */
#include "kernels.h"

/* A block of pixels between the two conversions. */
enum { BLOCK = 256 };
struct hsv {
    uint8_t hue[BLOCK], saturation[BLOCK], value[BLOCK];
};

/* Pillow's arithmetic mixes float and double; each conversion below is one of its roundings. Where it
 * divides by 6, this multiplies, which is faster and gives the same for all colours. The loop has
 * no branches, so that it can be vectorised: grey pixels, whose hue and saturation are 0 by
 * definition, divide by 1 instead of by their chroma of 0, and that makes both 0. */
VECTORISED
static void to_hsv(const uint8_t *restrict red, const uint8_t *restrict green,
                   const uint8_t *restrict blue, ptrdiff_t n, struct hsv *restrict to)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        int r = red[i], g = green[i], b = blue[i];
        int max = r > g ? r : g, min = r < g ? r : g;
        max = max > b ? max : b;
        min = min < b ? min : b;

        /* The circle starts at red; green and blue follow at 2 and 4 sixths. The two parts that
         * differ from the maximum, in units of the chroma, say how far from there. */
        int chroma = max - min;
        float unit = (float)(chroma + (chroma == 0));
        int is_r = r == max, is_g = !is_r & (g == max), is_b = !(is_r | is_g);
        int first = is_r ? b : is_g ? r : g, second = is_r ? g : is_g ? b : r;
        double start = 2 * is_g + 4 * is_b;
        double ahead = (float)(max - first) / unit, behind = (float)(max - second) / unit;
        double turn = (double)(float)(start + ahead - behind) * (1.0 / 6.0) + 1.0;
        float circle = (float)(turn - (turn >= 1.0));
        float share = (float)chroma / (float)(max + (max == 0));
        to->hue[i] = (uint8_t)((double)circle * 255.0);
        to->saturation[i] = (uint8_t)((double)share * 255.0);
        to->value[i] = (uint8_t)max;
    }
}

/* A channel is the value, less a part of its saturation. A sixth of the circle is 255 here, turned by
 * `start` sixths: at 0 the channel begins to fall, from 1 to 3 it lacks all of the saturation, and
 * at 4 it is up again. Pillow rounds products of floats, of which none comes near a half: these
 * are the exact ones. */
static inline uint8_t channel(int hue, int saturation, int value, int start)
{
    int at = 6 * hue + 255 * start;
    at -= at >= 6 * 255 ? 6 * 255 : 0;
    int part = at < 4 * 255 - at ? at : 4 * 255 - at;
    part = part < 0 ? 0 : part > 255 ? 255 : part;
    unsigned left = (unsigned)(value * (255 * 255 - saturation * part));
    return (uint8_t)((left + 255 * 255 / 2) / (255 * 255));
}

VECTORISED
static void to_rgb(const struct hsv *restrict from, ptrdiff_t n, uint8_t shift,
                   uint8_t *restrict red, uint8_t *restrict green, uint8_t *restrict blue)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        uint8_t hue = (uint8_t)(from->hue[i] + shift);
        red[i] = channel(hue, from->saturation[i], from->value[i], 5);
        green[i] = channel(hue, from->saturation[i], from->value[i], 3);
        blue[i] = channel(hue, from->saturation[i], from->value[i], 1);
    }
}

void hue(uint8_t *planes, ptrdiff_t n, float factor)
{
    /* The shift is in 255 steps, although hues are modulo 256: as the paper's code has it. */
    uint8_t shift = (uint8_t)(int)((double)factor * 255.0);
    struct hsv block;
    for (ptrdiff_t i = 0; i < n; i += BLOCK) {
        uint8_t *red = planes + i, *green = red + n, *blue = green + n;
        ptrdiff_t many = n - i < BLOCK ? n - i : BLOCK;
        to_hsv(red, green, blue, many, &block);
        to_rgb(&block, many, shift, red, green, blue);
    }
}
