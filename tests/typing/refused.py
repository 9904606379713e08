"""What type checkers must refuse: each ignore below is needed, and both checkers say so when one is not."""

from __future__ import annotations

import duodao


def double(x: int) -> float:
    return x * 2.0


duodao.map(double, [1], lane="proces")  # type: ignore  # pyright: ignore
duodao.map(double, [1], worker=2)  # type: ignore  # pyright: ignore
duodao.map(double, [1], errors="colect")  # type: ignore  # pyright: ignore
duodao.map(double)  # type: ignore  # pyright: ignore

queue = duodao.Queue[int](5)
queue.put("text")  # type: ignore  # pyright: ignore
queue.put_many(["text"])  # type: ignore  # pyright: ignore
duodao.Queue[int](5, order="random")  # type: ignore  # pyright: ignore
duodao.Queue[int](size=5)  # type: ignore  # pyright: ignore
