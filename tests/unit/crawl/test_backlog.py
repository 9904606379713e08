"""The waiting URLs of a crawl: in order, few of them in memory."""

import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao.errors import Broken
from duodao_crawl.backlog import Backlog


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=200), st.integers(0, 5))
def test_first_in_first_out(steps, limit):
    """Any mix of puts and pops on two lines, whatever fits into memory, gives each line's entries in their order."""
    backlog = Backlog(limit)
    lines, model, number = {"a": backlog.line(), "b": backlog.line()}, {"a": [], "b": []}, 0
    for name, put in steps:
        line, kept = lines[name], model[name]
        if put:
            entry = f"http://{name}/{number}"
            number += 1
            line.put(entry)
            kept.append(entry)
        else:
            assert line.peek() == (kept[0] if kept else None)
            if kept:
                assert line.pop() == kept.pop(0)
        assert len(line) == len(kept)
    backlog.close()


def test_memory_is_bounded():
    """Of 20,000 URLs 100 are in memory; they all come back, in order."""
    backlog = Backlog(100)
    line = backlog.line()
    for number in range(20_000):
        line.put(f"http://a/{number}")
        assert len(line._memory) <= 100
    assert [line.pop() for _ in range(len(line))] == [f"http://a/{number}" for number in range(20_000)]
    assert line.peek() is None
    backlog.close()
    backlog.close()


def test_a_disk_that_is_full():
    """It says what can't be written and where room is needed; here the limit of a file's size is the full disk."""
    backlog = Backlog(0)
    line = backlog.line()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(Broken, match="SQLITE_TMPDIR"):
            for number in range(100_000):
                line.put(f"http://a/{number:0200}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
        backlog.close()
