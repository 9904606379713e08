"""Programs on threads as a text on concurrency in Python shows them: the same with both libraries."""

from __future__ import annotations

import pytest
from tests.e2e.moved_program import same_in_both

PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "function, subclass": (
        """
        import threading
        from threading import Thread

        def sayhi(name):
            print(f"{name} says hello in {threading.current_thread().name}")

        class Sayhi(Thread):
            def __init__(self, name):
                super().__init__()
                self.who = name

            def run(self):
                print(f"{self.who} says hello")

        if __name__ == "__main__":
            t = Thread(target=sayhi, args=("egon",), name="t1")
            t.start()
            s = Sayhi("alex")
            s.start()
            t.join()
            s.join()
            print(t.is_alive(), s.is_alive(), threading.active_count(), threading.main_thread().name)
        """,
        ["False False 1 MainThread", "alex says hello", "egon says hello in t1"],
    ),
    "one process, one memory": (
        """
        import os
        from threading import Thread

        n = 100
        pids = []

        def work():
            global n
            n = 0
            pids.append(os.getpid())

        t = Thread(target=work)
        t.start()
        t.join()
        print(n, pids == [os.getpid()])
        """,
        ["0 True"],
    ),
    "enumerate, names": (
        """
        import threading
        from threading import Event, Thread, current_thread, enumerate

        go = Event()
        threads = [Thread(target=go.wait) for _ in range(2)] + [Thread(target=go.wait, name="last")]
        for t in threads:
            t.start()
        print([t.name for t in enumerate()], threading.active_count())
        print(threads[0].ident is not None, threads[0].daemon, current_thread() is threading.main_thread())
        go.set()
        for t in threads:
            t.join()
        print(enumerate() == [threading.main_thread()])
        """,
        ["True", "True False True", "['MainThread', 'Thread-1 (wait)', 'Thread-2 (wait)', 'last'] 4"],
    ),
    "daemon": (
        """
        import threading
        import time
        from threading import Thread

        def watch():
            threading.Event().wait(60)
            print("never: the daemon ends with the program")

        def work():
            time.sleep(0.1)
            print("not a daemon: it is waited for")

        t = Thread(target=watch)
        t.daemon = True
        t.start()
        Thread(target=work).start()
        print("main ends", t.daemon)
        """,
        ["main ends True", "not a daemon: it is waited for"],
    ),
    "mutex": (
        """
        import time
        from threading import Lock, Thread

        n = 100
        mutex = Lock()

        def task():
            global n
            with mutex:
                temp = n
                time.sleep(0.0001)
                n = temp - 1

        threads = [Thread(target=task) for _ in range(100)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(n, mutex.locked(), mutex.acquire(blocking=False), mutex.acquire(blocking=False))
        """,
        ["0 False True False"],
    ),
    "RLock in place of two locks": (
        """
        import time
        from threading import RLock, Thread

        mutexA = mutexB = RLock()

        class MyThread(Thread):
            def run(self):
                self.f1()
                self.f2()

            def f1(self):
                with mutexA, mutexB:
                    print("f1")

            def f2(self):
                mutexB.acquire()
                time.sleep(0.001)
                mutexA.acquire()
                print("f2")
                mutexA.release()
                mutexB.release()

        threads = [MyThread() for _ in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        """,
        ["f1"] * 5 + ["f2"] * 5,
    ),
    "Semaphore": (
        """
        import time
        from threading import Lock, Semaphore, Thread

        sm, lock, inside, most = Semaphore(3), Lock(), 0, 0

        def task():
            global inside, most
            with sm:
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with lock:
                    inside -= 1

        threads = [Thread(target=task) for _ in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(most, inside)
        """,
        ["3 0"],
    ),
    "traffic light": (
        """
        from threading import Event, Thread

        light = Event()
        seen = []

        def lights():
            light.clear()
            seen.append("red")
            light.set()
            seen.append("green")

        def car(n):
            light.wait()
            print("car goes")

        cars = [Thread(target=car, args=(n,)) for n in range(3)]
        for each in cars:
            each.start()
        lamp = Thread(target=lights)
        lamp.start()
        for each in [*cars, lamp]:
            each.join()
        print(seen, light.is_set())
        """,
        ["['red', 'green'] True", "car goes", "car goes", "car goes"],
    ),
    "connection with retries": (
        """
        import threading
        from threading import Event, Thread

        event = Event()

        def conn_mysql(up):
            count = 1
            while not event.is_set():
                if count > 3:
                    print("too many tries")
                    raise SystemExit
                print(f"try {count}")
                event.wait(0.01 if not up else 30)
                count += 1
            print("connected")

        def check_mysql():
            event.set()

        first = Thread(target=conn_mysql, args=(False,))
        first.start()
        first.join()
        second = Thread(target=conn_mysql, args=(True,))
        second.start()
        Thread(target=check_mysql).start()
        second.join()
        """,
        ["connected", "too many tries", "try 1", "try 1", "try 2", "try 3"],
    ),
    "Timer": (
        """
        import threading
        from threading import Timer

        done = threading.Event()

        class Code:
            def __init__(self):
                self.made = 0
                self.cache()

            def cache(self):
                self.made += 1
                if self.made == 3:
                    done.set()
                    return
                self.t = Timer(0.01, self.cache)
                self.t.start()

        code = Code()
        done.wait()
        late = Timer(60, print, ["never"])
        late.start()
        late.cancel()
        late.join()
        print(code.made)
        """,
        ["3"],
    ),
    "queues": (
        """
        import queue
        from threading import Thread

        q = queue.Queue(3)
        for item in ("first", 2, 3):
            q.put(item)
        try:
            q.put(4, block=True, timeout=0.01)
        except queue.Full:
            print("full")
        print(q.get(), q.get(), q.get())
        try:
            q.get_nowait()
        except queue.Empty:
            print("empty")
        lifo = queue.LifoQueue()
        for item in "abc":
            lifo.put(item)
        print(lifo.get(), lifo.get(), lifo.get())
        heap = queue.PriorityQueue()
        for item in ((20, "a"), (10, "b"), (30, "c")):
            heap.put(item)
        print(heap.get(), heap.get(), heap.get())

        jobs = queue.Queue()

        def worker():
            while True:
                jobs.get()
                jobs.task_done()

        for _ in range(2):
            Thread(target=worker, daemon=True).start()
        for n in range(20):
            jobs.put(n)
        jobs.join()
        print("all done", jobs.qsize())
        """,
        ["(10, 'b') (20, 'a') (30, 'c')", "all done 0", "c b a", "empty", "first 2 3", "full"],
    ),
    "Condition, Barrier, local": (
        """
        import threading

        cond, items, eaten = threading.Condition(), [], []

        def consume():
            for _ in range(5):
                with cond:
                    while not items:
                        cond.wait()
                    eaten.append(items.pop(0))
                    cond.notify()

        def produce():
            for n in range(5):
                with cond:
                    while len(items) >= 2:
                        cond.wait()
                    items.append(n)
                    cond.notify()

        threads = [threading.Thread(target=consume), threading.Thread(target=produce)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(eaten)

        barrier, data, seen = threading.Barrier(3, action=lambda: print("all here")), threading.local(), []

        def party(n):
            data.n = n
            barrier.wait()
            seen.append(data.n)

        threads = [threading.Thread(target=party, args=(n,)) for n in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(sorted(seen), hasattr(data, "n"), barrier.broken)
        """,
        ["[0, 1, 2, 3, 4]", "[0, 1, 2] False False", "all here"],
    ),
    "ThreadPoolExecutor": (
        """
        import threading
        from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

        def get_page(url):
            if url == "bad":
                raise ConnectionError(url)
            return {"url": url, "text": url * 2}

        def parse_page(future):
            page = future.result()
            print(page["url"], len(page["text"]))

        pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="web")
        for url in ("a", "bb", "ccc"):
            pool.submit(get_page, url).add_done_callback(parse_page)
        bad = pool.submit(get_page, "bad")
        print(repr(bad.exception()), wait([bad], return_when=FIRST_COMPLETED).not_done)
        print(list(pool.map(len, ["x", "yy"])))
        print(pool.submit(lambda: threading.current_thread().name.startswith("web")).result())
        pool.shutdown(wait=True)
        try:
            pool.submit(get_page, "late")
        except RuntimeError as error:
            print(error)
        """,
        [
            "ConnectionError('bad') set()",
            "True",
            "[1, 2]",
            "a 2",
            "bb 4",
            "cannot schedule new futures after shutdown",
            "ccc 6",
        ],
    ),
    "pools of threads of multiprocessing": (
        """
        from multiprocessing.dummy import Pool
        from multiprocessing.pool import ThreadPool

        with Pool(3) as pool:
            print(pool.map(len, ["a", "bb"]))
        with ThreadPool(2) as pool:
            print(pool.apply(lambda x: x + 1, (1,)), list(pool.imap(str, range(3))))
        """,
        ["2 ['0', '1', '2']", "[1, 2]"],
    ),
    "an error in a thread": (
        """
        import sys
        import threading

        def hook(args):
            print(args.exc_type.__name__, args.thread.name)

        threading.excepthook = hook

        def work():
            raise KeyError("x")

        t = threading.Thread(target=work, name="w")
        t.start()
        t.join()
        print("main goes on")
        """,
        ["KeyError w", "main goes on"],
    ),
}
"""What it is about -> the program, and what it prints, sorted."""


@pytest.mark.parametrize("about", PROGRAMS)
def test_threads(about, tmp_path):
    """A program on threads prints the same with both libraries, and ends the same."""
    source, expected = PROGRAMS[about]
    assert same_in_both(tmp_path, source) == expected
