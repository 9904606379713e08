"""`multiprocessing.Manager` without a manager process: its dict, list and Namespace lie in shared memory.

A read-modify-write that would lose another's update raises LostUpdate, where the standard library loses it; values
come back read-only, so changing one in place raises, where the standard library changes a copy. Source: M12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence
from types import TracebackType
from typing import Any

from duodao.channel.state import Shared
from duodao.dropin.multiprocessing import queues, sharedctypes, synchronize
from duodao.errors import UsageError

__all__ = ["BaseManager", "DictProxy", "ListProxy", "Manager", "Namespace", "SyncManager"]


class DictProxy(MutableMapping[Any, Any]):
    """A dict that processes share."""

    _duodao_handle = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._state: Shared[Any, Any] = Shared(dict(*args, **kwargs))

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._state[key]

    def __len__(self) -> int:
        return len(self._state)

    def __iter__(self) -> Iterator[Any]:
        """RuntimeError when it is found to have grown or shrunk meanwhile."""
        return self._each(self.keys())

    def _each(self, keys: list[Any]) -> Iterator[Any]:
        for key in keys:
            if len(self._state) != len(keys):
                raise RuntimeError("dictionary changed size during iteration")
            yield key

    def __contains__(self, key: object) -> bool:
        return key in self._state

    def copy(self) -> dict[Any, Any]:
        """As an ordinary dict, at one moment."""
        with self._state:
            return dict(self._state.items())

    # The lists of a moment, as the standard proxies return them

    def keys(self) -> list[Any]:  # type: ignore[override]
        return list(self.copy())

    def values(self) -> list[Any]:  # type: ignore[override]
        return list(self.copy().values())

    def items(self) -> list[tuple[Any, Any]]:  # type: ignore[override]
        return list(self.copy().items())

    def pop(self, key: Any, *default: Any) -> Any:
        with self._state:
            return self._state.pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        with self._state:
            return self._state.popitem()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        with self._state:
            return self._state.setdefault(key, default)

    def update(self, *args: Any, **kwargs: Any) -> None:
        with self._state:
            self._state.update(*args, **kwargs)

    def clear(self) -> None:
        with self._state:
            self._state.clear()

    def __repr__(self) -> str:
        return f"<DictProxy {self.copy()!r}>"

    def __str__(self) -> str:
        return str(self.copy())


class ListProxy(MutableSequence[Any]):
    """A list that processes share: an entry of the shared state per place, and one for the length."""

    _duodao_handle = True

    def __init__(self, items: Iterable[Any] = ()) -> None:
        given = list(items)
        self._state: Shared[Any, Any] = Shared({**dict(enumerate(given)), "length": len(given)})

    def _place(self, index: int) -> int:
        length = self._state["length"]
        place = index + length if index < 0 else index
        if not 0 <= place < length:
            raise IndexError("list index out of range")
        return int(place)

    def __len__(self) -> int:
        return int(self._state["length"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._all()[index]
        return self._state[self._place(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            self._change(lambda items: items.__setitem__(index, value))
        else:
            self._state[self._place(index)] = value

    def __delitem__(self, index: Any) -> None:
        self._change(lambda items: items.__delitem__(index))

    def __iter__(self) -> Iterator[Any]:
        """One by one, each as it is when its turn has come."""
        place = 0
        while True:
            try:
                value = self[place]
            except IndexError:
                return
            yield value
            place += 1

    def __contains__(self, value: object) -> bool:
        return value in self._all()

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, ListProxy) else other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Any) -> list[Any]:
        return self._all() + list(other)

    def __mul__(self, times: int) -> list[Any]:
        return self._all() * times

    __rmul__ = __mul__

    def append(self, value: Any) -> None:
        with self._state:
            length = self._state["length"]
            self._state[length] = value
            self._state["length"] = length + 1

    def extend(self, values: Iterable[Any]) -> None:
        given = list(values)
        self._change(lambda items: items.extend(given))

    def insert(self, index: int, value: Any) -> None:
        self._change(lambda items: items.insert(index, value))

    def pop(self, index: int = -1) -> Any:
        return self._change(lambda items: items.pop(index))

    def remove(self, value: Any) -> None:
        self._change(lambda items: items.remove(value))

    def reverse(self) -> None:
        self._change(lambda items: items.reverse())

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """In place, in one step."""
        self._change(lambda items: items.sort(key=key, reverse=reverse))

    def clear(self) -> None:
        self._change(lambda items: items.clear())

    def _all(self) -> list[Any]:
        with self._state:
            return [self._state[place] for place in range(self._state["length"])]

    def _change(self, change: Callable[[list[Any]], Any]) -> Any:
        """Do it to a list of all, and write back what is different: one step for the others."""
        with self._state:
            before = self._all()
            after = before[:]
            result = change(after)
            for place, value in enumerate(after):
                if place >= len(before) or value is not before[place]:
                    self._state[place] = value
            for place in range(len(after), len(before)):
                del self._state[place]
            self._state["length"] = len(after)
            return result

    def __repr__(self) -> str:
        return f"<ListProxy {self._all()!r}>"

    def __str__(self) -> str:
        return str(self._all())


class Namespace:
    """Attributes that processes share."""

    _duodao_handle = True

    def __init__(self, **kwargs: Any) -> None:
        object.__setattr__(self, "_state", Shared(kwargs))

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> Any:
        if name == "_state" or name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._state[name]
        except KeyError:
            raise AttributeError(f"'Namespace' object has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._state[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._state[name]
        except KeyError:
            raise AttributeError(f"'Namespace' object has no attribute {name!r}") from None

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in sorted(self._state.items()) if not name.startswith("_"))
        return f"Namespace({', '.join(shown)})"


class SyncManager:
    """What `Manager()` returns: it makes things that processes share. There is no process of it to start or to lose."""

    Lock = staticmethod(synchronize.Lock)
    RLock = staticmethod(synchronize.RLock)
    Semaphore = staticmethod(synchronize.Semaphore)
    BoundedSemaphore = staticmethod(synchronize.BoundedSemaphore)
    Condition = staticmethod(synchronize.Condition)
    Event = staticmethod(synchronize.Event)
    Barrier = staticmethod(synchronize.Barrier)
    Queue = staticmethod(queues.Queue)
    JoinableQueue = staticmethod(queues.JoinableQueue)
    Value = staticmethod(sharedctypes.Value)
    Array = staticmethod(sharedctypes.Array)
    dict = staticmethod(DictProxy)
    list = staticmethod(ListProxy)
    Namespace = staticmethod(Namespace)

    @staticmethod
    def Pool(*args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """A pool of this process: `Pool`."""
        from duodao.dropin.multiprocessing.pool import Pool

        return Pool(*args, **kwargs)

    def start(self, initializer: Any = None, initargs: Any = ()) -> None:
        """Nothing to start; an initializer has no process to run in: UsageError."""
        del initargs
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if initializer is not None:
            raise UsageError("this manager has no process of its own in which an initializer could run")

    def connect(self) -> None:
        """UsageError: there is no server to connect to."""
        raise UsageError("this manager has no server; between machines use duodao.Queue(via='tcp://HOST:PORT')")

    def shutdown(self) -> None:
        """Nothing to end: what it made lives as long as somebody uses it."""

    def join(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""

    @classmethod
    def register(cls, typeid: str, *args: Any, **kwargs: Any) -> None:
        """UsageError: objects of classes of your own have no server process to live in here."""
        del args, kwargs
        raise UsageError(
            f"can't register {typeid!r}: this manager has no process in which an object could live. Keep its data in "
            "a dict() or Namespace() of it, or serve it from a process of a duodao.Group over a Queue"
        )

    def __enter__(self) -> SyncManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


BaseManager = SyncManager
"""So that what derives from it is told by `register` why that can't be."""


def Manager() -> SyncManager:  # noqa: N802  # the standard library's name
    """A maker of shared things, as `multiprocessing.Manager()`."""
    return SyncManager()
