"""Programs whose processes talk, as a text on concurrency in Python shows them: the same with both libraries."""

from __future__ import annotations

import pytest
from tests.e2e.moved_program import same_in_both

PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "queue": (
        """
        from multiprocessing import Queue
        from queue import Empty, Full

        if __name__ == "__main__":
            q = Queue(3)
            for n in range(3):
                q.put(n)
            print(q.full())
            try:
                q.put(3, block=False)
            except Full:
                print("full")
            try:
                q.put(3, timeout=0.05)
            except Full:
                print("still full")
            print([q.get() for _ in range(3)])
            try:
                q.get(timeout=0.05)
            except Empty:
                print("empty", q.empty())
        """,
        ["True", "[0, 1, 2]", "empty True", "full", "still full"],
    ),
    "producers, consumers, None": (
        """
        import random
        import time
        from multiprocessing import Process, Queue

        def producer(name, food, q):
            for i in range(3):
                time.sleep(random.random() / 100)
                q.put(f"{food}{i} of {name}")

        def consumer(name, q, eaten):
            count = 0
            while True:
                food = q.get()
                if food is None:
                    break
                count += 1
            eaten.put(count)

        if __name__ == "__main__":
            q, eaten = Queue(), Queue()
            producers = [Process(target=producer, args=(f"cook{n}", "bun", q)) for n in range(3)]
            consumers = [Process(target=consumer, args=(f"guest{n}", q, eaten)) for n in range(2)]
            for p in producers + consumers:
                p.start()
            for p in producers:
                p.join()
            for _ in consumers:
                q.put(None)
            print(sum(eaten.get() for _ in consumers))
            for p in consumers:
                p.join()
        """,
        ["9"],
    ),
    "JoinableQueue, daemons": (
        """
        from multiprocessing import JoinableQueue, Process

        def producer(q):
            for i in range(4):
                q.put(f"bun{i}")
            q.join()
            print("all that I cooked is eaten")

        def consumer(q):
            while True:
                q.get()
                q.task_done()

        if __name__ == "__main__":
            q = JoinableQueue()
            producers = [Process(target=producer, args=(q,)) for _ in range(2)]
            consumers = [Process(target=consumer, args=(q,), daemon=True) for _ in range(2)]
            for p in producers + consumers:
                p.start()
            for p in producers:
                p.join()
            q.join()
            try:
                q.task_done()
            except ValueError as error:
                print(error)
        """,
        ["all that I cooked is eaten", "all that I cooked is eaten", "task_done() called too many times"],
    ),
    "Manager": (
        """
        from multiprocessing import Lock, Manager, Process

        def work(dic, row, lock):
            with lock:
                dic["count"] -= 1
            row.append(dic["name"])

        if __name__ == "__main__":
            lock = Lock()
            with Manager() as m:
                dic, row = m.dict({"count": 20, "name": "egon"}), m.list()
                space = m.Namespace(x=1)
                processes = [Process(target=work, args=(dic, row, lock)) for _ in range(10)]
                for p in processes:
                    p.start()
                for p in processes:
                    p.join()
                space.x += 1
                print(dic, len(row), set(row), space.x, sorted(dic.items()))
                row.sort(reverse=True)
                dic.update(age=18)
                print(row[:2], dic.get("age"), "name" in dic, dic.pop("name"), len(dic))
        """,
        [
            "['egon', 'egon'] 18 True egon 2",
            "{'count': 10, 'name': 'egon'} 10 {'egon'} 2 [('count', 10), ('name', 'egon')]",
        ],
    ),
    "Pipe": (
        """
        from multiprocessing import Pipe, Process

        def consumer(pipe, name):
            left, right = pipe
            left.close()
            while True:
                try:
                    print(name, "gets", right.recv())
                except EOFError:
                    right.close()
                    break

        if __name__ == "__main__":
            left, right = Pipe()
            p = Process(target=consumer, args=((left, right), "guest"))
            p.start()
            right.close()
            for i in range(3):
                left.send({"bun": i})
            left.close()
            p.join()
            print("main", p.exitcode)
        """,
        ["guest gets {'bun': 0}", "guest gets {'bun': 1}", "guest gets {'bun': 2}", "main 0"],
    ),
    "Pipe both ways": (
        """
        from multiprocessing import Pipe, Process

        def adderfunc(conn):
            while (x := conn.recv()) is not None:
                conn.send(sum(x))
            conn.send_bytes(b"bye")
            conn.close()

        if __name__ == "__main__":
            here, there = Pipe()
            p = Process(target=adderfunc, args=(there,))
            p.start()
            there.close()
            for pair in ((1, 2), (3, 4)):
                here.send(pair)
                print(here.recv())
            here.send(None)
            print(here.recv_bytes(), here.poll(1))
            p.join()
        """,
        ["3", "7", "b'bye' True"],
    ),
    "Semaphore, Event, Condition, Barrier": (
        """
        from multiprocessing import Barrier, Condition, Event, Process, Semaphore, Value

        def guest(rooms, inside, most, barrier):
            with rooms:
                with inside.get_lock():
                    inside.value += 1
                    most.value = max(most.value, inside.value)
                with inside.get_lock():
                    inside.value -= 1
            barrier.wait()

        def car(light, n):
            light.wait()
            print("car goes")

        def waiter(cond, ready):
            with cond:
                cond.wait_for(lambda: ready.value)
                print("told")

        if __name__ == "__main__":
            rooms, inside, most, barrier = Semaphore(2), Value("i", 0), Value("i", 0), Barrier(4)
            light, cond, ready = Event(), Condition(), Value("b", 0)
            guests = [Process(target=guest, args=(rooms, inside, most, barrier)) for _ in range(3)]
            cars = [Process(target=car, args=(light, n)) for n in range(2)]
            waiters = [Process(target=waiter, args=(cond, ready)) for _ in range(2)]
            for p in guests + cars + waiters:
                p.start()
            light.set()
            with cond:
                ready.value = 1
                cond.notify_all()
            barrier.wait()
            for p in guests + cars + waiters:
                p.join()
            print(most.value <= 2, light.is_set())
        """,
        ["True True", "car goes", "car goes", "told", "told"],
    ),
    "Pool": (
        """
        import os
        from multiprocessing import Pool

        def work(n):
            return n**2

        def fails(n):
            if n == 3:
                raise ValueError(f"no {n}")
            return n

        def add(a, b):
            return a + b

        if __name__ == "__main__":
            done, failed = [], []
            pool = Pool(2)
            results = [pool.apply_async(work, args=(i,), callback=done.append) for i in range(5)]
            wrong = pool.apply_async(fails, (3,), error_callback=failed.append)
            pool.close()
            pool.join()
            print([r.get() for r in results], sorted(done), wrong.successful(), [repr(e) for e in failed])
            try:
                pool.apply_async(work, (1,))
            except ValueError as error:
                print(error)
            with Pool(2) as pool:
                print(pool.apply(work, (7,)), pool.map(work, range(6)), pool.starmap(add, [(1, 2), (3, 4)]))
                print(list(pool.imap(work, range(4))), sorted(pool.imap_unordered(work, range(4), chunksize=2)))
                lines = []
                pool.map_async(work, range(3), callback=lines.extend).wait()
                print(lines)
                try:
                    pool.map(fails, range(5))
                except ValueError as error:
                    print("ValueError", error)
        """,
        [
            "49 [0, 1, 4, 9, 16, 25] [3, 7]",
            "Pool not running",
            "ValueError no 3",
            "[0, 1, 4, 9, 16] [0, 1, 4, 9, 16] False [\"ValueError('no 3')\"]",
            "[0, 1, 4, 9] [0, 1, 4, 9]",
            "[0, 1, 4]",
        ],
    ),
    "ProcessPoolExecutor": (
        """
        import os
        from concurrent.futures import ProcessPoolExecutor, as_completed, wait

        def work(n):
            return n**2

        def where():
            return os.getpid()

        def parse(future):
            parsed.append((future.result(), os.getpid()))

        parsed = []

        if __name__ == "__main__":
            with ProcessPoolExecutor(2) as executor:
                futures = [executor.submit(work, i) for i in range(5)]
                for future in futures:
                    future.add_done_callback(parse)
                print(sorted(f.result() for f in as_completed(futures)))
                print(list(executor.map(work, range(5))), len(wait(futures).done))
                print(executor.submit(where).result() != os.getpid())
            print(sorted(value for value, _ in parsed), {pid for _, pid in parsed} == {os.getpid()})
        """,
        ["True", "[0, 1, 4, 9, 16]", "[0, 1, 4, 9, 16] 5", "[0, 1, 4, 9, 16] True"],
    ),
}
"""What it is about -> the program, and what it prints, sorted."""


@pytest.mark.parametrize("about", PROGRAMS)
def test_channels(about, tmp_path):
    """A program whose processes talk prints the same with both libraries, and ends the same."""
    source, expected = PROGRAMS[about]
    assert same_in_both(tmp_path, source) == expected
