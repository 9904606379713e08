"""Waits that end by being told so: of a Condition or a Barrier between processes.

Each waiter has its line of the table, and sleeps on a word in it. Whoever tells reads the table, so it tells those that
live, the first first, and as many as it means to. What a killed one was told lies in its line until somebody asks.

All of this happens under the mutex of the condition's or the barrier's cell, but for the waiter's look at its own line.
"""

from __future__ import annotations

from dataclasses import dataclass

from duodao.sync import table
from duodao.sync.lines import KIND, NUMBER, ROUND, SIGNAL, SINCE, TARGET, TURN, WHO, tag
from duodao.sync.robust import ALL


@dataclass(frozen=True, slots=True)
class Turn:
    """One that waits and was not told anything yet."""

    since: int
    index: int
    number: int


def waiting(target: int, round: int) -> list[Turn]:
    """Those that wait for a turn at `target` in this round, the first first."""
    shared, found = table.get(), []
    for index, tid in shared.taken():
        words = shared.line(index).words
        number = words[NUMBER]
        if words[TARGET] != target or words[ROUND] != round or words[KIND] & 0xFF != TURN:
            continue
        if number and words[WHO] & 0xFFFFFFFF == tid and words[SIGNAL] >> 2 != tag(number):
            found.append(Turn(words[SINCE], index, number))
    return sorted(found, key=lambda turn: (turn.since, turn.index))


def tell(turn: Turn, what: int) -> None:
    """End a wait; what: 1 to 3. The wait's number stands beside it, since the line may be another's by now."""
    line = table.get().line(turn.index)
    line.signal.value = tag(turn.number) << 2 | what
    line.signal.wake(ALL)


def killed(target: int) -> list[tuple[int, int]]:
    """Those that were killed as they waited for a turn: (round, what they were told or 0). Each is reported once."""
    shared, found = table.get(), []
    for index in shared.untaken():
        words = shared.line(index).words
        number, round, said = words[NUMBER], words[ROUND], words[SIGNAL]
        if not number or words[TARGET] != target or words[KIND] & 0xFF != TURN:
            continue
        line = shared.take(index, last=True)
        if line is not None:
            line.free(None, None, None)
            found.append((round, said & 3 if said >> 2 == tag(number) else 0))
    return found
