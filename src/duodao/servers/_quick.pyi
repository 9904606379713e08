from collections.abc import Callable
from typing import Any

def answer(
    call: Callable[[Any], Any], data: bytes, fd: int, limit: int, held: float, /
) -> int | tuple[Any, int, float] | None: ...
