/* What Lock and RLock stand on, in C: who holds it, and all that can be done without waiting or waking anybody.

   `Held` takes the place of `_thread.RLock` under lock.py's `_Held`. Its methods take the place of Python methods there
   (`speed.hasten`): same results, same errors, because whatever is not the plain case is handed to the Python method,
   which `hasten` has kept as `_slow_...`. So lock.py alone says how a lock behaves; this says the plain case faster.

   Invariants:
     1. owner is the ident of the thread that holds it, 0 for nobody. It goes from 0 to a thread by `swap` alone, and
        only its holder (or who reclaims it from a dead one) sets it back. count and holder are the holder's.
     2. A lock is freed first and looked at for waiters second; they park first and look at the lock second (lot.py).
        With a GIL each function here is one step, so the order doesn't show. Without one, owner is atomic. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#ifdef Py_GIL_DISABLED
#define load(at) __atomic_load_n(at, __ATOMIC_SEQ_CST)
#define store(at, value) __atomic_store_n(at, value, __ATOMIC_SEQ_CST)
static inline int swap(unsigned long *at, unsigned long old, unsigned long new) {
    return __atomic_compare_exchange_n(at, &old, new, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#else
#define load(at) (*(at))
#define store(at, value) (*(at) = (value))
static inline int swap(unsigned long *at, unsigned long old, unsigned long new) {
    if (*at != old)
        return 0;
    *at = new;
    return 1;
}
#endif
#ifndef Py_BEGIN_CRITICAL_SECTION
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

typedef struct {
    PyObject_HEAD
    unsigned long owner;
    unsigned long count; /* how often the owner has it */
    PyObject *holder;    /* the task that has it in its thread's name, else None */
    PyObject *parked;    /* the deque of those that wait */
    PyObject *weakrefs;
    char again; /* the owner may take it again: an RLock */
} Held;

enum { ACQUIRE, RELEASE, ENTER, EXIT, AENTER, AEXIT, AGAIN, NAMES };
static const char *const names_of[NAMES] = {"_slow_acquire", "_slow_release", "_slow_enter", "_slow_exit",
                                            "_slow_aenter",  "_slow_aexit",   "_again"};

typedef struct {
    PyObject *names[NAMES]; /* interned: each string of its own would take a place in the cache of Python's types */
    PyObject *current;    /* asyncio's current_task; before Python 3.12, where that is slow, its _get_running_loop */
    PyObject *tasks;      /* and the task of each loop */
    PyObject *yes, *none; /* what awaiting gives at once */
} State;

static struct PyModuleDef module;

/* Steps */

static State *state_of(PyTypeObject *type) {
    return PyModule_GetState(PyType_GetModuleByDef(type, &module));
}

static inline int of_task(Held *self) {
    PyObject *holder = load(&self->holder);
    return holder != NULL && holder != Py_None;
}

static void set_holder(Held *self, PyObject *task) {
    PyObject *old;
    Py_INCREF(task);
    Py_BEGIN_CRITICAL_SECTION(self);
    old = self->holder;
    store(&self->holder, task);
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(old);
}

static inline int take(Held *self, unsigned long me, int again) {
    if (load(&self->owner) == me) {
        if (!again)
            return 0;
        self->count++;
        return 1;
    }
    if (!swap(&self->owner, 0, me))
        return 0;
    self->count = 1;
    return 1;
}

static inline int take_for_thread(Held *self) {
    return take(self, PyThread_get_thread_ident(), self->again && !of_task(self));
}

static int take_for_task(Held *self, PyObject *task) {
    if (!take(self, PyThread_get_thread_ident(), self->again && load(&self->holder) == task))
        return 0;
    if (self->count == 1)
        set_holder(self, task);
    return 1;
}

static inline void make_free(Held *self) {
    self->count = 0;
    store(&self->owner, 0);
}

/* 1: it is free now. 0: somebody waits, and Python is to do it. -1: an error. */
static int free_unheard(Held *self) {
    Py_ssize_t waiters = self->parked == NULL ? 0 : PyObject_Size(self->parked);
    if (waiters != 0)
        return waiters < 0 ? -1 : 0;
    if (of_task(self))
        set_holder(self, Py_None);
    make_free(self);
#ifdef Py_GIL_DISABLED
    waiters = PyObject_Size(self->parked);
    if (waiters != 0) {
        PyObject *lot = waiters < 0 ? NULL : PyImport_ImportModule("duodao.sync.lot");
        PyObject *woken = lot == NULL ? NULL : PyObject_CallMethod(lot, "wake", "O", self->parked);
        Py_XDECREF(lot);
        Py_XDECREF(woken);
        return woken == NULL ? -1 : 1;
    }
#endif
    return 1;
}

static PyObject *slow(Held *self, int name, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    PyObject *method = PyObject_GetAttr((PyObject *)self, state_of(Py_TYPE(self))->names[name]);
    if (method == NULL)
        return NULL;
    PyObject *result = PyObject_Vectorcall(method, args, (size_t)count, names);
    Py_DECREF(method);
    return result;
}

/* Methods: threads */

static PyObject *Held_enter(Held *self, PyObject *Py_UNUSED(none)) {
    return take_for_thread(self) ? Py_NewRef(Py_True) : slow(self, ENTER, NULL, 0, NULL);
}

static PyObject *Held_try(Held *self, PyObject *Py_UNUSED(none)) {
    return PyBool_FromLong(take_for_thread(self));
}

static PyObject *Held_acquire(Held *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    if (names == NULL && (count == 0 || (count == 1 && args[0] == Py_True)) && take_for_thread(self))
        Py_RETURN_TRUE;
    if (names == NULL && count == 1 && args[0] == Py_False)
        return Held_try(self, NULL);
    return slow(self, ACQUIRE, args, count, names);
}

static inline PyObject *leave(Held *self, int name, PyObject *const *args, Py_ssize_t count) {
    if (load(&self->owner) == PyThread_get_thread_ident() && !of_task(self)) {
        if (self->count > 1) {
            self->count--;
            Py_RETURN_NONE;
        }
        int freed = free_unheard(self);
        if (freed != 0)
            return freed < 0 ? NULL : Py_NewRef(Py_None);
    }
    return slow(self, name, args, count, NULL);
}

static PyObject *Held_release(Held *self, PyObject *Py_UNUSED(none)) {
    return leave(self, RELEASE, NULL, 0);
}

static PyObject *Held_exit(Held *self, PyObject *const *error, Py_ssize_t count) {
    return leave(self, EXIT, error, count);
}

/* Methods: tasks */

static PyObject *current_task(State *state) {
    PyObject *current = PyObject_CallNoArgs(state->current);
#if PY_VERSION_HEX < 0x030C0000
    PyObject *task = current == NULL ? NULL : PyDict_GetItemWithError(state->tasks, current);
    Py_XDECREF(current);
    current = task != NULL ? Py_NewRef(task) : PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
#endif
    return current;
}

static PyObject *Held_try_task(Held *self, PyObject *task) {
    return PyBool_FromLong(take_for_task(self, task));
}

static PyObject *Held_aenter(Held *self, PyObject *Py_UNUSED(none)) {
    State *state = state_of(Py_TYPE(self));
    PyObject *task = current_task(state);
    if (task == NULL)
        return NULL;
    /* As asyncio's: nobody is overtaken who stands there already. */
    Py_ssize_t before = load(&self->holder) == task || self->parked == NULL ? 0 : PyObject_Size(self->parked);
    int taken = before == 0 && task != Py_None && take_for_task(self, task);
    Py_DECREF(task);
    if (before < 0)
        return NULL;
    return taken ? Py_NewRef(state->yes) : slow(self, AENTER, NULL, 0, NULL);
}

static PyObject *Held_aexit(Held *self, PyObject *const *error, Py_ssize_t count) {
    State *state = state_of(Py_TYPE(self));
    PyObject *task = current_task(state);
    if (task == NULL)
        return NULL;
    int ours = task != Py_None && load(&self->holder) == task;
    Py_DECREF(task);
    if (ours && self->count > 1) {
        self->count--;
        return Py_NewRef(state->none);
    }
    int freed = ours ? free_unheard(self) : 0;
    if (freed != 0)
        return freed < 0 ? NULL : Py_NewRef(state->none);
    return slow(self, AEXIT, error, count, NULL);
}

/* Methods: those of `_thread.RLock` that lock.py builds on. None of them waits. */

static PyObject *Held_take(Held *self, PyObject *Py_UNUSED(blocking)) {
    return PyBool_FromLong(take(self, PyThread_get_thread_ident(), 1));
}

static PyObject *not_acquired(void) {
    PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
    return NULL;
}

static PyObject *Held_free(Held *self, PyObject *Py_UNUSED(none)) {
    if (load(&self->owner) != PyThread_get_thread_ident())
        return not_acquired();
    if (self->count > 1)
        self->count--;
    else
        make_free(self);
    Py_RETURN_NONE;
}

static PyObject *Held_is_owned(Held *self, PyObject *Py_UNUSED(none)) {
    return PyBool_FromLong(load(&self->owner) == PyThread_get_thread_ident());
}

static PyObject *Held_locked(Held *self, PyObject *Py_UNUSED(none)) {
    return PyBool_FromLong(load(&self->owner) != 0);
}

static PyObject *Held_recursion_count(Held *self, PyObject *Py_UNUSED(none)) {
    return PyLong_FromUnsignedLong(load(&self->owner) == PyThread_get_thread_ident() ? self->count : 0);
}

static PyObject *Held_release_save(Held *self, PyObject *Py_UNUSED(none)) {
    unsigned long owner = load(&self->owner), count = self->count;
    if (owner == 0)
        return not_acquired();
    make_free(self);
    return Py_BuildValue("kk", count, owner);
}

static PyObject *Held_at_fork_reinit(Held *self, PyObject *Py_UNUSED(none)) {
    make_free(self);
    Py_RETURN_NONE;
}

static PyObject *Held_repr(Held *self) {
    unsigned long owner = load(&self->owner);
    return PyUnicode_FromFormat("<%s %s object owner=%lu count=%lu at %p>", owner ? "locked" : "unlocked",
                                Py_TYPE(self)->tp_name, owner, self->count, self);
}

/* The type */

static PyObject *Held_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
    PyObject *again = PyObject_GetAttr((PyObject *)type, state_of(type)->names[AGAIN]);
    if (again == NULL)
        return NULL;
    Held *self = (Held *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->again = again == Py_True;
    Py_DECREF(again);
    return (PyObject *)self;
}

static int Held_traverse(Held *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->holder);
    Py_VISIT(self->parked);
    return 0;
}

static int Held_clear(Held *self) {
    Py_CLEAR(self->holder);
    Py_CLEAR(self->parked);
    return 0;
}

static void Held_dealloc(Held *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    Held_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define METHOD(name, function, flags, text) {name, (PyCFunction)(void (*)(void))function, flags, text}
static PyMethodDef Held_methods[] = {
    METHOD("acquire", Held_acquire, METH_FASTCALL | METH_KEYWORDS,
           "acquire($self, /, blocking=True, timeout=-1)\n--\n\nTake it; lock.py's `acquire` says how."),
    METHOD("release", Held_release, METH_NOARGS,
           "release($self, /)\n--\n\nGive it back. RuntimeError, naming the holder, for anyone but its holder."),
    METHOD("__enter__", Held_enter, METH_NOARGS, NULL),
    METHOD("__exit__", Held_exit, METH_FASTCALL, NULL),
    METHOD("__aenter__", Held_aenter, METH_NOARGS, NULL),
    METHOD("__aexit__", Held_aexit, METH_FASTCALL, NULL),
    METHOD("locked", Held_locked, METH_NOARGS, "locked($self, /)\n--\n\nDoes anybody hold it now?"),
    METHOD("_try", Held_try, METH_NOARGS, NULL),
    METHOD("_try_task", Held_try_task, METH_O, NULL),
    METHOD("_take", Held_take, METH_O, NULL),
    METHOD("_free", Held_free, METH_NOARGS, NULL),
    METHOD("_is_owned", Held_is_owned, METH_NOARGS, NULL),
    METHOD("_recursion_count", Held_recursion_count, METH_NOARGS, NULL),
    METHOD("_release_save", Held_release_save, METH_NOARGS, NULL),
    METHOD("_at_fork_reinit", Held_at_fork_reinit, METH_NOARGS, NULL),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Held_members[] = {
    {"_holder", T_OBJECT_EX, offsetof(Held, holder), 0, NULL},
    {"_parked", T_OBJECT_EX, offsetof(Held, parked), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Held, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Held_slots[] = {
    {Py_tp_doc, "A lock that knows its thread, its task and who waits for it."},
    {Py_tp_new, Held_new},
    {Py_tp_repr, Held_repr},
    {Py_tp_traverse, Held_traverse},
    {Py_tp_clear, Held_clear},
    {Py_tp_dealloc, Held_dealloc},
    {Py_tp_methods, Held_methods},
    {Py_tp_members, Held_members},
    {0, NULL},
};

static PyType_Spec Held_spec = {
    .name = "duodao.sync._speed.Held",
    .basicsize = sizeof(Held),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Held_slots,
};

/* What `__aenter__` and `__aexit__` give when there is nothing to wait for: awaiting it gives `value` at once. */

typedef struct {
    PyObject_HEAD
    PyObject *value;
} Done;

static PyObject *Done_await(Done *self) {
    return Py_NewRef((PyObject *)self);
}

static PyObject *Done_next(Done *self) {
    if (self->value != Py_None)
        PyErr_SetObject(PyExc_StopIteration, self->value);
    return NULL;
}

static PySendResult Done_send(Done *self, PyObject *Py_UNUSED(sent), PyObject **value) {
    *value = Py_NewRef(self->value);
    return PYGEN_RETURN;
}

static void Done_dealloc(Done *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(self->value);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot Done_slots[] = {
    {Py_am_await, Done_await},
    {Py_am_send, Done_send},
    {Py_tp_iter, Done_await},
    {Py_tp_iternext, Done_next},
    {Py_tp_dealloc, Done_dealloc},
    {0, NULL},
};

static PyType_Spec Done_spec = {
    .name = "duodao.sync._speed.Done",
    .basicsize = sizeof(Done),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Done_slots,
};

static PyObject *done(PyTypeObject *type, PyObject *value) {
    Done *self = PyObject_New(Done, type); /* takes a reference to its type */
    if (self != NULL)
        self->value = Py_NewRef(value);
    return (PyObject *)self;
}

/* The module */

static int start(PyObject *self) {
    State *state = PyModule_GetState(self);
    for (int name = 0; name < NAMES; name++)
        if ((state->names[name] = PyUnicode_InternFromString(names_of[name])) == NULL)
            return -1;
    PyObject *held = PyType_FromModuleAndSpec(self, &Held_spec, NULL);
    if (held == NULL)
        return -1;
    int failed = PyObject_SetAttrString(held, "_again", Py_False) < 0 || PyModule_AddObjectRef(self, "Held", held) < 0;
    Py_DECREF(held);
    PyObject *asyncio = failed ? NULL : PyImport_ImportModule("asyncio.tasks");
    if (asyncio == NULL)
        return -1;
#if PY_VERSION_HEX < 0x030C0000
    state->tasks = PyObject_GetAttrString(asyncio, "_current_tasks");
    Py_SETREF(asyncio, state->tasks == NULL ? NULL : PyImport_ImportModule("asyncio.events"));
    state->current = asyncio == NULL ? NULL : PyObject_GetAttrString(asyncio, "_get_running_loop");
#else
    state->current = PyObject_GetAttrString(asyncio, "current_task");
#endif
    Py_XDECREF(asyncio);
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(self, &Done_spec, NULL);
    if (type == NULL)
        return -1;
    state->yes = done(type, Py_True);
    state->none = done(type, Py_None);
    Py_DECREF(type);
    return state->current == NULL || state->yes == NULL || state->none == NULL ? -1 : 0;
}

static int module_traverse(PyObject *self, visitproc visit, void *arg) {
    State *state = PyModule_GetState(self);
    Py_VISIT(state->current);
    Py_VISIT(state->tasks);
    Py_VISIT(state->yes);
    Py_VISIT(state->none);
    return 0;
}

static int module_clear(PyObject *self) {
    State *state = PyModule_GetState(self);
    for (int name = 0; name < NAMES; name++)
        Py_CLEAR(state->names[name]);
    Py_CLEAR(state->current);
    Py_CLEAR(state->tasks);
    Py_CLEAR(state->yes);
    Py_CLEAR(state->none);
    return 0;
}

static void module_free(void *self) {
    module_clear(self);
}

static PyModuleDef_Slot module_slots[] = {
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
    .m_name = "duodao.sync._speed",
    .m_doc = "What Lock and RLock stand on, in C.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__speed(void) {
    return PyModuleDef_Init(&module);
}
