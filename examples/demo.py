"""`make demo`: a CPU-bound and an I/O-bound job over this machine's own standard library, each on the lane it needs.

Leaves its results and journals in demo-out/. Takes less than a minute.
"""

import collections
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig

from fetch import serving
from rich.console import Console
from rich.table import Table

EXAMPLES = os.path.relpath(os.path.dirname(os.path.abspath(__file__)))
OUT = "demo-out"
LATENCY = 0.1
"""Seconds that a page takes, as from a server far away."""

console = Console()


def main():
    """Both jobs, one after the other."""
    os.makedirs(OUT, exist_ok=True)
    folder = sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib")
    console.rule("1. Work that computes: parse every source file of the standard library")
    run(
        f"{EXAMPLES}/index.py:index",
        "--paths",
        "--match",
        "*.py",
        *sources(folder),
        name="index",
        shown=f"{folder}/...",
    )
    modules = read("index")
    show_modules(modules)
    console.print("What failed are test files that are broken on purpose, if any; none of them stopped the others.\n")

    console.rule("2. Work that waits: fetch the same files as pages from a web server")
    with serving(folder, LATENCY) as base:
        with open(f"{OUT}/urls.txt", "w", encoding="utf-8") as file:
            file.writelines(f"{base}/{os.path.relpath(module['path'], folder)}\n" for module in modules)
        run(f"{EXAMPLES}/fetch.py:fetch", f"{OUT}/urls.txt", name="pages", shown=f"{OUT}/urls.txt")
    show_pages(read("pages"))
    console.print(f"Results and journals are in {OUT}/. Look at: duodao journal {OUT}/index.journal --failed")


def sources(folder):
    """The standard library without what was installed into it, which can be many times its size."""
    installed = {"site-packages", "dist-packages"} & set(os.listdir(folder))
    names = sorted(set(os.listdir(folder)) - installed) if installed else []
    return [os.path.join(folder, name) for name in names if name != "__pycache__"] or [folder]


def run(function, *inputs, name, shown):
    """One `duodao map`, on this terminal, started over each time. shown: what stands for the inputs on the screen."""
    outputs = ["-o", f"{OUT}/{name}.jsonl", "--journal", f"{OUT}/{name}.journal", "--fresh"]
    options = inputs[: inputs.index("*.py") + 1] if "*.py" in inputs else ()
    words = ["duodao", "map", function, *options, shown, *outputs]
    console.print(f"$ {shlex.join(words)}", style="bold", highlight=False, soft_wrap=True)
    process = subprocess.Popen([sys.executable, "-m", "duodao", "map", function, *inputs, *outputs])
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command; we wait for what it does
    code = process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if code not in (0, 1):  # 1: some inputs failed, which the standard library's broken test files must
        sys.exit(code)


def read(name):
    """What a job wrote, one value per line."""
    with open(f"{OUT}/{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def show_modules(modules):
    """A small table of what the index found."""
    imports = collections.Counter(name.partition(".")[0] for module in modules for name in module["imports"])
    table = Table("modules", "classes", "functions", "lines", "most imported", "longest")
    table.add_row(
        f"{len(modules):,}",
        f"{sum(len(module['classes']) for module in modules):,}",
        f"{sum(len(module['functions']) for module in modules):,}",
        f"{sum(module['lines'] for module in modules):,}",
        ", ".join(f"{name} ({count})" for name, count in imports.most_common(3)),
        ", ".join(module["module"] for module in sorted(modules, key=lambda module: -module["lines"])[:3]),
    )
    console.print(table)


def show_pages(pages):
    """A small table of what was fetched."""
    table = Table("pages", "bytes", "seconds of waiting in all")
    table.add_row(f"{len(pages):,}", f"{sum(page['bytes'] for page in pages):,}", f"{len(pages) * LATENCY:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
