"""A queue between two processes: item by item, many at once, and large items."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from benchmarks.scenario import Bench, Scenario, scenario

NAMES = ("shared_queue_single", "shared_queue_many", "shared_queue_large")
SMALL = (1, "a text", 2.5)
LARGE = bytes(1_000_000)
AT_ONCE = 1000
FORK = multiprocessing.get_context("fork")


def as_many(result: Any, n: int) -> bool:
    return result == n


SINGLE = scenario("shared_queue_single", "small tuples from one process to another, one by one", "items/s", 100_000,
                  check=as_many)  # fmt: skip
MANY = scenario("shared_queue_many", "small tuples from one process to another, 1,000 per call",
                "items/s", 400_000, check=as_many,
                about="Where there is no such call, a row passes them one by one.")  # fmt: skip
BIG = scenario("shared_queue_large", "bytes of 1 MB from one process to another", "MB/s", 1_000, check=as_many)


def pass_on(bench: Bench, send: Callable[[int], None], receive: Callable[[int], int]) -> None:
    """A forked process sends 100 and then all; the clock runs from when the 100 are here."""
    child = FORK.Process(target=lambda: (send(100), send(bench.n)))
    child.start()
    receive(100)
    bench.time(lambda: receive(bench.n))
    child.join()


def declare(s: Scenario, item: Any, limit: int, *, many: bool) -> None:
    """The rows of one table. limit: items that a queue holds."""

    def counted(get: Callable[[], Any]) -> Callable[[int], int]:
        def receive(n: int) -> int:
            for _ in range(n):
                get()
            return n

        return receive

    def sent(put: Callable[[Any], Any]) -> Callable[[int], None]:
        def send(n: int) -> None:
            for _ in range(n):
                put(item)

        return send

    @s.row("duodao.Queue", ours=True)
    def ours(bench: Bench) -> None:
        import duodao

        with duodao.Queue(limit, via="shared") as queue:
            if not many:
                pass_on(bench, sent(queue.put), counted(queue.get))
                return

            def send(n: int) -> None:
                for at in range(0, n, AT_ONCE):
                    queue.put_many([item] * min(AT_ONCE, n - at))

            def receive(n: int) -> int:
                got = 0
                while got < n:
                    got += len(queue.get_many(min(AT_ONCE, n - got)))
                return got

            pass_on(bench, send, receive)

    @s.row("multiprocessing.Queue")
    def standard(bench: Bench) -> None:
        queue = FORK.Queue(limit)
        pass_on(bench, sent(queue.put), counted(queue.get))

    @s.row("multiprocessing.Pipe", note="one reader and one writer, no limit but the pipe's")
    def pipe(bench: Bench) -> None:
        reader, writer = FORK.Pipe(duplex=False)
        pass_on(bench, sent(writer.send), counted(reader.recv))

    @s.row("faster-fifo", note="a buffer of 200 MB; get_many of up to 1,000 where many are asked for")
    def faster_fifo(bench: Bench) -> None:
        from faster_fifo import Queue

        queue = Queue(max_size_bytes=200_000_000, maxsize=limit)
        if not many:
            pass_on(bench, sent(lambda x: queue.put(x, timeout=60)), counted(lambda: queue.get(timeout=60)))
            return

        def send(n: int) -> None:
            for at in range(0, n, AT_ONCE):
                queue.put_many([item] * min(AT_ONCE, n - at), timeout=60)

        def receive(n: int) -> int:
            got = 0
            while got < n:
                got += len(queue.get_many(timeout=60, max_messages_to_get=min(AT_ONCE, n - got)))
            return got

        pass_on(bench, send, receive)

    @s.row("pyzmq", note="PUSH and PULL over a UNIX socket, send_pyobj with protocol 5")
    def pyzmq(bench: Bench) -> None:
        import tempfile

        import zmq

        with tempfile.TemporaryDirectory() as folder:
            address = f"ipc://{os.path.join(folder, 'bench')}"

            def send(n: int) -> None:
                context = zmq.Context()
                socket = context.socket(zmq.PUSH)
                socket.set_hwm(limit)
                socket.connect(address)
                for _ in range(n):
                    socket.send_pyobj(item, protocol=5)
                socket.close(linger=-1)
                context.term()

            child = FORK.Process(target=lambda: send(bench.n + 100))
            child.start()
            context = zmq.Context()
            socket = context.socket(zmq.PULL)
            socket.set_hwm(limit)
            socket.bind(address)
            receive = counted(socket.recv_pyobj)
            receive(100)
            bench.time(lambda: receive(bench.n))
            child.join()
            socket.close()
            context.term()


declare(SINGLE, SMALL, 1000, many=False)
declare(MANY, SMALL, 10_000, many=True)
declare(BIG, LARGE, 64, many=False)
SINGLE.goal("2.5 times multiprocessing.Queue", "duodao.Queue", 2.5, "multiprocessing.Queue")
MANY.goal("15 times multiprocessing.Queue", "duodao.Queue", 15.0, "multiprocessing.Queue")
BIG.goal("4 times multiprocessing.Queue", "duodao.Queue", 4.0, "multiprocessing.Queue")
