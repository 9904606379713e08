"""One row of a journal: an outcome as columns, and back. A checksum over all of it, so that a torn page gives no value.

Invariant: `unpack(pack(x))` is x or an error that says why not; never another value.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from duodao.errors import JournalDamaged, NotPicklable, RemoteError, RemoteTraceback
from duodao.outcome import Attempt, Outcome

DONE, FAILED, JOINED, JOINED_FAILED = 1, 2, 3, 4
"""States. JOINED: member of a `Pipeline.batch` group whose outcome stands in its first member's row."""

COLUMNS = "id, key, position, state, attempts, seconds, lane, crc, body"
WIDTH = 9
_PROTOCOL = 5


class Row(NamedTuple):
    """The columns. id grows with every run, so it is unique; position is where the input stands among the inputs."""

    id: int
    key: bytes
    position: int
    state: int
    attempts: int
    seconds: float
    lane: str
    crc: int
    body: bytes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed input as the journal holds it. error: its type and text. tries: every attempt that is known."""

    index: int
    input: Any
    error: str
    traceback: str
    attempts: int
    tries: tuple[Attempt, ...]


def pack(outcome: Outcome[Any], key: bytes, id: int) -> Row:
    """The row of an outcome. Raises NotPicklable when its value can't be stored; a failure always can."""
    if outcome.error is None:
        state, body = DONE, _success(outcome)
    else:
        state, body = FAILED, _failure(outcome, outcome.error)
    seconds = float(outcome.seconds)
    crc = checksum(key, state, outcome.attempts, seconds, outcome.lane, body)
    return Row(id, key, outcome.index, state, outcome.attempts, seconds, outcome.lane, crc, body)


def pack_joined(key: bytes, id: int, position: int, *, failed: bool) -> Row:
    """The row of a group's further member: finished, without an outcome of its own."""
    state = JOINED_FAILED if failed else JOINED
    return Row(id, key, position, state, 0, 0.0, "", checksum(key, state, 0, 0.0, "", b""), b"")


def checksum(key: bytes, state: int, attempts: int, seconds: float, lane: str, body: bytes) -> int:
    """Over everything that makes the outcome; not over the place, which moves."""
    head = f"{state} {attempts} {seconds!r} {lane}".encode("utf-8", "surrogatepass")
    return zlib.crc32(body, zlib.crc32(key, zlib.crc32(head)))


def verify(row: Row, path: str) -> None:
    """Raise JournalDamaged unless the row is whole."""
    if checksum(row.key, row.state, row.attempts, row.seconds, row.lane, row.body) != row.crc:
        raise JournalDamaged(
            f"the journal {path} is damaged: the record of input {row.position} is not what was written. "
            f"Restore the file from a copy, or start over with --fresh (fresh=True)"
        )


def unpack(row: Row, index: int, path: str, input: Any = None) -> Outcome[Any]:
    """The outcome of a row of state DONE or FAILED, as that of input `index`. input: the input itself, where it is at
    hand; None takes the stored one."""
    verify(row, path)
    try:
        parts = pickle.loads(row.body)
    except Exception as error:
        broken = NotPicklable(
            f"the stored result of input {index} can't be read back ({type(error).__name__}: {error})", what="result"
        )
        return Outcome(index, input, None, broken, row.attempts, row.seconds, row.lane)
    given, value, tries, failure = parts if len(parts) == 4 else (*parts, (), None)
    if input is None:
        input = given
    if failure is None:
        return Outcome(index, input, value, None, row.attempts, row.seconds, row.lane, attempts_of(tries))
    return Outcome(
        index, _input(failure) if input is None else input, None, _error(failure), row.attempts, row.seconds, row.lane,
        attempts_of(tries),
    )  # fmt: skip


def dead_letter(row: Row, path: str) -> DeadLetter:
    """What a row of state FAILED tells, without needing the class of the error."""
    verify(row, path)
    _, _, tries, failure = pickle.loads(row.body)
    text = failure["kind"] + (f": {failure['text']}" if failure["text"] else "")
    return DeadLetter(row.position, _input(failure), text, failure["traceback"], row.attempts, attempts_of(tries))


def attempts_of(tries: Iterable[tuple[Any, ...]]) -> tuple[Attempt, ...]:
    """Stored attempts as records."""
    return tuple(Attempt(*entry) for entry in tries)


def _plain(tries: tuple[Attempt, ...]) -> tuple[tuple[Any, ...], ...]:
    return tuple((t.number, t.stage, t.lane, t.seconds, t.error) for t in tries)


def _success(outcome: Outcome[Any]) -> bytes:
    parts: tuple[Any, ...] = (outcome.input, outcome.value)
    if outcome.tries:
        parts = (*parts, _plain(outcome.tries), None)
    with contextlib.suppress(Exception):  # the value or the input can't be pickled: which, is tried below
        return _dumps(parts)
    try:
        return _dumps((_shown(outcome.input), *parts[1:]))
    except Exception as error:
        kind = type(outcome.value).__qualname__
        raise NotPicklable(
            f"the result of input {outcome.index} ({_shown(outcome.input)}) is a {kind} that can't be pickled, so the "
            f"journal can't keep it ({type(error).__name__}: {error})",
            what="result",
        ) from error


def _failure(outcome: Outcome[Any], error: BaseException) -> bytes:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    failure: dict[str, Any] = {
        "kind": name, "text": error_text(error), "traceback": trace_text(error), "shown": _shown(outcome.input),
        "input": None, "error": None,
    }  # fmt: skip
    for field, thing in (("input", outcome.input), ("error", error)):
        try:
            failure[field] = _dumps(thing)
            if field == "error":
                pickle.loads(failure[field])  # many exceptions can be pickled and then not unpickled
        except Exception:
            failure[field] = None
    return pickle.dumps((None, None, _plain(outcome.tries), failure), _PROTOCOL)


def _input(failure: dict[str, Any]) -> Any:
    if failure["input"] is None:
        return failure["shown"]
    try:
        return pickle.loads(failure["input"])
    except Exception:  # its class is not to be had in this program
        return failure["shown"]


def _error(failure: dict[str, Any]) -> BaseException:
    error: BaseException | None = None
    if failure["error"] is not None:
        try:
            error = pickle.loads(failure["error"])
        except Exception:  # its class has changed or is gone
            error = None
    if not isinstance(error, BaseException):
        error = RemoteError(f"{failure['kind']}: {failure['text']}", failure["kind"], failure["traceback"])
    if error.__cause__ is None:
        error.__cause__ = RemoteTraceback(failure["traceback"])
    return error


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, _PROTOCOL)
    except Exception:  # a lambda, a class inside a function: cloudpickle sends them by value
        import cloudpickle

        return cloudpickle.dumps(value, _PROTOCOL)  # type: ignore[no-any-return]


def error_text(error: BaseException) -> str:
    """`str(error)`, whatever the `__str__` of its class does."""
    try:
        return str(error)
    except BaseException as failed:  # a __str__ of the user's that raises
        return f"<{type(failed).__name__} in its __str__>"


def trace_text(error: BaseException) -> str:
    """The traceback of an error as text: of where it was raised, also in another process or an earlier run."""
    if isinstance(error.__cause__, RemoteTraceback) and error.__traceback__ is None:
        return str(error.__cause__.args[0])
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # a __str__ of the user's that raises
        return ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as failed:
        text = f"<{type(value).__qualname__} whose repr raises {type(failed).__name__}>"
    return text if len(text) <= 1000 else f"{text[:997]}..."
