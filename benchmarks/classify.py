"""Does `lane="auto"` find the right lane, and what does finding it cost? A confusion matrix and a table of times.

python benchmarks/classify.py [--repeat 5] [--load N]       --load: N processes that keep cores busy meanwhile
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import socket
import statistics
import threading
import time
import zlib

import duodao

DATA = os.urandom(1 << 20)
TEXT = '{"a": 1, "b": [1, 2, 3], "c": "x"}'
LANES = ("inline", "thread", "process")


def square(x):
    return x * x


def burn(x):
    total = 0
    for i in range(35_000):
        total += i * i
    return total


def pack(data):
    return len(zlib.compress(data, 3))


def nap(seconds):
    time.sleep(seconds)


def total(array):
    return float(array.sum())


def parse(text):
    return json.loads(text)


def fetch(port):
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"get")
        size = 0
        while part := s.recv(65536):
            size += len(part)
    return size


def serve(listener):
    """A server that takes 2 ms for a page, one thread per connection."""

    def answer(connection):
        with connection:
            connection.recv(100)
            time.sleep(0.002)
            connection.sendall(b"x" * 4000)

    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def spin():
    while True:
        pass


def cases(port):
    """(name, function, items, lanes that are right)."""
    yield "x*x", square, range(1_000_000), {"inline"}
    yield "1 ms Python", burn, range(1000), {"process"}
    yield "zlib 1 MB", pack, [DATA] * 40, {"thread"}
    yield "sleep 1 ms", nap, [0.001] * 2000, {"thread"}
    yield "sleep 10 ms", nap, [0.010] * 300, {"thread"}
    try:
        import numpy as np
    except ImportError:
        print("numpy is missing: its sum is left out")
    else:
        yield "numpy 8 MB", total, [np.ones(1 << 20)] * 500, {"thread"}
    yield "json.loads", parse, [TEXT] * 200_000, {"inline", "process"}
    yield "fetch", fetch, [port] * 500, {"thread"}


def timed(function, items, lane):
    began = time.perf_counter()
    report = duodao.run(function, items, lane=lane)
    return time.perf_counter() - began, report.stages[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--load", type=int, default=0)
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    context = multiprocessing.get_context("fork")
    helpers = [context.Process(target=serve, args=(listener,), daemon=True)]
    helpers += [context.Process(target=spin, daemon=True) for _ in range(options.load)]
    for helper in helpers:
        helper.start()
    matrix, rows = {}, []
    try:
        for name, function, items, right in cases(listener.getsockname()[1]):
            times = collections.defaultdict(list)
            chosen, why = collections.Counter(), ""
            for _ in range(options.repeat):
                for lane in LANES:
                    times[lane].append(timed(function, items, lane)[0])
                seconds, stage = timed(function, items, "auto")
                times["auto"].append(seconds)
                chosen[stage.lane] += 1
                why = stage.why
            matrix[name] = (chosen, right)
            rows.append((name, {lane: statistics.median(values) for lane, values in times.items()}, why))
    finally:
        for helper in helpers:
            helper.kill()
            helper.join()
        listener.close()
    print(f"{'function':<14}" + "".join(f"{lane:>10}" for lane in LANES) + "   right")
    wrong = 0
    for name, (chosen, right) in matrix.items():
        wrong += sum(count for lane, count in chosen.items() if lane not in right)
        print(
            f"{name:<14}" + "".join(f"{chosen[lane] or '.':>10}" for lane in LANES) + "   " + " or ".join(sorted(right))
        )
    print(f"{wrong} of {options.repeat * len(matrix)} choices wrong\n")
    print(f"{'seconds':<14}" + "".join(f"{lane:>10}" for lane in (*LANES, "auto")) + f"{'auto/best':>11}   why")
    for name, medians, why in rows:
        best = min(medians[lane] for lane in LANES)
        cells = "".join(f"{medians[lane]:>10.3f}" for lane in (*LANES, "auto"))
        print(f"{name:<14}{cells}{medians['auto'] / best:>11.2f}   {why}")


if __name__ == "__main__":
    main()
