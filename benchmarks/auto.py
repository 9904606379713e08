"""lane="auto" against every fixed lane and a plain loop: the choice costs little and is not far off."""

from __future__ import annotations

from typing import Any

from benchmarks.scenario import Bench, Scenario, scenario
from benchmarks.work import burn, digest, noop, pause

NAMES = ("auto_tiny", "auto_cpu", "auto_wait", "auto_free")


def declare(name: str, title: str, function: Any, item: Any, n: int, lanes: tuple[str, ...]) -> Scenario:
    """Rows: auto, the fixed lanes, and the plain loop. Nothing is warm: a first call is what `auto` decides in."""
    s = scenario(name, title, "items/s", n, check=lambda result, n: len(result) == n,
                 about="Fresh programs: starting workers is in the figures.")  # fmt: skip

    def fixed(lane: str) -> Any:
        def row(bench: Bench) -> None:
            import duodao

            made = duodao.map(function, [item] * bench.n, lane=lane)  # type: ignore[call-overload]
            bench.time(lambda: list(made))
            bench.extra = made.report.stages[0].lane

        return row

    s.row("duodao.map", ours=True, note="lane='auto'")(fixed("auto"))
    for lane in lanes:
        s.row(f"duodao.map, lane={lane!r}")(fixed(lane))

    @s.row("plain loop")
    def loop(bench: Bench) -> None:
        bench.time(lambda: [function(item) for _ in range(bench.n)])

    return s


LANES = ("inline", "thread", "process")
TINY = declare("auto_tiny", "auto: items under 2 µs", noop, 1, 2_000_000, LANES)
CPU = declare("auto_cpu", "auto: 2 ms of CPU each", burn, 0.002, 1_500, LANES)
PAUSE = declare("auto_wait", "auto: 5 ms of waiting each", pause, 0.005, 1_500, ("thread", "process"))
FREE = declare("auto_free", "auto: 1.5 ms of CPU without the GIL (sha256 of 1.5 MB)", digest, 1_500_000, 1_500, LANES)
TINY.goal("0.9 of a plain loop", "duodao.map", 0.9, "plain loop")
for each in (CPU, PAUSE, FREE):
    each.goal(
        "at worst 1.3 times slower than the best fixed lane", "duodao.map", 1 / 1.3, "duodao.map, lane=", "plain loop"
    )
TINY.goal("at worst 1.3 times slower than the best fixed lane", "duodao.map", 1 / 1.3, "duodao.map, lane=")
