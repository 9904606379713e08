"""From checked options to an exit code: what `map` and `run` share, and `resume` and `--retry-failed` come back to."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

import click

import duodao
from duodao import Journal, JsonLines
from duodao.cli import inputs, options
from duodao.cli.explain import FAILED, OK, STOPPED, in_options
from duodao.cli.interrupt import INTERRUPTED, Interrupts, write
from duodao.errors import DuodaoError, TooManyFailures, UsageError
from duodao.watch import progress, wording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duodao import Outcome, Report
    from duodao.watch.progress import Display

EPILOG = (
    "Exit codes: 0 all good, 1 some inputs failed, 2 bad usage, 3 stopped by --max-failures, 130 interrupted. "
    "Ctrl-C once finishes what is in flight, twice stops at once."
)
SHOWN = 3
"""Failures that are told on stderr when a file holds them all; when none does, all that the Report keeps are told."""


def launch(load: Callable[[], tuple[Any, dict[str, Any]]], given: dict[str, Any]) -> int:
    """Check everything, run, say what became of it; the exit code. Raises UsageError before anything starts.

    load: gives the function or Pipeline and its stage options. It runs the user's file, which may print.
    """
    stream = _stdout() if given["output"] == "-" else None
    work, stage = load()
    out, failed, path = given["output"], given["failed_path"], given["journal"]
    if failed is None and not _is_stream(out):
        failed = f"{out.removesuffix('.jsonl')}.failed.jsonl"
    if path == "-":
        raise UsageError("--journal -: a journal is a file, it can't go to stdout")
    ours = [name for name in (out, failed, path) if name is not None and name != "-"]
    _check_outputs(ours, path)
    items = inputs.open_inputs(
        given["inputs"], paths=given["paths"], match=given["match"], nul=given["nul"], ours=_ours(ours, path)
    )
    journal = _journal(given)
    shown = _display(given, stream)
    stream = stream or _stream(out)
    run = duodao.map(work, items, errors="collect", journal=journal, progress=shown, **stage, **_run_arguments(given))
    sink = JsonLines(stream or out, records=given["records"], failed_path=failed, journal=journal)
    try:
        code = _drive(run, sink, shown, raising=given["errors"] == "raise")
    except BrokenPipeError:
        if stream is not None:  # what it still holds has nobody to read it, and must not complain when it is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
    _tell(run.report, sink, failed, path, quiet=shown is None)
    return code


def _run_arguments(given: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"ordered": not given["unordered"]}
    for name in ("max_failures", "window"):
        if given[name] is not None:
            out[name] = given[name]
    return out


def _journal(given: dict[str, Any]) -> Journal | None:
    key = options.key(given["key"])
    if given["journal"] is None:
        for name in ("key", "fresh", "accept_code"):
            if given[name]:
                raise UsageError(f"--{name.replace('_', '-')} says how to use a journal: it needs --journal PATH")
        return None
    journal = Journal(
        given["journal"], key=key, fresh=given["fresh"], accept_code=given["accept_code"],
        retry_failed=given.get("retry_failed", False),
    )  # fmt: skip
    stdin = given["nul"] or "-" in given["inputs"]
    journal.note("command", {"argv": click.get_current_context().obj, "cwd": os.getcwd(), "stdin": stdin})
    return journal


def _display(given: dict[str, Any], results: IO[bytes] | None) -> Display | None:
    wanted = given["progress"]
    if wanted is None:
        # Results that scroll over the terminal and a display that redraws itself there would tear each other.
        wanted = not (results is not None and results.isatty() and os.isatty(2))
    return progress.display() if wanted else None


def _is_stream(out: str) -> bool:
    """Stdout, a FIFO or a device: there is no place beside it for failures, and nothing in it to go on from."""
    return out == "-" or (os.path.exists(out) and not os.path.isfile(out))


def _stdout() -> IO[bytes]:
    """The real stdout, for results; what the user's file and functions print goes to stderr: OUT stays clean."""
    if sys.stdout is None:
        raise UsageError("the output stdout can't be written: it is closed")
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return results


def _stream(out: str) -> IO[bytes] | None:
    """OUT opened, if it is a FIFO or a device."""
    if not _is_stream(out):
        return None
    try:
        return open(out, "wb")
    except OSError as error:
        raise UsageError(f"the output {out} can't be written: {error.strerror}") from None


# -- files ------------------------------------------------------------------------------------------------------------


def _ours(ours: Sequence[str], journal: str | None) -> list[str]:
    """With the files that stand beside a journal."""
    return [*ours, *(f"{journal}{end}" for end in ("-wal", "-shm", "-journal", "-lock") if journal is not None)]


def _check_outputs(ours: Sequence[str], journal: str | None) -> None:
    seen: dict[str, str] = {}
    for at, name in enumerate(ours):
        what = "the journal" if journal is not None and at == len(ours) - 1 else "the output"
        if not name:
            raise UsageError(f"{what} has an empty name")
        folder = os.path.dirname(name) or "."
        if os.path.isdir(name):
            raise UsageError(f"{what} {name} is a directory")
        if not os.path.isdir(folder):
            raise UsageError(f"{what} {name} can't be written: there is no directory {folder}")
        if not os.access(name if os.path.exists(name) else folder, os.W_OK):
            raise UsageError(f"{what} {name} can't be written: permission denied")
        real = os.path.realpath(name)
        if real in seen:
            raise UsageError(f"{name} is given as {seen[real]} and as {what}")
        seen[real] = what


# -- the run ----------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """An input failed and --errors raise was given."""


def _drive(run: Any, sink: JsonLines, shown: Display | None, *, raising: bool) -> int:
    """Run to the end or to what ends it; the exit code."""
    interrupts = _interrupts(run, shown)
    try:
        with interrupts:  # outermost: Ctrl-C must work while all the rest ends
            _write_all(run, sink, shown, raising=raising)
    except KeyboardInterrupt:
        write("duodao: stopped at once: what was in flight is not in the results\n")
        return INTERRUPTED
    except TooManyFailures:
        return STOPPED
    except _Stopped as stop:
        run.report.stopped = f"--errors raise: {stop}"
        return FAILED
    except OSError as error:  # an input that can't be read any more, a disk that is full
        if isinstance(error, DuodaoError | BrokenPipeError):
            raise
        run.report.stopped = f"{error.filename or 'the output'}: {error.strerror}"
        return FAILED
    if interrupts.count:
        return INTERRUPTED
    return OK if run.report.ok and not sink.unfit else FAILED


def _write_all(run: Any, sink: JsonLines, shown: Display | None, *, raising: bool) -> None:
    complete = False
    with ExitStack() as stack:
        stack.callback(lambda: sink.close(complete))
        if shown is not None:
            stack.callback(shown.close)
        stack.enter_context(run)
        sink.open()
        for outcomes in run.lists():
            _take(outcomes, sink, raising=raising)
        complete = not run.report.stopped


def _take(outcomes: list[Outcome[Any]], sink: JsonLines, *, raising: bool) -> None:
    if raising:
        for at, outcome in enumerate(outcomes):
            if outcome.error is not None:
                sink.write(outcomes[: at + 1])
                raise _Stopped(f"input {wording.count(outcome.index)} failed")
    sink.write(outcomes)


def _interrupts(run: Any, shown: Display | None) -> Interrupts:
    give_back, take_again = getattr(shown, "pause", None), getattr(shown, "resume", None)

    def pause() -> None:
        run.suspend()
        if give_back is not None:
            give_back()

    def resume() -> None:
        run.resume()
        if take_again is not None:
            take_again()

    say = shown.notify if shown is not None else lambda text: write(f"duodao: {text}\n")
    return Interrupts(run.drain, say, pause=pause, resume=resume)


# -- the last words ---------------------------------------------------------------------------------------------------


def _tell(report: Report, sink: JsonLines, failed: str | None, journal: str | None, *, quiet: bool) -> None:
    place = failed or journal
    shown = sorted(report.failures, key=lambda outcome: outcome.index)[: SHOWN if place else None]
    if quiet and report.failed:
        _say(str(report).partition("\n")[0])
    for outcome in shown:
        _say(_failure(outcome))
    if report.failed > len(shown) or (report.failed and failed):
        more = report.failed - len(shown)
        where = f"what failed is in {failed}" if failed else ""
        where = where or (f"duodao journal {journal} --failed lists them" if journal else "no file keeps them")
        _say(f"{wording.count(more)} more failed; {where}" if more else where)
    if sink.unfit:
        kept = f"; they are in {failed}" if failed else ""
        _say(f"JSON can't hold {wording.many(sink.unfit, 'result')}{kept}")
    if report.dropped:
        _say(f"{wording.many(report.dropped)} of the journal gone, their results dropped")
    if report.stopped:
        left = f", {wording.count(report.unstarted)} that were read have not been started" if report.unstarted else ""
        again = f"; `duodao resume {journal}` goes on" if journal else ""
        _say(f"{in_options(report.stopped)}; {wording.many(report.succeeded)} succeeded{left}{again}")


def _failure(outcome: Outcome[Any]) -> str:
    text = wording.clean(str(outcome.input))
    text = text if len(text) <= 200 else f"{text[:199]}…"
    error = wording.error(outcome.error) if outcome.error is not None else ""
    error = error if len(error) <= 1000 else f"{error[:999]}…"
    return f"input {wording.count(outcome.index)} ({text}): {error}"


def _say(text: str) -> None:
    print(f"duodao: {wording.clean(text)}", file=sys.stderr)
