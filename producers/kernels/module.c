/* The Python interface of the kernels: checks buffers, and releases the interpreter lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define POSTER "producers.kernels.compiled.poster" /* name of its capsules */

/* Gets a C-contiguous buffer of this format and number of dimensions; -1 with an error set. */
static int take(PyObject *array, const char *name, int flags, const char *format, int dimensions,
                Py_buffer *view)
{
    if (PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) < 0) {
        if (PyErr_ExceptionMatches(PyExc_MemoryError))
            return -1;
        PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous%s array", name,
                     flags & PyBUF_WRITABLE ? ", writable" : "");
        return -1;
    }
    if (strcmp(view->format, format) == 0 && view->ndim == dimensions)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s must have %d dimensions and format %s, got %d and %s", name,
                 dimensions, format, view->ndim, view->format);
    PyBuffer_Release(view);
    return -1;
}

/* Gets a buffer uint8 [3, height, width] that is not empty. */
static int take_planes(PyObject *array, Py_buffer *view)
{
    if (take(array, "planes", PyBUF_WRITABLE, "B", 3, view) < 0)
        return -1;
    if (view->shape[0] == 3 && view->shape[1] > 0 && view->shape[2] > 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "planes must be [3, height, width], not empty");
    PyBuffer_Release(view);
    return -1;
}

static PyObject *done(int failed)
{
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static void free_poster(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, POSTER));
}

static PyObject *py_prepare(PyObject *Py_UNUSED(module), PyObject *array)
{
    Py_buffer pixels;
    struct poster *poster;
    if (take(array, "poster", 0, "B", 3, &pixels) < 0)
        return NULL;
    const Py_ssize_t *size = pixels.shape;
    if (size[0] < 1 || size[1] < 1 || size[2] != 3) {
        PyBuffer_Release(&pixels);
        PyErr_SetString(PyExc_ValueError, "poster must be [height, width, 3], not empty");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    poster = turned(pixels.buf, size[1], size[0]);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&pixels);
    if (!poster)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(poster, POSTER, free_poster);
    if (!capsule)
        free(poster);
    return capsule;
}

static PyObject *py_resize(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *capsule, *planes_array;
    struct box box;
    int filter, mirrored, failed = 0;
    Py_buffer planes;
    if (!PyArg_ParseTuple(args, "O(nnnn)ipO:resize", &capsule, &box.left, &box.top, &box.width,
                          &box.height, &filter, &mirrored, &planes_array))
        return NULL;
    if (filter != BILINEAR && filter != BICUBIC)
        return PyErr_Format(PyExc_ValueError, "filter must be 2 or 3, got %d", filter);
    const struct poster *poster = PyCapsule_GetPointer(capsule, POSTER);
    if (!poster || take_planes(planes_array, &planes) < 0)
        return NULL;
    int inside = box.left >= 0 && box.top >= 0 && box.width > 0 && box.height > 0 &&
                 box.width <= poster->width && box.left <= poster->width - box.width &&
                 box.height <= poster->height && box.top <= poster->height - box.height;
    if (inside) {
        Py_BEGIN_ALLOW_THREADS
        failed = resize(poster, box, (enum filter)filter, mirrored, planes.buf, planes.shape[2],
                        planes.shape[1]);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&planes);
    if (inside)
        return done(failed);
    PyErr_SetString(PyExc_ValueError, "the box must lie in the poster");
    return NULL;
}

/* Runs a colour operation with its factor, whose absolute value is at most `most`. */
static PyObject *recolour(PyObject *args, void (*operation)(uint8_t *, ptrdiff_t, float),
                          double limit)
{
    PyObject *array;
    Py_buffer planes;
    double factor;
    if (!PyArg_ParseTuple(args, "Od", &array, &factor))
        return NULL;
    if (!(fabs(factor) <= limit)) {
        PyErr_SetString(PyExc_ValueError, "the factor must be finite, and of hue at most 0.5");
        return NULL;
    }
    if (take_planes(array, &planes) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    operation(planes.buf, planes.shape[1] * planes.shape[2], (float)factor);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&planes);
    return done(0);
}

static PyObject *py_brightness(PyObject *Py_UNUSED(module), PyObject *args)
{
    return recolour(args, brightness, FLT_MAX);
}

static PyObject *py_contrast(PyObject *Py_UNUSED(module), PyObject *args)
{
    return recolour(args, contrast, FLT_MAX);
}

static PyObject *py_saturation(PyObject *Py_UNUSED(module), PyObject *args)
{
    return recolour(args, saturation, FLT_MAX);
}

static PyObject *py_hue(PyObject *Py_UNUSED(module), PyObject *args)
{
    return recolour(args, hue, 0.5);
}

static PyObject *py_gray(PyObject *Py_UNUSED(module), PyObject *array)
{
    Py_buffer planes;
    if (take_planes(array, &planes) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    gray(planes.buf, planes.shape[1] * planes.shape[2]);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&planes);
    return done(0);
}

/* Whether blurred values fit into a byte: no weight is negative or NaN, and their sum is 1 except
 * for roundings. */
static int normalised(const Py_buffer *weights)
{
    double sum = 0.0;
    for (Py_ssize_t i = 0; i < weights->shape[0]; i++) {
        double weight = ((const float *)weights->buf)[i];
        if (!(weight >= 0.0))
            return 0;
        sum += weight;
    }
    return fabs(sum - 1.0) < 1e-4;
}

static PyObject *py_blur(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *planes_array, *weights_array;
    Py_buffer planes, weights;
    int failed = 0;
    if (!PyArg_ParseTuple(args, "OO:blur", &planes_array, &weights_array) ||
        take_planes(planes_array, &planes) < 0)
        return NULL;
    if (take(weights_array, "weights", 0, "f", 1, &weights) < 0) {
        PyBuffer_Release(&planes);
        return NULL;
    }
    Py_ssize_t taps = weights.shape[0], height = planes.shape[1], width = planes.shape[2];
    int fits = taps % 2 == 1 && taps / 2 < height && taps / 2 < width && normalised(&weights);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        failed = blur(planes.buf, width, height, weights.buf, taps);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&weights);
    PyBuffer_Release(&planes);
    if (fits)
        return done(failed);
    return PyErr_Format(PyExc_ValueError, "%zd weights do not fit planes of %zd x %zd, or "
                        "do not sum to 1", taps, width, height);
}

static PyObject *py_interleave(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *planes_array, *pixels_array;
    Py_buffer planes, pixels;
    if (!PyArg_ParseTuple(args, "OO:interleave", &planes_array, &pixels_array) ||
        take_planes(planes_array, &planes) < 0)
        return NULL;
    if (take(pixels_array, "pixels", PyBUF_WRITABLE, "B", 3, &pixels) < 0) {
        PyBuffer_Release(&planes);
        return NULL;
    }
    Py_ssize_t height = planes.shape[1], width = planes.shape[2];
    int fits = pixels.shape[0] == height && pixels.shape[1] == width && pixels.shape[2] == 3;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        interleave(planes.buf, height * width, pixels.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&planes);
    if (fits)
        return done(0);
    return PyErr_Format(PyExc_ValueError, "pixels must be [%zd, %zd, 3]", height, width);
}

static PyMethodDef methods[] = {
    {"prepare", py_prepare, METH_O, NULL},
    {"resize", py_resize, METH_VARARGS, NULL},
    {"brightness", py_brightness, METH_VARARGS, NULL},
    {"contrast", py_contrast, METH_VARARGS, NULL},
    {"saturation", py_saturation, METH_VARARGS, NULL},
    {"hue", py_hue, METH_VARARGS, NULL},
    {"gray", py_gray, METH_O, NULL},
    {"blur", py_blur, METH_VARARGS, NULL},
    {"interleave", py_interleave, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "compiled",
    .m_doc = "The image recipe's operations on pixels, in C.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_compiled(void)
{
    return PyModuleDef_Init(&definition);
}
