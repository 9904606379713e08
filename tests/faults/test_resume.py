"""A durable run that is killed with SIGKILL, all of it, at any instant, and started again with the same command."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from duodao import errors as duodao_errors
from duodao.channel.journal import Journal

COUNT = 600
PROGRAM = """
import os, sys, time
import duodao

folder, lane, count = sys.argv[1:]

def call(x):
    log = os.open(folder + "/calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b"%d\\n" % x)
    os.close(log)
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    if x % 50 == 7:
        raise ValueError(x)
    return {"x": x, "square": x * x}

print("ready", flush=True)
duodao.run(call, range(int(count)), lane=lane, errors="collect", into=folder + "/out.jsonl",
           journal=folder + "/journal", window=64)
"""


def start(folder, lane):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(folder), lane, str(COUNT)], stdout=subprocess.PIPE, start_new_session=True
    )


def calls(folder):
    path = folder / "calls"
    return [int(line) for line in path.read_bytes().split()] if path.exists() else []


def finished(folder):
    try:
        with Journal.inspect(folder / "journal") as seen:
            return {outcome.input for outcome in seen.outcomes()}
    except (FileNotFoundError, duodao_errors.JournalError, duodao_errors.UsageError):
        return set()


def kill_tree(process):
    """SIGKILL the program; its guard ends the rest at once."""
    process.stdout.close()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(folder, lane, rounds, seed):
    rng = random.Random(seed)
    plain = folder / "plain"
    plain.mkdir()
    process = start(plain, lane)
    began = time.monotonic()
    process.communicate(timeout=120)
    length = time.monotonic() - began
    torn = folder / "torn"
    torn.mkdir()
    kills, extra = 0, 0
    while kills < rounds:
        done, before = finished(torn), len(calls(torn))
        process = start(torn, lane)
        process.stdout.readline()
        try:
            process.wait(timeout=rng.uniform(0, min(0.25, length)))
        except subprocess.TimeoutExpired:
            kill_tree(process)
        else:
            process.stdout.close()
        kills += 1
        rerun = calls(torn)[before:]
        assert not done & set(rerun), "an input that was committed ran again"
        extra += 64
        if len(done) == COUNT:  # finished under us: start over, to go on killing
            assert (torn / "out.jsonl").read_bytes() == (plain / "out.jsonl").read_bytes()
            for name in os.listdir(torn):
                os.unlink(torn / name)
            extra = 0
    process = start(torn, lane)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (torn / "out.jsonl").read_bytes() == (plain / "out.jsonl").read_bytes()
    failed = [line.split(b'"attempts"')[0] for line in (torn / "out.failed.jsonl").read_bytes().splitlines()]
    assert len(failed) == COUNT // 50
    assert finished(torn) == set(range(COUNT))
    assert len(calls(torn)) - COUNT <= extra + 64, "more than the window ran twice"


@pytest.mark.parametrize("lane", ["process", "thread"])
def test_killed_at_random_instants(tmp_path, lane):
    """Every input ends in one recorded state, nothing committed runs again, and the output is that of a quiet run."""
    check(tmp_path, lane, 8, seed=1)


@pytest.mark.soak
def test_killed_at_200_random_instants(tmp_path):
    """The long form: 200 kills."""
    check(tmp_path, "process", 200, seed=2)
