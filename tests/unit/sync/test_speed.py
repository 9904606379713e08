"""Which base the locks have, and what is the compiled one's own business: memory, layout, the C compiler's view."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
import shlex
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duodao import arena
from duodao.errors import Deadlock
from duodao.sync import robust, speed
from duodao.sync.lock import Lock, RLock, _Held

FOLDER = Path(speed.__file__).parent
OFF = os.environ.get("DUODAO_SPEED") == "0"
KINDS = pytest.mark.parametrize("kind", [Lock, RLock])
LOOK = "from duodao.sync import speed, lock\nwith lock.Lock(): print(speed.COMPILED)"


def need(found: object, what: str) -> None:
    """Missing, it skips the test at home and fails it in CI, where a compiler must be."""
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is missing")


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_compiled_unless_switched_off() -> None:
    """The locks are the compiled ones, unless DUODAO_SPEED=0 or there was no compiler; CI has one."""
    if OFF:
        assert not speed.COMPILED
        assert speed.ROBUST is None
    else:
        need(speed.COMPILED, "the compiled duodao.sync._speed")
        need(speed.ROBUST or robust.what_is_missing(), "the compiled duodao.sync._robust")


def test_switch() -> None:
    """DUODAO_SPEED=0 keeps to Python."""
    assert run(LOOK, DUODAO_SPEED="0") == "False"


def test_goes_without() -> None:
    """Where the compiled part can't be imported, the locks are pure Python, and nothing is said."""
    assert run(f"import sys; sys.modules['duodao.sync._speed'] = None\n{LOOK}", DUODAO_SPEED="1") == "False"


def test_compiled_methods_have_a_model() -> None:
    """Each public method of the compiled base takes the place of one in lock.py, which is kept for what isn't plain."""
    need(speed.COMPILED or OFF, "the compiled duodao.sync._speed")
    if speed.COMPILED:
        special = ("__enter__", "__exit__", "__aenter__", "__aexit__")
        for name in (*special, *(name for name in vars(speed.Base) if not name.startswith("_"))):
            assert getattr(_Held, name) is vars(speed.Base)[name]
            assert hasattr(_Held, f"_slow_{name.strip('_')}")


@KINDS
def test_arguments(kind: Callable[[], Any]) -> None:
    """acquire() takes and refuses the arguments of threading's, in any spelling."""
    lock = kind()
    for args, options in [((), {}), ((True,), {}), ((False,), {}), ((1, 0.5), {}), ((), {"timeout": 0, "blocking": 1})]:
        assert lock.acquire(*args, **options) is True
        lock.release()
    for args, error in [((False, 1), ValueError), ((True, -2), ValueError), ((True, 1e99), OverflowError)]:
        with pytest.raises(error):
            lock.acquire(*args)
    for args, options in [((1, 2, 3), {}), ((), {"nope": 1})]:
        with pytest.raises(TypeError):
            lock.acquire(*args, **options)
    with pytest.raises(TypeError):
        lock.release(1)
    assert not lock.locked()


@KINDS
def test_layout(kind: type[Any]) -> None:
    """A lock can be subclassed with attributes of its own, referred to weakly, and is collected when in a circle."""

    class Own(kind):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.me = self

    lock = Own()
    with lock:
        assert lock.locked()
    there = weakref.ref(lock)
    del lock
    gc.collect()
    assert there() is None


def plain(lock: Any) -> None:
    with lock:
        pass
    lock.acquire()
    lock.release()
    lock.acquire(timeout=1)
    lock.release()
    lock.locked()
    repr(lock)
    type(lock)()


def refused(lock: Any) -> None:
    for wrong in (lock.release, lambda: lock.acquire(True, -2), lambda: lock.acquire(1, 2, 3)):
        try:
            wrong()
        except (RuntimeError, ValueError, TypeError):
            pass
    if isinstance(lock, Lock):
        with lock:
            lock.acquire(False)
            try:
                lock.acquire()
            except Deadlock:
                pass


def contended(lock: Any) -> None:
    with lock:
        thread = threading.Thread(target=plain, args=(lock,))
        thread.start()
    thread.join()


def awaited(lock: Any) -> None:
    async def once() -> None:
        async with lock:
            pass

    async def several() -> None:
        for _ in range(20):
            await once()
        async with lock:
            waiter = asyncio.create_task(once())
            await asyncio.sleep(0)
        await waiter

    asyncio.run(several())


@KINDS
@pytest.mark.parametrize(("what", "times"), [(plain, 3000), (refused, 300), (contended, 60), (awaited, 100)])
def test_nothing_is_kept(kind: Callable[[], Any], what: Callable[[Any], None], times: int) -> None:
    """Taking, waiting for and refusing a lock leaves no memory behind, however often."""

    def blocks() -> int:
        for _ in range(times):
            what(lock)
        gc.collect()
        return sys.getallocatedblocks()

    lock = kind()
    after = [blocks() for _ in range(5)]
    grown = [later - earlier for earlier, later in itertools.pairwise(after)]
    assert min(grown) < times  # caches of Python fill and are full, 3.11's asyncio keeps a few; a leak goes on


@KINDS
def test_reference_counts(kind: Callable[[], Any]) -> None:
    """A lock, its task and the constants that its methods give are counted rightly."""

    def count() -> list[int]:
        return [sys.getrefcount(each) for each in (lock, lock._parked, task[0])]

    async def main() -> None:
        task.append(asyncio.current_task())
        before = count()
        for _ in range(1000):
            async with lock:
                assert lock._holder is task[0]
            with lock:
                pass
        assert count() == before

    task: list[Any] = []
    lock = kind()
    asyncio.run(main())


@pytest.mark.parametrize("name", ["_speed", "_robust"])
def test_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    """The C source compiles with -Wall -Wextra -Werror."""
    include = Path(sysconfig.get_path("include"))
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if OFF or (name == "_robust" and robust.what_is_missing()):
        pytest.skip("said where the compiled part is used")
    need((include / "Python.h").exists(), "Python.h")
    options = [
        "-std=c11",
        "-O1",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{include}",
        "-c",
        str(FOLDER / f"{name}.c"),
    ]
    try:
        done = subprocess.run(
            [*compiler, *options, "-o", str(tmp_path / "speed.o")], capture_output=True, text=True, timeout=120
        )
    except FileNotFoundError:
        need(None, compiler[0])
    assert done.returncode == 0, done.stderr


def test_compiled_calls_on_mutexes() -> None:
    """An address is an int or a c_void_p; anything else, and 0, is refused. `Leave` tells errors and no success."""
    need(speed.ROBUST or OFF or robust.what_is_missing(), "the compiled duodao.sync._robust")
    calls = speed.ROBUST
    if calls is None:
        return
    memory = arena.get()
    offset = memory.allocate(robust.SIZE)
    told: list[int] = []
    try:
        mutex = robust.Mutex(offset)
        mutex.init()
        for address in (mutex.pointer, mutex.pointer.value):
            leave = calls.Leave(address, told.append)
            assert (calls.trylock(address), calls.trylock(address)) == (0, robust.OWN)
            assert (leave(None, None, None), told) == (None, [])
            assert (leave(), told.pop()) == (None, errno.EPERM)
            assert calls.unlock(address) == errno.EPERM
            assert calls.consistent(address) == errno.EINVAL
        assert calls.Leave(mutex.pointer, None)() is None
    finally:
        memory.free(offset)
    for wrong, error in [(0, ValueError), (None, TypeError), ("", TypeError), (1.5, TypeError), (b"short", ValueError)]:
        for function in (calls.trylock, calls.unlock, calls.consistent, lambda at: calls.Leave(at, None)):
            with pytest.raises(error):
                function(wrong)
    before = sys.getrefcount(told)
    assert all(isinstance(calls.Leave(robust.SIZE, told), calls.Leave) for _ in range(50))
    assert sys.getrefcount(told) == before
