"""Programs that hang with the standard library, run with other import lines only: they go on, or say what is wrong.

Each of them was seen to hang, or to lose something in silence, with the standard library. Source: M9-M18, M24, M29.
"""

from __future__ import annotations

from tests.e2e.moved_program import run


def test_two_locks_in_two_orders_by_threads(tmp_path):
    """Of two threads that each hold what the other wants one gets Deadlock, and the other goes on."""
    ended = run(
        tmp_path,
        """
        import threading
        from threading import Barrier, Lock, Thread

        noodles, chopsticks, both = Lock(), Lock(), Barrier(2)

        def eat(name, first, second):
            with first:
                both.wait()
                with second:
                    print(name, "eats")

        threads = [
            Thread(target=eat, args=("Ann", noodles, chopsticks), name="Ann"),
            Thread(target=eat, args=("Bob", chopsticks, noodles), name="Bob"),
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print("main ends")
        """,
    )
    assert ended.code == 0
    assert sorted(ended.out)[1:] == ["main ends"]
    assert min(ended.out) in {"Ann eats", "Bob eats"}
    assert "duodao.errors.Deadlock" in ended.err
    assert "thread 'Ann' waits for Lock" in ended.err
    assert "thread 'Bob' waits for Lock" in ended.err


def test_two_locks_in_two_orders_by_processes(tmp_path):
    """Of two processes that each hold what the other wants one ends with Deadlock, exit code 1, the other goes on."""
    ended = run(
        tmp_path,
        """
        from multiprocessing import Barrier, Lock, Process

        def eat(name, first, second, both):
            with first:
                both.wait()
                with second:
                    print(name, "eats")

        if __name__ == "__main__":
            noodles, chopsticks, both = Lock(), Lock(), Barrier(2)
            a = Process(target=eat, args=("Ann", noodles, chopsticks, both))
            b = Process(target=eat, args=("Bob", chopsticks, noodles, both))
            a.start()
            b.start()
            a.join()
            b.join()
            print("exit codes", sorted([a.exitcode, b.exitcode]))
        """,
    )
    assert ended.code == 0
    assert len(ended.out) == 2
    assert "exit codes [0, 1]" in ended.out
    assert "duodao.errors.Deadlock" in ended.err


def test_join_of_one_that_waits_for_my_lock(tmp_path):
    """Joining a thread, or a process, that waits for a lock the joiner holds is Deadlock in one of the two."""
    ended = run(
        tmp_path,
        """
        import multiprocessing
        import threading
        from duodao.errors import Deadlock

        def work(lock, begun):
            begun.set()
            try:
                with lock:
                    print("worker has it")
            except Deadlock:
                print("Deadlock in the worker")

        def main(library, kind):
            lock, begun = library.Lock(), library.Event()
            with lock:
                other = kind(target=work, args=(lock, begun))
                other.start()
                begun.wait()
                try:
                    other.join()
                except Deadlock:
                    print("Deadlock in main")
            other.join()

        if __name__ == "__main__":
            main(threading, threading.Thread)
            print("--")
            main(multiprocessing, multiprocessing.Process)
        """,
    )
    assert ended.code == 0, ended.err
    threads, processes = "\n".join(ended.out).split("--")
    for part in (threads, processes):
        assert part.strip() in {"Deadlock in the worker", "Deadlock in main\nworker has it"}


def test_a_lock_is_taken_twice(tmp_path):
    """Taking one's own Lock again is Deadlock at once: of threads and of processes."""
    ended = run(
        tmp_path,
        """
        import multiprocessing
        import threading
        from duodao.errors import Deadlock

        for library in (threading, multiprocessing):
            lock = library.Lock()
            lock.acquire()
            try:
                lock.acquire()
            except Deadlock as error:
                print("held by itself" in str(error))
            lock.release()
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["True", "True"], "")


def test_the_holder_of_a_lock_is_killed(tmp_path):
    """The next one that wants it has it, and is warned that its holder died."""
    ended = run(
        tmp_path,
        """
        import os
        import signal
        from multiprocessing import Lock, Process

        def die(lock):
            lock.acquire()
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            lock = Lock()
            p = Process(target=die, args=(lock,))
            p.start()
            p.join()
            with lock:
                print("mine", p.exitcode)
        """,
    )
    assert (ended.code, ended.out) == (0, ["mine -9"])
    assert "RuntimeWarning: Lock" in ended.err
    assert "ended without releasing it" in ended.err


def test_a_thread_ends_with_a_lock(tmp_path):
    """A lock that a thread took along as it ended is had by the next one, or that is told why not."""
    ended = run(
        tmp_path,
        """
        from threading import Lock, Thread

        lock = Lock()
        t = Thread(target=lock.acquire)
        t.start()
        t.join()
        print(bool(lock.acquire()))
        """,
    )
    assert (ended.code, ended.out) == (0, ["True"]) or "duodao.errors" in ended.err


def test_a_worker_is_killed_inside_map(tmp_path):
    """Pool.map raises WorkerDied, which names the exit; the pool goes on working."""
    ended = run(
        tmp_path,
        """
        import os
        import signal
        from multiprocessing import Pool
        from duodao.errors import WorkerDied

        def work(n):
            if n == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return n * n

        if __name__ == "__main__":
            with Pool(2) as pool:
                try:
                    pool.map(work, range(8), chunksize=1)
                except WorkerDied as error:
                    print(error.exitcode, "SIGKILL" in str(error))
                print(pool.map(work, range(4)))
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["-9 True", "[0, 1, 4, 9]"], "")


def test_a_reader_is_killed_in_get(tmp_path):
    """A process that is killed as it waits in get() takes no lock along: the others read and write on."""
    ended = run(
        tmp_path,
        """
        import os
        import signal
        from multiprocessing import Process, Queue

        def read(q, begun):
            begun.put(True)
            q.get()

        if __name__ == "__main__":
            q, begun = Queue(), Queue()
            readers = [Process(target=read, args=(q, begun)) for _ in range(3)]
            for p in readers:
                p.start()
            for p in readers:
                begun.get()
            for p in readers[:2]:
                os.kill(p.pid, signal.SIGKILL)
                p.join()
            q.put("for the third")
            readers[2].join()
            q.put("for me")
            print(q.get(), [p.exitcode for p in readers])
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["for me [-9, -9, 0]"], "")


def test_join_before_the_queue_is_drained(tmp_path):
    """A child that has put a lot ends, and can be joined, before anybody reads."""
    ended = run(
        tmp_path,
        """
        from multiprocessing import Process, Queue

        def produce(q):
            for _ in range(1000):
                q.put("x" * 1000)
            q.put("y" * 10_000_000)

        if __name__ == "__main__":
            q = Queue()
            p = Process(target=produce, args=(q,))
            p.start()
            p.join()
            print(q.qsize(), {len(q.get()) for _ in range(1000)}, len(q.get()), q.empty())
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["1001 {1000} 10000000 True"], "")


def test_the_program_ends_with_a_full_queue(tmp_path):
    """What nobody reads keeps no process: neither the child that put it, nor the main one."""
    ended = run(
        tmp_path,
        """
        from multiprocessing import Process, Queue

        def produce(q):
            for _ in range(2000):
                q.put("x" * 1000)
            print("child ends")

        if __name__ == "__main__":
            q = Queue()
            p = Process(target=produce, args=(q,))
            p.start()
            for _ in range(2000):
                q.put("x" * 1000)
            p.join()
            print("main ends", p.exitcode)
        """,
    )
    assert (ended.code, sorted(ended.out), ended.err) == (0, ["child ends", "main ends 0"], "")


def test_a_pool_that_nobody_closed(tmp_path):
    """What a pool was given is finished before the program ends, and its workers with it."""
    ended = run(
        tmp_path,
        """
        from multiprocessing import Pool

        def work(n):
            return n

        def told(n):
            print("done", n)

        if __name__ == "__main__":
            pool = Pool(2)
            for n in range(3):
                pool.apply_async(work, (n,), callback=told)
            print("main ends")
        """,
    )
    assert (ended.code, sorted(ended.out)) == (0, ["done 0", "done 1", "done 2", "main ends"]), ended.err


def test_results_after_terminate(tmp_path):
    """What was running or waiting when a pool was terminated raises as it is asked for; get() doesn't wait for ever."""
    ended = run(
        tmp_path,
        """
        import time
        from concurrent.futures import CancelledError
        from multiprocessing import Pool
        from duodao.errors import WorkerDied

        if __name__ == "__main__":
            pool = Pool(1)
            results = [pool.apply_async(time.sleep, (60,)) for _ in range(4)]
            pool.terminate()
            pool.join()
            for each in results:
                try:
                    each.get()
                except (CancelledError, WorkerDied):
                    print("over")
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["over"] * 4, "")


def test_a_callback_raises(tmp_path):
    """A callback of a pool that raises is reported; the other results still come."""
    ended = run(
        tmp_path,
        """
        from multiprocessing import Pool

        def work(n):
            return n

        def wrong(n):
            raise KeyError("in the callback")

        if __name__ == "__main__":
            with Pool(2) as pool:
                first = pool.apply_async(work, (1,), callback=wrong)
                print(first.get(), pool.map(work, range(3)))
        """,
    )
    assert (ended.code, ended.out) == (0, ["1 [0, 1, 2]"])
    assert "in the callback" in ended.err


def test_a_lost_update_is_said(tmp_path):
    """`d["x"] += 1` by several processes without a lock: all are counted, or LostUpdate says which was not."""
    ended = run(
        tmp_path,
        """
        from multiprocessing import Manager, Process, Queue
        from duodao.errors import LostUpdate

        def count(d, failed):
            lost = 0
            for _ in range(200):
                try:
                    d["x"] += 1
                except LostUpdate:
                    lost += 1
            failed.put(lost)

        if __name__ == "__main__":
            d, failed = Manager().dict(x=0), Queue()
            processes = [Process(target=count, args=(d, failed)) for _ in range(4)]
            for p in processes:
                p.start()
            for p in processes:
                p.join()
            print(d["x"] + sum(failed.get() for _ in processes))
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["800"], "")


def test_two_threads_join_each_other(tmp_path):
    """A circle of joins is Deadlock in one of the threads; the other goes on."""
    ended = run(
        tmp_path,
        """
        from threading import Barrier, Thread

        both, threads = Barrier(2), []

        def work(other):
            both.wait()
            threads[other].join()
            print("goes on")

        threads += [Thread(target=work, args=(1,)), Thread(target=work, args=(0,))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print("main ends")
        """,
    )
    assert (ended.code, ended.out) == (0, ["goes on", "main ends"])
    assert "duodao.errors.Deadlock" in ended.err


def test_a_call_waits_for_a_call_of_its_own_pool(tmp_path):
    """A pool of one whose call waits for another call of it runs that, where the standard one stops for ever."""
    ended = run(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            print(pool.submit(lambda: pool.submit(lambda: 7).result()).result())
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, ["7"], "")
