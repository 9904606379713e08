"""`Pipeline.batch`: values that follow each other become one list, closed by size or by time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duodao.pipeline.node import Chunk, Node
from duodao.pipeline.window import GAP, Order

if TYPE_CHECKING:
    from duodao.pipeline.stages import Batched


class Gatherer:
    """Collects (id, value, input) in input order (or as they come, in an unordered run) and gives out whole lists.

    A list travels under the number of its first member, its leader; `members` tells which numbers it speaks for.
    """

    def __init__(self, group: Batched, *, ordered: bool) -> None:
        self.size = group.size
        self.within = group.within
        self.following: Node | Gatherer | None = None
        self.members: dict[int, list[int]] = {}
        self.open: list[tuple[int, Any, Any]] = []
        self.closes_at: float | None = None
        self._order = Order() if ordered else None

    def accept(self, chunk: Chunk, now: float) -> list[Chunk]:
        """Values of the stage before; returns the lists that are full now."""
        entries = list(zip(chunk.ids, chunk.values, chunk.inputs, strict=True))
        if self._order is not None:
            self._order.put(list(chunk.ids), entries)
            return self._advance(now)
        return self._add(entries, now)

    def gap(self, number: int, now: float) -> list[Chunk]:
        """The input `number` left the run before it came here."""
        if self._order is None:
            return []
        self._order.gap(number)
        return self._advance(now)

    def _advance(self, now: float) -> list[Chunk]:
        out: list[Chunk] = []
        while self._order is not None:
            entries, _ = self._order.pop()
            if not entries:
                break
            out += self._add([entry for entry in entries if entry is not GAP], now)
        return out

    def _add(self, entries: list[tuple[int, Any, Any]], now: float) -> list[Chunk]:
        out = []
        for entry in entries:
            if not self.open and self.within is not None:
                self.closes_at = now + self.within
            self.open.append(entry)
            if len(self.open) == self.size:
                out.append(self._close())
        return out

    def _close(self) -> Chunk:
        ids = [number for number, _, _ in self.open]
        self.members[ids[0]] = ids
        chunk = Chunk([ids[0]], [[value for _, value, _ in self.open]], [[item for _, _, item in self.open]])
        self.open = []
        self.closes_at = None
        return chunk

    def ripe(self, now: float) -> list[Chunk]:
        """The open list, when its time is up."""
        return [self._close()] if self.closes_at is not None and self.closes_at <= now else []

    def flush(self) -> list[Chunk]:
        """The open list, half full or not: nothing more comes."""
        return [self._close()] if self.open else []

    def idle(self) -> bool:
        """Nothing is held here."""
        return not self.open and (self._order is None or not self._order.held)
