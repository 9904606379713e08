"""thread(2) -> process(2) -> thread(2) over small dicts, bounded and ordered."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.scenario import Bench, scenario
from benchmarks.work import fetch, parse, score, store

NAMES = ("pipeline",)
DONE = None


def check(result: list[int], n: int) -> bool:
    return result == [score(x) for x in range(n)]


S = scenario(
    "pipeline", "Pipeline thread(2) -> process(2) -> thread(2) of small dicts", "items/s", 100_000, check=check
)


@S.row("duodao.Pipeline", ours=True)
def ours(bench: Bench) -> None:
    import duodao

    line = (
        duodao.Pipeline(fetch, lane="thread", workers=2)
        .then(parse, lane="process", workers=2)
        .then(store, lane="thread", workers=2)
    )
    list(duodao.map(line, range(1_000)))
    bench.time(lambda: list(duodao.map(line, range(bench.n))))


def mapped(function: Callable[[Any], Any], source: Any, sink: Any) -> None:
    """A hand-written worker: numbered lists in, numbered lists out, until DONE."""
    while (message := source.get()) is not DONE:
        number, items = message
        sink.put((number, [function(x) for x in items]))
    sink.put(DONE)


def by_hand(items: Iterable[int], size: int) -> Iterator[int]:
    """Two threads, two processes, two threads, bounded queues between them, put in order at the end."""
    import multiprocessing

    to_fetch: Any = queue.Queue(16)
    to_parse: Any = multiprocessing.Queue(16)
    to_store: Any = multiprocessing.Queue(16)
    out: Any = queue.Queue(16)
    parsers = [multiprocessing.Process(target=mapped, args=(parse, to_parse, to_store)) for _ in range(2)]
    for process in parsers:
        process.start()
    others = [threading.Thread(target=mapped, args=(fetch, to_fetch, to_parse)) for _ in range(2)]
    others += [threading.Thread(target=mapped, args=(store, to_store, out)) for _ in range(2)]
    others.append(threading.Thread(target=feed, args=(items, size, to_fetch)))
    for thread in others:
        thread.start()
    waiting: dict[int, list[int]] = {}
    wanted, ended = 0, 0
    while ended < 2:
        message = out.get()
        if message is DONE:
            ended += 1
            continue
        waiting[message[0]] = message[1]
        while wanted in waiting:
            yield from waiting.pop(wanted)
            wanted += 1
    for worker in [*parsers, *others]:
        worker.join()


def feed(items: Iterable[int], size: int, sink: Any) -> None:
    """Numbered lists of `size`, then DONE for both readers."""
    source = iter(items)
    for number in itertools.count():
        part = list(itertools.islice(source, size))
        if not part:
            break
        sink.put((number, part))
    sink.put(DONE)
    sink.put(DONE)


@S.row("hand-written, multiprocessing.Queue, lists of 100", note="about 50 lines; a killed worker hangs it")
def hand_lists(bench: Bench) -> None:
    bench.time(lambda: list(by_hand(range(bench.n), 100)))


@S.row("hand-written, multiprocessing.Queue, item by item", n=20_000)
def hand_items(bench: Bench) -> None:
    bench.time(lambda: list(by_hand(range(bench.n), 1)))


@S.row("streamable", n=3_000)
def streamable(bench: Bench) -> None:
    from concurrent.futures import ProcessPoolExecutor

    from streamable import stream

    with ProcessPoolExecutor(2) as made:
        list(made.map(parse, [fetch(1)]))
        line = stream(range(bench.n)).map(fetch, concurrency=2).map(parse, concurrency=made).map(store, concurrency=2)
        bench.time(lambda: list(line))


@S.row("pypeln", n=3_000, note="maxsize=1000; put in order after it")
def pypeln(bench: Bench) -> None:
    import pypeln as pl

    def line() -> list[int]:
        stage = pl.thread.map(fetch, range(bench.n), workers=2, maxsize=1_000)
        stage = pl.process.map(parse, stage, workers=2, maxsize=1_000)
        return list(pl.thread.map(store, stage, workers=2, maxsize=1_000) | pl.thread.ordered)

    bench.time(line)


@S.row("plain loop", limit=True)
def loop(bench: Bench) -> None:
    bench.time(lambda: [store(parse(fetch(x))) for x in range(bench.n)])


S.goal(
    "level with hand-written code that moves lists of 100",
    "duodao.Pipeline",
    1.0,
    "hand-written, multiprocessing.Queue, lists",
)
S.goal("12 times the same code item by item", "duodao.Pipeline", 12.0, "hand-written, multiprocessing.Queue, item")
S.goal("300 times pypeln", "duodao.Pipeline", 300.0, "pypeln")
