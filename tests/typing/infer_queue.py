"""What type checkers must infer of queues: an item comes out as what was put in. Checked, never run."""

from __future__ import annotations

from typing import assert_type

import duodao
from duodao.dropin import queue as standard

numbers = duodao.Queue[int](100)
assert_type(numbers, duodao.Queue[int])
assert_type(numbers.get(), int)
assert_type(numbers.get(timeout=1.5), int)
assert_type(numbers.get_nowait(), int)
assert_type(numbers.get_many(10, timeout=1), list[int])
assert_type(numbers.put_many(range(10)), int)
assert_type(numbers.join(timeout=2), bool)
assert_type(numbers.statistics().getters, tuple[str, ...])
numbers.put(3, block=False)

jobs: duodao.Queue[tuple[int, str]] = duodao.Queue(10, order="priority", via="shared", name="jobs")
for level, name in jobs:
    assert_type(level, int)
    assert_type(name, str)

with duodao.Queue[bytes](5, via="tcp://127.0.0.1:1688") as frames:
    assert_type(frames.get(), bytes)


async def loop() -> None:
    assert_type(await numbers.aget(timeout=1), int)
    assert_type(await numbers.aget_many(5), list[int])
    assert_type(await numbers.aput_many([1, 2]), int)
    assert_type(await numbers.ajoin(), bool)
    await numbers.aput(1)
    async for number in numbers:
        assert_type(number, int)


texts = standard.PriorityQueue[str](5)
assert_type(texts.get(), str)
assert_type(texts.get_many(2), list[str])
simple: standard.SimpleQueue[float] = standard.SimpleQueue()
assert_type(simple.get(), float)
simple.put(2.5)
