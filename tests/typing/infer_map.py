"""What type checkers must infer for `map` and `run`. Checked, never run: test_typing.py gives this file to both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import duodao
from duodao import Outcome, Report


def double(x: int) -> float:
    return x * 2.0


async def fetch(url: str) -> bytes:
    return url.encode()


def pair(a: int, b: str) -> tuple[int, str]:
    return a, b


def numbers() -> Iterator[int]:
    yield 1


async def urls() -> AsyncIterator[str]:
    yield "a"


for a in duodao.map(double, [1, 2]):
    assert_type(a, float)

for b in duodao.map(double, numbers(), lane="process", workers=2, retries=3, timeout=1.0, ordered=False):
    assert_type(b, float)

for c in duodao.map(fetch, ["u"], lane="coroutine"):
    assert_type(c, bytes)

for d in duodao.map(double, [1], errors="collect"):
    assert_type(d, Outcome[float])
    assert_type(d.value, float | None)
    assert_type(d.unwrap(), float)

for e in duodao.map(fetch, ["u"], errors="collect"):
    assert_type(e, Outcome[bytes])

with duodao.map(double, [1]) as results:
    assert_type(list(results), list[float])
    assert_type(results.report, Report)

assert_type(list(duodao.map(str, [1, 2])), list[str])
assert_type(list(duodao.map(len, ["a"])), list[int])
assert_type(duodao.run(double, [1]), Report)


async def loop() -> None:
    async for f in duodao.map(fetch, ["u"]):
        assert_type(f, bytes)
    async for g in duodao.map(fetch, urls()):
        assert_type(g, bytes)
    async for h in duodao.map(double, [1], errors="collect"):
        assert_type(h, Outcome[float])
    async with duodao.map(double, [1]) as inside:
        async for i in inside:
            assert_type(i, float)
    assert_type(await duodao.arun(fetch, ["u"]), Report)
