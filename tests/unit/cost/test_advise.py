"""Advice from figures: no clock, no thread, no machine."""

from __future__ import annotations

import pytest

from duodao.cost.advise import Figures, Terms, advise, duration, enough, figures
from duodao.cost.sample import Cost

TWO = Terms(cpus=2)


def seen(wall: float, cpu: float, hold: float = 1.0, waited: float = 0.0, calls: int = 5) -> Figures:
    return Figures(calls, wall, cpu, hold * cpu, waited)


@pytest.mark.parametrize(
    ("what", "figures", "lane"),
    [
        ("x * x", seen(40e-9, 40e-9), "inline"),
        ("json.loads of a small text", seen(1.7e-6, 1.7e-6), "inline"),
        ("1 ms of pure Python", seen(1e-3, 1e-3, 0.95), "process"),
        ("zlib of 1 MB", seen(16e-3, 16e-3, 0.01), "thread"),
        ("sleep 1 ms", seen(1.07e-3, 13e-6), "thread"),
        ("sleep 10 ms", seen(10.07e-3, 9e-6), "thread"),
        ("sum of 8 MB of numpy", seen(160e-6, 160e-6, 0.02), "thread"),
        ("a page from a local socket", seen(150e-6, 57e-6, 0.03), "thread"),
        ("sorting in C, which keeps the GIL", seen(80e-3, 77e-3, 1.0), "process"),
    ],
)
def test_each_kind_of_call_gets_its_lane(what: str, figures: Figures, lane: str) -> None:
    """The eight functions of the benchmark, and C code that holds the GIL, are told apart by their figures."""
    assert advise(figures, TWO).lane == lane, what


def test_why_says_what_was_measured() -> None:
    """The sentence holds the figures that decided."""
    assert advise(seen(55e-3, 55e-3, 0.83), TWO).why == "55 ms of CPU per call, the GIL is held 83% of it"
    assert advise(seen(10e-3, 1e-4), TWO).why == "it waits 99% of its 10 ms"


def test_without_a_gil_computing_goes_to_threads() -> None:
    """M20: on a free-threaded build no process is needed."""
    advice = advise(seen(1e-3, 1e-3), Terms(cpus=4, gil=False))
    assert (advice.lane, advice.workers) == ("thread", 4)


def test_waiting_for_a_core_is_not_waiting() -> None:
    """A computing call on a busy machine takes five times its CPU and is still a computing call."""
    assert advise(seen(5e-3, 1e-3, waited=4e-3), TWO).lane == "process"


def test_one_core_leaves_nothing_to_gain() -> None:
    """With one core a computing call stays where it is: shipping it can only cost."""
    advice = advise(seen(1e-3, 1e-3), Terms(cpus=1))
    assert (advice.lane, advice.workers) == ("inline", 1)
    assert "one core" in advice.why


def test_shipping_that_costs_more_than_the_call_keeps_it_here() -> None:
    """10 us of CPU with 40 us of pickling is slower in two processes than in the caller's own thread."""
    cheap, dear = Terms(cpus=2, ship=1e-6), Terms(cpus=2, ship=40e-6)
    assert advise(seen(10e-6, 10e-6), cheap).lane == "process"
    advice = advise(seen(10e-6, 10e-6), dear)
    assert advice.lane == "inline"
    assert "sending" in advice.why


def test_few_items_are_not_worth_a_process() -> None:
    """Ten calls of 1 ms end before a process answers; a hundred seconds of them don't; a running one may be long."""
    assert advise(seen(1e-3, 1e-3), Terms(cpus=2, remaining=10)).lane == "inline"
    assert advise(seen(1e-3, 1e-3), Terms(cpus=2, remaining=100_000)).lane == "process"
    running = Figures(1, 50e-3, 50e-3, 50e-3, unfinished=True)
    assert advise(running, Terms(cpus=2, remaining=3)).lane == "process"


def test_long_calls_that_no_lane_speeds_up_leave_the_caller_free() -> None:
    """Work that can't travel runs inline while its calls are short, and on a thread of its own when they are long."""
    stays = Terms(cpus=2, stays="f can't travel")
    assert advise(seen(1e-3, 1e-3), stays).lane == "inline"
    long = advise(seen(1.0, 1.0), stays)
    assert (long.lane, long.workers) == ("thread", 1)
    assert "f can't travel" in long.why


def test_promises_rule_lanes_out() -> None:
    """A time-out can't be kept inline, nor a seed on threads: what is left is chosen from."""
    assert advise(seen(1e-6, 1e-6), Terms(cpus=2, lanes=frozenset({"thread", "process"}))).lane != "inline"
    assert advise(seen(1e-2, 1e-5), Terms(cpus=2, lanes=frozenset({"inline", "process"}))).lane == "process"


def test_workers_given_by_the_user_are_the_width() -> None:
    """workers= is the width of the chosen lane, whichever that is."""
    terms = Terms(cpus=2, workers=7)
    assert [advise(f, terms).workers for f in (seen(1e-2, 1e-2), seen(1e-2, 1e-2, 0.0), seen(1e-2, 1e-5))] == [7, 7, 7]


def test_mixed_calls_run_on_threads_in_several_processes() -> None:
    """Between a quarter and four fifths of CPU under the GIL: as many processes as cores, eight threads in each; the
    figures are in the reason."""
    advice = advise(seen(80e-3, 40e-3), TWO)
    assert (advice.lane, advice.workers) == ("thread", (2, 8))
    assert "the GIL is held 100% of it" in advice.why
    assert "it waits 50% of its 80 ms" in advice.why
    assert [advise(seen(80e-3, cpu), TWO).workers for cpu in (10e-3, 70e-3)] == [16, 2]
    assert advise(seen(80e-3, 40e-3, 0.0), TWO).workers == 2  # without the GIL threads will do


def test_mixed_calls_keep_what_was_asked_for() -> None:
    """workers= is divided among the processes; one each, or no threads: processes as before; no processes: threads."""
    figures = seen(80e-3, 40e-3)
    divided = [advise(figures, Terms(cpus=2, workers=workers)) for workers in (8, 5, 3)]
    assert [(advice.lane, advice.workers) for advice in divided] == [
        ("thread", (2, 4)),
        ("thread", (2, 2)),
        ("process", 3),
    ]
    assert advise(figures, Terms(cpus=2, lanes=frozenset({"inline", "process"}))).workers == 4
    assert advise(figures, Terms(cpus=2, stays="it can't travel")).workers == 2
    assert advise(figures, Terms(cpus=1)).lane == "thread"


def test_the_first_call_does_not_speak_for_all() -> None:
    """A first call that imports or connects is left out of the means."""
    first, rest = Cost(0.2, 0.2, 0.2, 0, 0, 0), Cost(0.01, 1e-5, 0, 0, 1, 0)
    assert figures([first, rest, rest, rest]).share < 0.01
    assert figures([first, first, first]).wall == pytest.approx(0.2)


def test_sampling_ends_after_five_calls_or_50_ms() -> None:
    """Shorter calls are sampled until the probe has seen 2 ms; two long ones that agree are enough."""
    cpu = lambda wall: Cost(wall, wall, wall, 0, 0, 0)
    wait = lambda wall: Cost(wall, wall / 100, 0, 0, 1, 0)
    assert not enough([], 1.0)
    assert not enough([cpu(1e-3)] * 4, 4e-3)
    assert enough([cpu(1e-3)] * 5, 5e-3)
    assert not enough([cpu(1e-5)] * 5, 5e-5)
    assert enough([cpu(1e-5)] * 250, 2.5e-3)
    assert enough([cpu(1e-7)] * 5, 5e-7)
    assert enough([cpu(0.06)], 0.06)
    assert enough([wait(0.01)] * 2, 0.02)
    assert not enough([wait(0.01)], 0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ns"), (4e-8, "40 ns"), (1.7e-6, "1.7 us"), (0.055, "55 ms"), (0.9999, "1.0 s"), (75, "75 s")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Three digits and a unit."""
    assert duration(seconds) == text


def test_a_small_gain_on_a_small_call_is_no_gain() -> None:
    """json.loads of a small text: measured cold at 2.2 us, pickled in 1.6 us: two processes were slower, really run."""
    assert advise(seen(2.2e-6, 2.2e-6), Terms(cpus=2, ship=1.6e-6)).lane == "inline"
