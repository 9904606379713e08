"""Ctrl-C in programs that moved: it reaches their processes, and nothing waits for calls that nobody wants any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

from tests.e2e.moved_program import moved


def interrupt(tmp_path, source, lines):
    """Run a program, press Ctrl-C once it has printed so many lines: its exit code and all that it said.

    They sleep in small pieces: a signal that comes just before a long sleep is seen by Python after it.
    """
    file = tmp_path / "program.py"
    file.write_text(moved(textwrap.dedent(source)))
    with subprocess.Popen(
        [sys.executable, "-u", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
    ) as program:
        before = [program.stdout.readline().rstrip() for _ in range(lines)]
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all of the group
        out, _ = program.communicate(timeout=30)
    return program.returncode, [*before, *out.splitlines()]


def test_processes_have_it_too(tmp_path):
    """A child gets KeyboardInterrupt, also where the main process handles its own in another wait than join."""
    code, out = interrupt(
        tmp_path,
        """
        import time
        from multiprocessing import Process

        def work(n):
            try:
                print("child begins")
                for _ in range(600):
                    time.sleep(0.1)
            except KeyboardInterrupt:
                print("child is interrupted")

        if __name__ == "__main__":
            children = [Process(target=work, args=(n,)) for n in range(2)]
            for each in children:
                each.start()
            try:
                for _ in range(600):
                    time.sleep(0.1)
            except KeyboardInterrupt:
                for each in children:
                    each.join()
                print("main ends", [each.exitcode for each in children])
        """,
        2,
    )
    assert code == 0
    assert sorted(out) == [*["child begins"] * 2, *["child is interrupted"] * 2, "main ends [0, 0]"]


def test_the_program_ends(tmp_path):
    """Not handled, it ends the children and the program, as the standard library's ends."""
    code, out = interrupt(
        tmp_path,
        """
        import time
        from multiprocessing import Process

        def work():
            print("begins")
            for _ in range(600):
                time.sleep(0.1)

        if __name__ == "__main__":
            p = Process(target=work)
            p.start()
            p.join()
        """,
        1,
    )
    assert code == -signal.SIGINT
    assert out.count("KeyboardInterrupt") == 2  # main's and the child's
    assert "Process Process-1:" in out


def test_calls_of_a_pool_are_dropped(tmp_path):
    """After Ctrl-C the program's end doesn't wait for what a pool has still to do."""
    code, out = interrupt(
        tmp_path,
        """
        import time
        from multiprocessing import Pool

        def work(n):
            print("begins")
            for _ in range(600):
                time.sleep(0.1)

        if __name__ == "__main__":
            pool = Pool(2)
            pool.map(work, range(8), chunksize=1)
        """,
        2,
    )
    assert code == -signal.SIGINT
    assert out.count("begins") == 2
