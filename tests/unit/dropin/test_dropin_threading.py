"""What `duodao.dropin.threading` adds to, and does otherwise than, `threading`."""

from __future__ import annotations

import subprocess
import sys
import threading as standard

import pytest

from duodao import sync
from duodao.dropin import threading
from duodao.errors import Deadlock

pytestmark = pytest.mark.filterwarnings("ignore::duodao.sync.LockOrderWarning")


def test_it_has_all_names():
    """Each public name of threading is there, and the locks are ours."""
    assert {*standard.__all__} <= {*threading.__all__} | {*dir(standard)}
    for name in standard.__all__:
        assert getattr(threading, name) is not None
    assert threading.Lock is sync.Lock
    assert threading.Condition is sync.Condition
    assert issubclass(threading.Thread, standard.Thread)
    assert issubclass(threading.Timer, threading.Thread)


def test_it_is_cheap_to_import():
    """It loads threads and locks only: no process, no pool, no asyncio beyond what locks need."""
    code = (
        "import sys; from duodao.dropin import threading; "
        "print([n for n in sys.modules if n.startswith(('duodao.lanes', 'duodao.pipeline', 'duodao.channel', "
        "'multiprocessing', 'concurrent.futures.p'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_names_of_threads():
    """A thread is named after its number and its function, as in threading."""

    def work():
        names.append(threading.current_thread().name)

    names = []
    threads = [threading.Thread(target=work), threading.Thread(target=work, name="w")]
    for thread in threads:
        thread.start()
        thread.join()
    assert names[0].startswith("Thread-")
    assert names[0].endswith(" (work)")
    assert names[1] == "w"


def test_the_hook_for_errors_is_the_standard_one(monkeypatch):
    """Assigning threading.excepthook here takes effect in all threads."""
    seen = []
    before = standard.excepthook
    try:
        threading.excepthook = lambda args: seen.append(args.exc_value)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        assert standard.excepthook is threading.excepthook
    finally:
        threading.excepthook = before
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_join_with_a_timeout_is_no_deadlock():
    """A join that ends by itself is never part of a circle; one without a time-out is."""
    lock, begun, found = threading.Lock(), threading.Event(), []

    def work():
        begun.set()
        try:
            with lock:
                pass
        except Deadlock as error:
            found.append(error)

    with lock:
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        thread.join(0.05)
        assert thread.is_alive()
        try:
            thread.join()
        except Deadlock as error:
            found.append(error)
    thread.join()
    assert len(found) == 1


def test_a_thread_cannot_join_itself():
    """RuntimeError, as in threading; and before it starts."""
    errors = []

    def work():
        try:
            thread.join()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    with pytest.raises(RuntimeError):
        thread.join()
    thread.start()
    thread.join()
    assert errors == ["cannot join current thread"]
