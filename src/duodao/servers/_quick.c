/* The short way of a line: from the loop to an inline handler and back to the socket. quick.py says the same in Python.

   Plain is: one whole line, an answer of bytes that the kernel takes at once, a call that didn't hold the loop. Whatever
   else happens is handed back to connection.py, which alone says what a connection does. The socket never blocks, so the
   GIL is kept while it is written to. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* Python ignores SIGPIPE */
#endif

enum { SMALL = 4096 }; /* an answer that is copied to get its line feed */

static double seconds_now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

/* Bytes that the kernel took of the answer and its line feed, -1 when the peer is gone. */
static Py_ssize_t put(int fd, PyObject *reply) {
    char line[SMALL];
    Py_ssize_t size = PyBytes_GET_SIZE(reply);
    if (size >= SMALL)
        return 0;
    memcpy(line, PyBytes_AS_STRING(reply), (size_t)size);
    line[size] = '\n';
    ssize_t took = send(fd, line, (size_t)size + 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (took < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
    return took;
}

static PyObject *answer(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "answer(call, data, fd, limit, held)");
        return NULL;
    }
    PyObject *data = given[1];
    int fd = (int)PyLong_AsLong(given[2]);
    Py_ssize_t limit = PyLong_AsSsize_t(given[3]);
    double held = PyFloat_AsDouble(given[4]);
    if (PyErr_Occurred())
        return NULL;
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    const char *text = PyBytes_AS_STRING(data);
    Py_ssize_t size = PyBytes_GET_SIZE(data) - 1; /* without the line feed */
    if (size < 0 || size >= limit || text[size] != '\n' || (size > 0 && text[size - 1] == '\r') ||
        memchr(text, '\n', (size_t)size) != NULL)
        Py_RETURN_NONE;
    PyObject *line = PyBytes_FromStringAndSize(text, size);
    if (line == NULL)
        return NULL;
    double began = seconds_now();
    PyObject *reply = PyObject_CallOneArg(given[0], line);
    Py_DECREF(line);
    if (reply == NULL)
        return NULL;
    double took = seconds_now() - began;
    Py_ssize_t sent = 0;
    if (PyBytes_CheckExact(reply)) {
        sent = put(fd, reply);
        if (sent == PyBytes_GET_SIZE(reply) + 1 && took <= held) {
            Py_DECREF(reply);
            return PyLong_FromSsize_t(sent);
        }
    }
    return Py_BuildValue("(Nnd)", reply, sent, took);
}

static PyMethodDef functions[] = {
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_quick", NULL, 0, functions, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__quick(void) { return PyModuleDef_Init(&module); }
