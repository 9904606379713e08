"""Lock and RLock with shared=True: as `threading`'s, between processes, and when a holder dies."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import threading
import warnings

import pytest
from meeting import Runner
from other_process import until

import duodao
from duodao import arena, sync
from duodao.errors import Closed, Deadlock, OwnerDied, TableFull, UsageError
from duodao.sync import cells, graph, lines, robust, shared, table

HOLD = "with lock: say(); hear()\nsay('left')"


@pytest.fixture
def lock():
    """A shared Lock."""
    made = sync.Lock(name="plate", shared=True)
    yield made
    if made._cell.is_open() and not made.locked():
        made.close()


@pytest.fixture
def rlock():
    """A shared RLock."""
    return sync.RLock(name="plate", shared=True)


def in_thread(function):
    """What it returned or raised."""
    return Runner(function).result()


def in_fork(function):
    """What `function()` returns, a text, in a forked copy of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(function()).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        return file.read()


def test_processes_exclude_each_other(lock, other):
    """What one process holds, another one doesn't get, until it is released; also one that got it by pickle."""
    holder = other(HOLD, lock=lock)
    holder.hear()
    assert lock.locked()
    assert lock.acquire(blocking=False) is False
    assert lock.acquire(timeout=0.02) is False
    holder.tell()
    with lock as got:
        assert got is True
    assert holder.hear() == "left"
    assert not lock.locked()


def test_a_lock_reaches_workers_that_run_already():
    """`duodao.map` over processes with a Lock in `common=`, and in the function's closure: it excludes."""
    lock = sync.Lock(shared=True)
    total = arena.get().allocate(8)
    arena.get().view(total, 8).cast("Q")[0] = 0

    def add(number, guard):
        words = arena.get().view(total, 8).cast("Q")
        for _ in range(200):
            with guard, inner:
                words[0] += 1
        return number

    inner = sync.RLock(shared=True)
    assert sorted(duodao.map(add, range(8), lane="process", workers=2, common={"guard": lock})) == list(range(8))
    assert arena.get().view(total, 8).cast("Q")[0] == 1600
    arena.get().free(total)


def test_only_the_holder_releases(lock, other):
    """Anyone else gets a RuntimeError that names the holder, its process and its thread."""
    with pytest.raises(RuntimeError, match="Lock 'plate' can't be released by thread 'MainThread': nobody holds it"):
        lock.release()
    holder = other(HOLD, lock=lock)
    holder.hear()
    with pytest.raises(RuntimeError, match=f"process {holder.pid} holds it"):
        lock.release()
    holder.tell()
    with lock, pytest.raises(RuntimeError, match="thread 'MainThread' holds it"):
        in_thread(lock.release)
    thread = other(
        "import threading\ndef hold():\n    with lock: say(threading.get_native_id()); hear()\n"
        "thread = threading.Thread(target=hold)\nthread.start(); thread.join()",
        lock=lock,
    )
    number = thread.hear()
    with pytest.raises(RuntimeError, match=f"thread {number} of process {thread.pid} holds it"):
        lock.release()


def test_a_block_that_lost_its_lock_says_so(lock):
    """A `with` whose lock was released inside of it ends with the error of a release that is none."""
    with pytest.raises(RuntimeError, match="nobody holds it"), lock:
        lock.release()


def test_waiting_for_ones_own_lock(lock):
    """Without a time-out that is Deadlock at once, with the stack; with one, and without blocking, it is False."""
    with lock:
        with pytest.raises(Deadlock, match="held by itself: it holds it already") as caught:
            lock.acquire()
        with pytest.raises(Deadlock), lock:
            pass
        assert caught.value.stacks[0][1][-1][2] == "test_waiting_for_ones_own_lock"
        assert lock.acquire(blocking=False) is False
        assert lock.acquire(timeout=0.01) is False
        assert lock.locked()
    assert not lock.locked()


def test_an_order_that_could_deadlock_is_reported():
    """With DUODAO_LOCKDEP=1, as in our test runs, shared locks report inversions of their order as all others do."""
    if os.environ.get("DUODAO_LOCKDEP") != "1":
        pytest.skip("switched off by DUODAO_LOCKDEP")
    first, second = sync.Lock(name="first of order", shared=True), sync.RLock(name="second of order", shared=True)
    with first, second:
        pass
    with second:
        with pytest.warns(sync.LockOrderWarning, match="'first of order'"):
            first.acquire()
        first.release()


def test_exit_stacks_hold_it(lock):
    """`contextlib.ExitStack`, which calls `__exit__` as a function of the class, works as `with` does."""
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(lock) is True
        assert lock.locked()
        assert stack.enter_context(sync.Condition(shared=True))
    assert not lock.locked()
    lock.acquire()
    type(lock).release(lock)
    assert not lock.locked()


def test_an_rlock_is_taken_again(rlock, other):
    """Its holder takes it as often as it likes; it is free when released as often."""
    with rlock, rlock:
        assert rlock.acquire()
        rlock.release()
        assert other("say(lock.acquire(blocking=False))", lock=rlock).hear() == "False"
    assert other("say(lock.acquire(blocking=False))", lock=rlock).hear() == "True"
    with pytest.raises(RuntimeError, match="RLock 'plate' can't be released"):
        rlock.release()


@pytest.mark.parametrize("kind", [sync.Lock, sync.RLock])
def test_the_next_one_is_told_that_the_holder_was_killed(kind, other):
    """kill -9 of the holder: a waiter gets a truthy OwnerDied that names it, and one RuntimeWarning; only the first."""
    lock = kind(name="plate", shared=True)
    holder = other(HOLD, lock=lock)
    holder.hear()
    waiter = Runner(lambda: (lock.acquire(), lock.release())[0])
    until(lambda: lock.statistics().waiters, "it waits")
    with pytest.warns(RuntimeWarning, match=f"'plate' was held by process {holder.pid}, which ended") as warned:
        holder.kill()
        died = waiter.result()
    assert len(warned) == 1
    assert isinstance(died, OwnerDied)
    assert died
    assert died.holder == f"process {holder.pid}"
    with lock as got:
        assert got is True


def test_a_dead_holder_is_told_without_a_wait_too(lock, other):
    """So it is when the next one comes after the death, by `with`, `acquire()` and `acquire(blocking=False)`."""
    for take in (lock.__enter__, lock.acquire, lambda: lock.acquire(blocking=False)):
        holder = other("lock.acquire(); say(); hear()", lock=lock)
        holder.hear()
        holder.kill()
        assert not lock.locked()
        with pytest.warns(RuntimeWarning, match="check what it protects"):
            assert take().holder == f"process {holder.pid}"
        lock.release()


def test_a_thread_that_ends_with_a_lock_counts_as_dead(lock):
    """The next one is told, in the same process and in another."""
    in_thread(lock.acquire)
    until(lambda: not lock.locked(), "the thread has ended")
    with pytest.warns(RuntimeWarning, match="thread [0-9]+ of process"), lock as got:
        assert isinstance(got, OwnerDied)


def test_a_death_that_is_told_as_an_error_leaves_the_lock_free(lock):
    """Where warnings are errors, as in this test, `with` raises it, and doesn't hold the lock."""
    in_thread(lock.acquire)
    until(lambda: not lock.locked(), "the thread has ended")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning), lock:
            pass
    assert not lock.locked()
    with lock as got:
        assert got is True


def test_a_death_told_to_an_interrupted_one_is_told_again(lock):
    """One that took the lock of a dead holder and was interrupted before it knew passes the news on."""
    in_thread(lock.acquire)
    until(lambda: not lock.locked(), "the thread has ended")
    assert lock._mutex.trylock() == robust.DEAD
    lock._let_go()
    assert not lock.locked()
    again = pickle.loads(pickle.dumps(lock))
    with pytest.warns(RuntimeWarning), again as got:
        assert isinstance(got, OwnerDied)
    with lock as got:
        assert got is True


def plain(kind):
    """The class without what DUODAO_LOCKDEP=1, as in our test runs, has wrapped in Python."""
    names = ("acquire", "release", "__enter__", "__exit__")
    methods = {name: getattr(kind, name) for name in names}
    return type(kind.__name__, (kind,), {name: getattr(m, "__wrapped__", m) for name, m in methods.items()})


def test_interrupts_never_leave_it_taken():
    """Ctrl-C at any instruction of a `with` or of acquire/release: afterwards the lock is free."""
    lock, rlock = plain(shared.Lock)(), plain(shared.RLock)()

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def block():
        with lock, rlock:
            pass

    def calls():
        lock.acquire()
        try:
            rlock.acquire()
            rlock.release()
        finally:
            lock.release()

    def blocks():
        for _ in range(20_000):
            block()

    before = signal.signal(signal.SIGALRM, interrupt)
    caught = 0
    try:
        while caught < 400:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + (caught % 100) * 1e-6)
                blocks()
            except KeyboardInterrupt:
                caught += 1
                assert not lock.locked()
                assert not rlock.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_a_wait(lock, other):
    """A wait for a lock that nobody gives back is interrupted, and nothing of it is left in the table."""
    holder = other(HOLD, lock=lock)
    holder.hear()
    main = threading.main_thread().ident

    def interrupt():
        until(lambda: lock.statistics().waiters, "it waits")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        lock.acquire()
    thread.join()
    assert lock.statistics().waiters == ()
    assert graph.waiting(threading.get_ident()) is None


def test_a_forked_copy_is_not_the_holder(lock):
    """Fork while held: the copy can neither release it nor have it; the holder is named, and stays it."""
    with lock:
        text = in_fork(lambda: (lock.locked(), lock.acquire(blocking=False), lock.acquire(timeout=0.02)))
        assert text == "(True, False, False)"
        assert f"process {os.getpid()} holds it" in in_fork(lock.release)
        assert f"process {os.getpid()} holds it" in in_fork(lambda: lock.__exit__(None, None, None))
        assert lock.locked()
    assert in_fork(lambda: [lock.acquire(), lock.release()]) == "[True, None]"


def test_a_cell_that_lives_on_in_a_fork_is_not_used_again():
    """A handle that is dropped here after a fork leaves the copy's working."""
    lock = sync.Lock(shared=True)
    read, write = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(told, 1)
        os.write(write, b"works" if lock.acquire() else b"?")
        os._exit(0)
    offset = lock.offset
    del lock
    gc.collect()
    assert offset not in {sync.Lock(shared=True).offset for _ in range(100)}
    os.write(tell, b"x")
    assert os.read(read, 10) == b"works"
    os.waitpid(pid, 0)
    for fd in (read, write, told, tell):
        os.close(fd)


def test_use_after_close(lock, other):
    """Closed, by name, for all that is done with any handle in any process; also for one that waits, and by pickle."""
    user = other("say(); hear()\ntry: lock.acquire()\nexcept Exception as e: say(repr(e))", lock=lock)
    user.hear()
    data = pickle.dumps(lock)
    lock.acquire()
    waiter = Runner(lock.acquire)
    until(lambda: lock.statistics().waiters, "it waits")
    lock.close()
    with pytest.raises(Closed, match="'plate' was closed"):
        waiter.result()
    for use in (lock.acquire, lock.__enter__, lock.locked, lock.statistics, lock.close):
        with pytest.raises(Closed, match="Lock 'plate' was closed"):
            use()
    user.tell()
    assert user.hear().startswith("Closed(")
    with pytest.raises(Closed, match="maker ended"):
        pickle.loads(data)


def test_a_late_handle_never_gets_another_lock(lock):
    """A closed lock's memory serves a new one: the old handle still gets Closed, also as that one is held."""
    old = pickle.loads(pickle.dumps(lock))
    lock.close()
    new = next(made for made in [sync.Lock(shared=True) for _ in range(600)] if made.offset == old.offset)
    with pytest.raises(Closed), old:
        pass
    assert not new.locked()
    with new, pytest.raises(Closed):
        in_thread(old.acquire)
    assert in_thread(new.acquire)
    until(lambda: not new.locked(), "the thread has ended")
    with pytest.raises(Closed):
        old.acquire()
    with pytest.warns(RuntimeWarning), new as got:
        assert isinstance(got, OwnerDied), "its own next holder is told, not the stranger"


@pytest.mark.parametrize("kind", [sync.Lock, sync.RLock])
def test_a_late_handle_gives_nobody_elses_lock_back(kind):
    """A closed handle that is collected while its cell serves another lock, which this thread holds, leaves it held."""
    old = kind(shared=True)
    old.close()
    new = kind(shared=True)
    assert new._cell.offset == old._cell.offset
    with new:
        del old
        gc.collect()
        assert new.locked()
        assert new.statistics().owner is not None
    assert not new.locked()


def test_what_is_held_is_not_closed(lock, other):
    """close() while another holds it is a RuntimeError that names the holder; the holder itself may."""
    holder = other(HOLD, lock=lock)
    holder.hear()
    with pytest.raises(RuntimeError, match=f"can't be closed: process {holder.pid} holds it"):
        lock.close()
    holder.tell()
    holder.hear()
    with pytest.raises(Closed, match="closed while it was held"), lock:
        lock.close()


def test_a_maker_that_ends(other):
    """Its locks work on among those that have them; who receives one later is told that the maker ended."""
    maker = other(
        "from duodao import sync\nlock = sync.Lock(name='theirs', shared=True)\n"
        "say(pickle.dumps(lock).hex()); say(pickle.dumps(sync.Lock(shared=True)).hex()); hear()",
        x=1,
    )
    data = bytes.fromhex(maker.hear())
    lock = pickle.loads(data)
    maker.kill()
    user = other("with lock: say(lock.name)", lock=lock)
    assert user.hear() == "theirs"
    with lock as got:
        assert got is True
    stamp = lock._cell.stamp
    with pytest.raises(Closed, match="maker ended"):
        cells.attach(lock.offset, stamp + 2, False, 1)
    with pytest.raises(Closed, match="another program"):
        cells.attach(arena.get().size + 64, stamp, False, 1)


def test_cells_come_back():
    """Handles that were never sent give their memory back when they are dropped, but not while another thread holds."""
    offsets = set()
    for _ in range(5000):
        offsets.add(sync.Lock(shared=True).offset)
    assert len(offsets) < 2000
    held = [sync.Lock(shared=True)]
    offset = held[0].offset
    taken, over = threading.Event(), threading.Event()

    def hold():
        held[0].acquire()
        taken.set()
        over.wait(10)

    runner = Runner(hold)
    assert taken.wait(10)
    held.clear()
    gc.collect()
    assert offset not in {sync.Lock(shared=True).offset for _ in range(2000)}
    over.set()
    runner.result()


def test_a_full_arena_is_a_memory_error(monkeypatch):
    """A lock for which there is no memory left is a MemoryError, and the next one works."""

    def full(size):
        raise MemoryError(f"no {size} bytes")

    memory = arena.get()
    monkeypatch.setattr(cells._store, "free", {False: cells.deque(), True: cells.deque()})
    monkeypatch.setattr(cells._store, "fresh", cells.deque())
    monkeypatch.setattr(memory, "allocate", full)
    with pytest.raises(MemoryError, match="no 65536 bytes"):
        sync.Lock(shared=True)
    monkeypatch.undo()
    assert sync.Lock(shared=True).acquire()


def test_a_full_table_is_an_error(lock, monkeypatch):
    """One waiter more than the table has lines gets TableFull, says how many wait, and the lock is as before."""
    shared = table.get()
    monkeypatch.setattr(table, "LINES", shared.made[0] or 25)
    taken = []
    lock.acquire()
    try:
        while True:
            taken.append(shared.claim())
    except TableFull:
        pass
    with pytest.raises(TableFull, match="wait for shared locks already"):
        in_thread(lock.acquire)
    for line in taken:
        line.free(None, None, None)
    assert in_thread(lambda: lock.acquire(timeout=0.02)) is False
    lock.release()


def test_what_it_says_of_itself(lock, other):
    """Name, state, holder and waiters, of all processes; by default it is named for where it was made."""
    assert sync.Lock(shared=True).name.startswith("test_shared_lock.py:")
    assert repr(lock).startswith("<unlocked sync.Lock object 'plate'")
    assert lock.statistics() == sync.Statistics("plate", False, None, ())
    holder = other(HOLD, lock=lock)
    holder.hear()
    waiter = other("say(); lock.acquire()", lock=lock)
    waiter.hear()
    until(lambda: lock.statistics().waiters, "it waits")
    assert lock.statistics() == sync.Statistics("plate", True, f"process {holder.pid}", (f"process {waiter.pid}",))
    assert repr(lock).startswith("<locked sync.Lock object 'plate'")
    waiter.kill()
    assert lock.statistics().waiters == ()


def test_arguments_as_in_threading(lock):
    """ValueError and OverflowError for the time-outs for which `threading` raises them."""
    with pytest.raises(ValueError, match="non-blocking"):
        lock.acquire(blocking=False, timeout=1)
    with pytest.raises(ValueError, match="non-negative"):
        lock.acquire(timeout=-2)
    with pytest.raises(ValueError, match="non-negative"):
        lock.acquire(timeout=float("nan"))
    with pytest.raises(OverflowError):
        lock.acquire(timeout=threading.TIMEOUT_MAX * 2)


def test_no_async_forms(lock):
    """They are a TypeError that says what to use instead."""
    for use in (lock.aacquire, lock.__aenter__, lambda: lock.__aexit__(None, None, None)):
        with pytest.raises(TypeError, match="shared by processes and has no async form"):
            use()


def test_elsewhere_the_error_says_what_is_missing(monkeypatch):
    """Where there are no robust mutexes, shared=True is a UsageError that says so."""
    monkeypatch.setattr(robust._Home, "native", None)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UsageError, match="darwin has no robust mutexes"):
        sync.Lock(shared=True)


def test_lines_of_dead_threads_are_taken_again(lock):
    """A thread that ends in a wait leaves no line taken: as many as ever wait at once are made, and no more."""
    made = table.get().made[0]
    assert made <= lines.LINES
    for _ in range(60):
        in_thread(lambda: table.get().claim())
    until(lambda: not list(table.get().taken()), "the threads have ended")
    assert table.get().made[0] <= made + 50
