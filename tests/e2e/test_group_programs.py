"""Whole programs that own tasks, run as a user runs them, every warning an error."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(tmp_path, source, timeout=60):
    """Run a program in a file of its own: its exit code, stdout and stderr."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)], capture_output=True, text=True, timeout=timeout, cwd=tmp_path
    )
    return done.returncode, done.stdout, done.stderr


def test_no_main_guard_is_needed(tmp_path):
    """Functions, lambdas, closures and objects of a script without `if __name__ == "__main__"` run as processes."""
    code, out, err = run(
        tmp_path,
        """
        import os
        import duodao

        class Cook:
            def __init__(self, dish):
                self.dish = dish

            def run(self):
                print("cooks", self.dish)
                return os.getpid()

        def scaled(n):
            return lambda x: n * x

        with duodao.Group() as group:
            cook = group.start(Cook("soup"), name="cook")
            tasks = [group.start(scaled(n), 2) for n in range(3)]
        assert cook.result() == cook.pid != os.getpid()
        print([task.result() for task in tasks], cook.exitcode)
        """,
    )
    assert (code, out, err) == (0, "cooks soup\n[0, 2, 4] 0\n", "")


def test_failures_are_shown_with_both_tracebacks(tmp_path):
    """A program that lets a group's failures through shows each, its task, and where in its process it was raised."""
    code, _, err = run(
        tmp_path,
        """
        import duodao

        def pour(cup):
            raise ValueError(f"the {cup} is full")

        with duodao.Group("kitchen") as group:
            group.start(pour, "cup", name="Ada")
        """,
    )
    assert code == 1
    for text in ("ExceptionGroup: group 'kitchen': 1 failed", "the cup is full", "task 'Ada' (process", "in pour"):
        assert text in err


@pytest.mark.parametrize("lane", ["process", "thread", "coroutine"])
def test_a_program_that_stands_still_says_so(tmp_path, lane):
    """Every task waits for an Event that nobody is left to set: the program ends with Stalled, not never."""
    code, _, err = run(
        tmp_path,
        f"""
        import duodao
        from duodao.sync import Event

        def lost():
            Event(name="never").wait()

        async def astray():
            await Event(name="never")

        with duodao.Group() as group:
            group.start(astray if {lane!r} == "coroutine" else lost, lane={lane!r})
        """,
    )
    assert code == 1
    assert "duodao.errors.Stalled" in err
    assert "Event 'never'" in err
    assert "program.py" in err


def test_an_async_program(tmp_path):
    """`async with`: tasks on all three lanes beside each other, awaited by the program's own loop."""
    code, out, err = run(
        tmp_path,
        """
        import asyncio
        import os
        import threading
        import duodao

        async def ping(n):
            await asyncio.sleep(0)
            return n

        async def main():
            async with duodao.Group() as group:
                here = group.start(ping, 1)
                beside = group.start(threading.get_ident, lane="thread")
                away = group.start(os.getpid, lane="process")
                print(await here, await away == away.pid, await beside != threading.get_ident())

        asyncio.run(main())
        """,
    )
    assert (code, out, err) == (0, "1 True True\n", "")


def test_exit_inside_of_the_block(tmp_path):
    """sys.exit() in the body ends the tasks, and the program with its code."""
    code, out, err = run(
        tmp_path,
        """
        import sys, time
        import duodao

        with duodao.Group() as group:
            group.start(time.sleep, 600)
            group.start(time.sleep, 600, daemon=True)
            sys.exit(7)
        """,
    )
    assert (code, out, err) == (7, "", "")
