"""What the maker of a pipe or socket queue keeps: a memory queue of parcels, of which some come back."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappush
from typing import Any

from duodao.channel import codec
from duodao.channel.codec import Parcel
from duodao.channel.memory import MemoryQueue
from duodao.channel.order import Heap, rank

SOFT = 4 << 20
"""Bytes after which a frame of several items takes no more."""


class Held(MemoryQueue[Any]):
    """Entries are parcels; for order="priority", (priority, parcel), so that only priorities are ever compared."""

    _dropped = False
    _returned = 0

    def entry(self, parcel: Parcel, item: Any = None, *, known: bool = False) -> Any:
        """A parcel as it lies in the queue. Without its item `known`, a priority queue unpacks it to see its priority:
        parcels of strangers are plain, and all others come from tasks of ours. Raises what unpacking raises."""
        if self.order != "priority":
            return parcel
        if not known:
            item = codec.unpack(parcel)
        return (item[0] if isinstance(item, tuple) and len(item) == 2 else item), parcel

    def parcel(self, entry: Any) -> Parcel:
        """The parcel of an entry."""
        return entry[1] if self.order == "priority" else entry  # type: ignore[no-any-return]

    def take(self, n: int, most: int = SOFT) -> list[Any]:
        """Up to n entries that are there, of some `most` bytes together. ShutDown: there are none and will be none."""
        found: list[Any] = self._take_some(1)
        size, step = sum(len(self.parcel(entry)[1]) for entry in found), 8
        while found and len(found) < n and size < most:
            try:
                part = self._take_some(min(step, n - len(found)))
            except RuntimeError:  # shut down, and this was the last
                break
            if not part:
                break
            found += part
            size += sum(len(self.parcel(entry)[1]) for entry in part)
            step = max(1, min(step * 8, (most - size) * len(found) // (size + 1)))
        return found

    def take_back(self, entries: Sequence[Any]) -> None:
        """Put in front again what was sent to a client that never said it came. It was never done, so it counts."""
        if not entries:
            return
        with self.mutex:
            if self._closed:
                return
            if self._dropped:
                self.unfinished_tasks = max(0, self.unfinished_tasks - len(entries))
                if not self.unfinished_tasks:
                    self._tell_all("all_tasks_done", self._joiners)
                return
            store = self._store
            for entry in reversed(entries):
                self._returned -= 1
                if isinstance(store, Heap):
                    heappush(store.entries, (rank(entry), self._returned, entry))  # before those of equal rank
                elif isinstance(store, list):
                    store.append(entry)
                else:
                    store.appendleft(entry)
            self._tell("not_empty", self._getters, len(entries))

    def shutdown(self, immediate: bool = False) -> None:
        """As Queue.shutdown; what comes back after an immediate one is dropped, too."""
        with self.mutex:
            self._dropped = self._dropped or immediate
            super().shutdown(immediate)
