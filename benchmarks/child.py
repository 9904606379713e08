"""One run of one row, in a process of its own: python -m benchmarks.child SCENARIO ROW -> a line of JSON."""

from __future__ import annotations

import json
import sys
import traceback
import warnings

from benchmarks.scenario import Bench, load


def main() -> int:
    name, number = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore")  # of peers, on newer Pythons
    scenario = load()[name]
    row = scenario.rows[number]
    bench = Bench(scenario, row.n)
    try:
        row.run(bench)
        record = bench.record()
    except Exception as error:
        traceback.print_exc()
        record = {"value": None, "error": f"{type(error).__name__}: {str(error)[:200]}"}
    print("\n" + json.dumps(record), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
