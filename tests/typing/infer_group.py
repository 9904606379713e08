"""What type checkers must infer for `Group.start`. Checked, never run: test_typing.py gives this file to both."""

from __future__ import annotations

from typing import assert_type

import duodao
from duodao import Task


def double(x: int) -> float:
    return x * 2.0


async def fetch(url: str) -> bytes:
    return url.encode()


class Cook:
    def run(self, dish: str) -> tuple[str, int]:
        return dish, 1


with duodao.Group("kitchen", grace=1.0) as group:
    a = group.start(double, 1, lane="process", name="one", daemon=True)
    assert_type(a, Task[float])
    assert_type(a.result(), float)
    assert_type(a.exitcode, int | None)
    assert_type(a.join(1.0), bool)
    b = group.start(fetch, "u", restart="on-failure")
    assert_type(b.result(timeout=1), bytes)
    c = group.start(Cook(), "soup", lane="thread", restart=duodao.Restart(limit=2))
    assert_type(c.result(), tuple[str, int])
    d = group.start(double, kwargs={"x": 2})
    d.add_done_callback(lambda task: print(task.result() + 1.0))


async def main() -> float:
    async with duodao.Group() as group:
        task = group.start(double, 1)
        assert_type(await task, float)
    return task.result()
