"""python -m benchmarks [--only NAME[,NAME]] [--rounds N] [--rows NAME[,NAME]] [--write] [--list]: see the Makefile."""

from __future__ import annotations

import argparse
import fnmatch
import sys

from benchmarks.rounds import measure
from benchmarks.scenario import load
from benchmarks.table import as_record, save, section

ENOUGH = 5
"""Rounds from which figures are written to docs/; fewer are only shown."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="*", help="scenarios, comma-separated, with * and ?")
    parser.add_argument(
        "--rounds", type=int, default=ENOUGH, help=f"runs of each row; from {ENOUGH} on docs/ is written"
    )
    parser.add_argument("--list", action="store_true", help="show the scenarios and their rows")
    parser.add_argument("--rows", default="*", help="rows, comma-separated, with * and ?; such a run is only shown")
    parser.add_argument("--write", action="store_true", help="write docs/ even after fewer rounds")
    options = parser.parse_args()
    scenarios = load()
    if options.list:
        for scenario in scenarios.values():
            print(f"{scenario.name}: {scenario.title}", *(f"    {row.label}" for row in scenario.rows), sep="\n")
        return 0
    patterns = options.only.split(",")
    chosen = [s for s in scenarios.values() if any(fnmatch.fnmatchcase(s.name, p) for p in patterns)]
    if not chosen or options.rounds < 1:
        print(f"no such scenario: {options.only} (valid: {', '.join(scenarios)})", file=sys.stderr)
        return 2
    records = []
    for scenario in chosen:
        kept = options.rows.split(",")
        figures = measure(
            scenario, options.rounds, say, lambda row: any(fnmatch.fnmatchcase(row.label, p) for p in kept)
        )
        records.append(as_record(scenario, figures, options.rounds))
        print("\n".join(section(records[-1])), flush=True)
    if (options.write or options.rounds >= ENOUGH) and options.rows == "*":
        say(f"written: {save(records, complete=len(chosen) == len(scenarios))}")
    return 0


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
