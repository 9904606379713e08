"""An endless generator as input runs in flat memory: peak memory of a fresh program, as the kernel counts it."""

import subprocess
import sys

import pytest

PROGRAM = """
import itertools, resource, sys
import duodao

def square(x):
    return x * x

async def asquare(x):
    return x * x

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

lane = sys.argv[1]
before = None
for seen, _ in enumerate(duodao.map(asquare if lane == "coroutine" else square, itertools.count(), lane=lane)):
    if seen == 100_000:
        before = peak()
    if seen == 5_000_000:
        break
print(peak() - before)
"""


@pytest.mark.parametrize("lane", ["inline", "thread", "process", "coroutine", "auto"])
def test_five_million_items_leave_no_more_behind_than_the_first_hundred_thousand(lane):
    """Peak memory grows by less than 5 MB after the first 100,000 of 5,000,000 items."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, lane], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 5_000_000
