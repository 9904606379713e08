"""What type checkers must infer through `Pipeline`, for plain and async functions alike. Checked, never run."""

from __future__ import annotations

from typing import assert_type

import duodao
from duodao import Outcome, Pipeline


def fetch(url: str) -> bytes:
    return url.encode()


async def afetch(url: str) -> bytes:
    return url.encode()


def parse(page: bytes) -> dict[str, int]:
    return {"length": len(page)}


async def aparse(page: bytes) -> dict[str, int]:
    return {"length": len(page)}


def store(rows: list[dict[str, int]]) -> None:
    del rows


plain = Pipeline(fetch, lane="thread").then(parse, lane="process", workers=2)
assert_type(plain, Pipeline[str, dict[str, int]])

mixed = Pipeline(afetch, workers=100).then(parse)
assert_type(mixed, Pipeline[str, dict[str, int]])

other_way = Pipeline(fetch).then(aparse)
assert_type(other_way, Pipeline[str, dict[str, int]])

both = Pipeline(afetch, retries=2, timeout=5.0).then(aparse, rate=10)
assert_type(both, Pipeline[str, dict[str, int]])

assert_type(Pipeline(afetch), Pipeline[str, bytes])
assert_type(Pipeline(fetch), Pipeline[str, bytes])

batched = plain.batch(100, within=1.0)
assert_type(batched, Pipeline[str, list[dict[str, int]]])
assert_type(batched.then(store), Pipeline[str, None])

for row in duodao.map(plain, ["u"]):
    assert_type(row, dict[str, int])

for outcome in duodao.map(both, ["u"], errors="collect"):
    assert_type(outcome, Outcome[dict[str, int]])


async def loop() -> None:
    async for item in duodao.map(mixed, ["u"]):
        assert_type(item, dict[str, int])
