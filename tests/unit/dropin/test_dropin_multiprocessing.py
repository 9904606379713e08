"""What `duodao.dropin.multiprocessing` refuses, and what it does otherwise than the standard library."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from duodao.dropin import multiprocessing as mp
from duodao.dropin.multiprocessing import connection, managers, pool, queues
from duodao.errors import LostUpdate, NotPicklable, UsageError, WorkerDied


class Unwilling:
    """Can't be pickled."""

    def __reduce__(self):
        raise RuntimeError("not this one")


def unwilling_result(_):
    return Unwilling()


def double(number):
    return number * 2


def add_one(shared, put):
    try:
        shared["x"] += 1
    except LostUpdate as error:
        put.put(str(error))
    else:
        put.put(None)


# --- the names


def test_names_are_loaded_when_they_are_used():
    """The package alone loads neither pools nor locks: every process that starts imports it."""
    code = (
        "import sys; from duodao.dropin import multiprocessing; "
        "print([name for name in sys.modules if name.startswith(('duodao.dropin.multiprocessing.', 'duodao.sync', "
        "'duodao.pipeline', 'multiprocessing'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_an_unknown_name_says_which_there_are():
    """AttributeError lists the names."""
    with pytest.raises(AttributeError, match="'Proces'; it has Array, .*Process"):
        mp.Proces
    assert set(mp.__all__) <= {*dir(mp)}
    assert all(hasattr(mp, name) for name in mp.__all__)


def test_start_methods_are_accepted():
    """All start methods are one here, and an unknown one is refused by name."""
    for method in ("fork", "spawn", "forkserver"):
        mp.set_start_method(method, force=True)
        assert mp.get_context(method).Process is mp.Process
    assert mp.get_start_method() == "forkserver"
    with pytest.raises(UsageError, match="fork, spawn, forkserver"):
        mp.set_start_method("thread")
    with pytest.raises(UsageError, match="interpreter"):
        mp.set_executable("/usr/bin/python3")
    mp.freeze_support()


def test_shared_memory_says_what_to_use():
    """The module that isn't there names what stands in for it."""
    with pytest.raises(ImportError, match=r"RawArray.*duodao\.Shared"):
        import duodao.dropin.multiprocessing.shared_memory  # noqa: F401


# --- processes


def test_states_of_a_process():
    """What can't be done to a process in its state raises as in the standard library."""
    process = mp.Process(target=double, args=(1,), name="p", daemon=True)
    assert "initial" in repr(process)
    assert (process.pid, process.exitcode, process.is_alive()) == (None, None, False)
    with pytest.raises(AssertionError, match="can only join a started process"):
        process.join()
    with pytest.raises(ValueError, match="not started"):
        process.terminate()
    process.start()
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        process.start()
    with pytest.raises(AssertionError, match="already started"):
        process.daemon = False
    process.join()
    assert "stopped exitcode=0" in repr(process)
    process.close()
    with pytest.raises(ValueError, match="process object is closed"):
        process.join()


def test_an_argument_that_cannot_travel_is_said_in_start():
    """start() raises, with the cause, and the process may be forgotten."""
    process = mp.Process(target=double, args=(Unwilling(),))
    with pytest.raises(NotPicklable) as caught:
        process.start()
    assert str(caught.value.__cause__) == "not this one"
    assert (process.pid, mp.active_children()) == (None, [])


def test_a_connection_travels_only_with_a_process():
    """A Pipe's end in a queue is refused with the reason."""
    here, there = mp.Pipe()
    queue = mp.Queue()
    try:
        with pytest.raises(NotPicklable, match="can only be given to a Process as it starts"):
            queue.put(here)
        assert queue.empty()
        assert isinstance(here, connection.Connection)
    finally:
        here.close()
        there.close()


# --- queues


def test_what_cannot_be_pickled_raises_in_put():
    """The caller of put() is told, where the standard feeder thread prints; the queue is as it was."""
    queue = mp.Queue(1)
    with pytest.raises(NotPicklable):
        queue.put(Unwilling())
    queue.put("fine")
    assert queue.get() == "fine"


def test_closed_queues():
    """After close() this process's handle raises what the standard queues raise, of either kind; a copy goes on."""
    for kind in (mp.Queue, mp.SimpleQueue, mp.JoinableQueue):
        queue = kind()
        other = pickle.loads(pickle.dumps(queue))
        queue.close()
        with pytest.raises(ValueError, match="is closed"):
            queue.put(1)
        with pytest.raises(OSError, match="is closed"):
            queue.empty()
        other.put(1)
        assert other.get() == 1
    assert issubclass(queues.Closed, (ValueError, OSError))


# --- pools


def test_sizes_of_pools():
    """A pool has at least one worker, and no more calls per worker than a positive whole number."""
    for options in ({"processes": 0}, {"processes": -1}, {"maxtasksperchild": 0}, {"maxtasksperchild": "12"}):
        with pytest.raises(ValueError):
            mp.Pool(**options)
    with pytest.raises(TypeError):
        mp.Pool(initializer=1)


def test_what_a_pool_cannot_pickle():
    """An input raises what pickling it raised, with our text as a note; a result is MaybeEncodingError."""
    with mp.Pool(1) as workers:
        with pytest.raises(RuntimeError, match="not this one") as caught:
            workers.map(double, [Unwilling()])
        assert "can't be pickled" in caught.value.__notes__[0]
        with pytest.raises(pool.MaybeEncodingError, match="result"):
            workers.apply(unwilling_result, (1,))
        assert workers.map(double, [1, 2]) == [2, 4]


def test_states_of_a_pool():
    """join() is for a pool that is closed; a closed one takes nothing; what runs in a terminated one is killed."""
    workers = mp.Pool(1)
    with pytest.raises(ValueError, match="still running"):
        workers.join()
    event = mp.Event()
    result = workers.apply_async(event.wait)
    with pytest.raises(mp.TimeoutError):
        result.get(timeout=0.01)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    workers.terminate()
    workers.join()
    with pytest.raises(WorkerDied):
        result.get()
    with pytest.raises(ValueError, match="not running"):
        workers.map(double, [1])
    with pytest.raises(NotImplementedError):
        pickle.dumps(workers)


# --- managers


def test_a_manager_has_no_server():
    """register, connect and an initializer are refused with the reason and what to do."""
    manager = mp.Manager()
    with pytest.raises(UsageError, match=r"no process in which an object could live.*Namespace"):
        manager.register("Thing", object)
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        manager.connect()
    with pytest.raises(UsageError, match="no process of its own"):
        manager.start(print)
    with pytest.raises(TypeError):
        manager.start(1)
    with manager:
        manager.join()
    assert managers.SyncManager is type(manager)

    class Mine(managers.BaseManager):
        pass

    with pytest.raises(UsageError, match="can't register 'Thing'"):
        Mine.register("Thing", callable=object)


def test_values_of_a_manager_are_read_only():
    """Changing in place what a dict() or list() gave raises, where the standard library changes a copy in silence."""
    manager = mp.Manager()
    for shared, key in ((manager.dict(x=[1]), "x"), (manager.list([[1]]), 0)):
        with pytest.raises(TypeError, match="read-only"):
            shared[key].append(2)
        shared[key] = [*shared[key], 2]
        assert shared[key] == [1, 2]


def test_proxies_in_proxies():
    """What is shared stays shared inside of another: dicts, lists, queues, locks, values."""
    manager = mp.Manager()
    inner, queue, lock = manager.list([1]), manager.Queue(), manager.Lock()
    outer = manager.dict(inner=inner, queue=queue, lock=lock)
    outer["inner"].append(2)
    outer["queue"].put("hello")
    with outer["lock"]:
        assert not lock.acquire(block=False)
    assert (inner[:], queue.get()) == ([1, 2], "hello")


def test_a_list_changes_as_a_list():
    """Each method of a list() does what a list's does."""
    shared, plain = mp.Manager().list([3, 1, 2]), [3, 1, 2]
    for each in (shared, plain):
        each.append(5)
        each.extend([7, 1])
        each.insert(1, 9)
        each[0] = 8
        each[-1] = 4
        each[2:4] = [6]
        each.remove(7)
        del each[1]
        each.sort(key=lambda value: -value)
        each.reverse()
        each += [0]
    assert shared[:] == plain
    assert shared == plain
    assert (shared.pop(), shared.pop(0), len(shared)) == (plain.pop(), plain.pop(0), len(plain))
    assert (shared.index(plain[1]), shared.count(99), 99 in shared, shared * 2) == (1, 0, False, plain * 2)
    with pytest.raises(IndexError):
        shared[99]
    with pytest.raises(ValueError):
        shared.remove(99)
    assert shared[:] == plain
    shared.clear()
    assert (list(shared), str(shared), repr(shared)) == ([], "[]", "<ListProxy []>")


def test_a_dict_changes_as_a_dict():
    """Each method of a dict() does what a dict's does."""
    shared, plain = mp.Manager().dict(a=1, b=2), {"a": 1, "b": 2}
    for each in (shared, plain):
        each["c"] = 3
        each.update({"d": 4}, e=5)
        del each["a"]
        assert each.pop("b") == 2
        assert each.pop("none", 0) == 0
        assert each.setdefault("f", 6) == 6
        assert each.setdefault("c", 0) == 3
        assert each.popitem() == ("f", 6)
    assert (shared.copy(), shared.keys(), shared.values(), shared.items(), len(shared), "c" in shared) == (
        plain,
        list(plain),
        list(plain.values()),
        list(plain.items()),
        len(plain),
        True,
    )
    with pytest.raises(KeyError):
        shared["none"]
    shared.clear()
    assert (shared.copy(), str(shared)) == ({}, "{}")


def test_a_namespace():
    """Its attributes are shared; one that isn't there is an AttributeError."""
    space = mp.Manager().Namespace(x=1)
    copy = pickle.loads(pickle.dumps(space))
    copy.x += 1
    copy.y = "y"
    assert (space.x, space.y, repr(space)) == (2, "y", "Namespace(x=2, y='y')")
    del space.y
    with pytest.raises(AttributeError, match="'y'"):
        copy.y
    with pytest.raises(AttributeError):
        del space.y


def test_a_lost_update_raises():
    """`d["x"] += 1` in this process, of a value that another has changed since it was read, is LostUpdate."""
    shared, told = mp.Manager().dict(x=0), mp.Queue()
    before = shared["x"]
    process = mp.Process(target=add_one, args=(shared, told))
    process.start()
    process.join()
    assert told.get() is None
    with pytest.raises(LostUpdate, match="'x'"):
        shared["x"] = before + 1
    assert shared["x"] == 1


# --- locks


def test_arguments_of_locks():
    """acquire(block, timeout) as multiprocessing has it: below 0 is 0, and without blocking it doesn't count."""
    for lock in (mp.Semaphore(0), mp.BoundedSemaphore(1)):
        lock.acquire(block=False)
        assert not lock.acquire(False, 5)
        assert not lock.acquire(True, -1)
        assert lock.get_value() == 0
    lock = mp.Lock()
    assert lock.acquire(block=True, timeout=None)
    assert not lock.acquire(False, 5)
    assert not lock.acquire(timeout=-1)
    lock.release()
    with pytest.raises(RuntimeError, match="nobody holds it"):
        lock.release()
    again = mp.RLock()
    assert again.acquire()
    assert again.acquire(False)


def test_values_have_their_lock():
    """A Value of a lock of one's own uses it; lock=False gives the ctypes object itself."""
    lock = mp.RLock()
    value = mp.Value("i", 3, lock=lock)
    assert value.get_lock() is lock
    with value:
        value.value += 1
    assert value.get_obj().value == 4
    raw = mp.Value("d", 1.5, lock=False)
    assert (raw.value, hasattr(raw, "get_lock")) == (1.5, False)
    row = mp.Array("i", 3)
    row[:] = [1, 2, 3]
    assert (row[:], list(row), len(row), row[-1]) == ([1, 2, 3], [1, 2, 3], 3, 3)
    copy = pickle.loads(pickle.dumps(row))
    copy[0] = 9
    assert row[0] == 9
    with pytest.raises(ValueError):
        mp.Array("i", -1)
    with pytest.raises(AttributeError):
        mp.Value("i", lock=3)
