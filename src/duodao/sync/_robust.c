/* The three calls on a robust mutex that can't block, without the way through ctypes; robust.py says how they are used.

   Each takes an address, as an int or in a ctypes.c_void_p, and returns what the C library's function returns.
   Leave(address, told) is an `__exit__` or `release` that unlocks: gives None, or what told(errno) does.
   The caller sees to it that a mutex is there, as with ctypes. Linux only: elsewhere this isn't compiled, nor needed. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <string.h>
#include <structmember.h>

static pthread_mutex_t *mutex_at(PyObject *where) {
    void *at = NULL;
    if (PyLong_CheckExact(where)) {
        at = PyLong_AsVoidPtr(where);
    } else {
        Py_buffer pointer;
        if (PyObject_GetBuffer(where, &pointer, PyBUF_SIMPLE) < 0)
            return NULL;
        if (pointer.len == sizeof(at))
            memcpy(&at, pointer.buf, sizeof(at));
        PyBuffer_Release(&pointer);
    }
    if (at == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "no address of a mutex");
    return at;
}

#define CALL(name, function)                                                   \
    static PyObject *name(PyObject *Py_UNUSED(module), PyObject *where) {      \
        pthread_mutex_t *mutex = mutex_at(where);                              \
        return mutex == NULL ? NULL : PyLong_FromLong(function(mutex));        \
    }
CALL(trylock, pthread_mutex_trylock)
CALL(unlock, pthread_mutex_unlock)
CALL(consistent, pthread_mutex_consistent)

static PyMethodDef methods[] = {
    {"trylock", trylock, METH_O, "trylock($module, address, /)\n--\n\npthread_mutex_trylock(3)"},
    {"unlock", unlock, METH_O, "unlock($module, address, /)\n--\n\npthread_mutex_unlock(3)"},
    {"consistent", consistent, METH_O, "consistent($module, address, /)\n--\n\npthread_mutex_consistent(3)"},
    {NULL, NULL, 0, NULL},
};

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    pthread_mutex_t *mutex;
    PyObject *told;
} Leave;

static PyObject *Leave_call(PyObject *self, PyObject *const *Py_UNUSED(args), size_t Py_UNUSED(count),
                            PyObject *Py_UNUSED(names)) {
    int code = pthread_mutex_unlock(((Leave *)self)->mutex);
    if (code == 0 || ((Leave *)self)->told == Py_None)
        Py_RETURN_NONE;
    return PyObject_CallFunction(((Leave *)self)->told, "i", code);
}

static PyObject *Leave_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names)) {
    PyObject *where, *told;
    if (!PyArg_ParseTuple(args, "OO", &where, &told))
        return NULL;
    pthread_mutex_t *mutex = mutex_at(where);
    Leave *self = mutex == NULL ? NULL : (Leave *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->call = Leave_call;
        self->mutex = mutex;
        self->told = Py_NewRef(told);
    }
    return (PyObject *)self;
}

static int Leave_traverse(Leave *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->told);
    return 0;
}

static int Leave_clear(Leave *self) {
    Py_SETREF(self->told, Py_NewRef(Py_None));
    return 0;
}

static void Leave_dealloc(Leave *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->told);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef Leave_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Leave, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Leave_slots[] = {
    {Py_tp_new, Leave_new},           {Py_tp_call, PyVectorcall_Call},  {Py_tp_traverse, Leave_traverse},
    {Py_tp_clear, Leave_clear},       {Py_tp_dealloc, Leave_dealloc},   {Py_tp_members, Leave_members},
    {0, NULL},
};

static PyType_Spec Leave_spec = {
    .name = "duodao.sync._robust.Leave",
    .basicsize = sizeof(Leave),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .slots = Leave_slots,
};

static int start(PyObject *self) {
    PyObject *leave = PyType_FromModuleAndSpec(self, &Leave_spec, NULL);
    int result = leave == NULL ? -1 : PyModule_AddObjectRef(self, "Leave", leave);
    Py_XDECREF(leave);
    return result;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, start},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "duodao.sync._robust",
    .m_doc = "Calls on robust mutexes.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__robust(void) {
    return PyModuleDef_Init(&module);
}
