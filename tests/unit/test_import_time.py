"""What `import duodao` costs is held as what it loads, not as a time: times belong to the benchmarks."""

from __future__ import annotations

import subprocess
import sys


def loaded(statement: str) -> set[str]:
    """Top-level names in sys.modules after `statement` in a fresh interpreter."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_third_party_module() -> None:
    """`import duodao` loads our own modules and the standard library's, nothing else."""
    ours = {*sys.stdlib_module_names, "duodao"}
    foreign = {name for name in loaded("import duodao") if name.split(".")[0] not in ours}
    assert foreign == set()


def test_no_heavy_standard_module() -> None:
    """`import duodao` leaves the slow parts of the standard library for the call that needs them."""
    heavy = {"asyncio", "sqlite3", "multiprocessing", "concurrent.futures", "urllib.request", "http.client", "ctypes"}
    assert loaded("import duodao") & heavy == set()


def test_public_names_load() -> None:
    """Every name in `duodao.__all__` is there in a fresh interpreter, and dir() lists it."""
    program = (
        "import duodao\n"
        "for name in duodao.__all__:\n"
        "    getattr(duodao, name)\n"
        "assert set(duodao.__all__) <= set(dir(duodao))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], check=True)
