"""From checked options to an exit code: what `map` and `run` share, and `resume` and `--retry-failed` come back to."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from duodao.cli import inputs, options
from duodao.cli.interrupt import INTERRUPTED, Interrupts, write
from duodao.errors import DuodaoError, TooManyFailures, UsageError
from duodao.pipeline.runs import Map, drive, plan
from duodao.pipeline.sink import JsonLines
from duodao.watch import progress, wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

    from duodao import Outcome, Report
    from duodao.channel.journal import Journal
    from duodao.watch.progress import Display

EPILOG = (
    "Exit codes: 0 all good, 1 some inputs failed, 2 bad usage, 3 stopped by --max-failures, 130 interrupted. "
    "Ctrl-C once finishes what is in flight, twice stops at once."
)
SHOWN = 5
"""Failures that are told on stderr when a file holds them all; when none does, all that the Report keeps are told."""


def launch(ctx: click.Context, work: Any, given: dict[str, Any], stage: dict[str, Any]) -> int:
    """Check everything, run, say what became of it; the exit code. Raises UsageError before anything starts."""
    out, failed, path = given["output"], given["failed_path"], given["journal"]
    if failed is None and out != "-":
        failed = f"{out.removesuffix('.jsonl')}.failed.jsonl"
    ours = [name for name in (out, failed, path) if name is not None and name != "-"]
    _check_outputs(ours, path)
    items = inputs.open_inputs(
        given["inputs"], paths=given["paths"], match=given["match"], nul=given["nul"], ours=_ours(ours, path)
    )
    journal = _journal(ctx, given)
    shown = _display(given)
    run = Map(
        plan(
            work, items,
            {**stage, **_run_arguments(given), "journal": journal, "progress": shown}, whole=True,
        )
    )  # fmt: skip
    sink = JsonLines(_stdout() if out == "-" else out, records=given["records"], failed_path=failed, journal=journal)
    code = _drive(run, sink, shown, raising=given["errors"] == "raise")
    _tell(run.report, failed, path, quiet=shown is None)
    return code


def _run_arguments(given: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"errors": given["errors"], "ordered": not given["unordered"]}
    for name in ("max_failures", "window"):
        if given[name] is not None:
            out[name] = given[name]
    return out


def _journal(ctx: click.Context, given: dict[str, Any]) -> Journal | None:
    key = options.key(given["key"])
    if given["journal"] is None:
        for name in ("key", "fresh", "accept_code"):
            if given[name]:
                raise UsageError(f"--{name.replace('_', '-')} says how to use a journal: it needs --journal PATH")
        return None
    from duodao import Journal

    return Journal(given["journal"], key=key, fresh=given["fresh"], accept_code=given["accept_code"])


def _display(given: dict[str, Any]) -> Display | None:
    wanted = given["progress"]
    if wanted is None:
        # Results that scroll over the terminal and a display that redraws itself there would tear each other.
        wanted = not (given["output"] == "-" and sys.stdout.isatty() and sys.stderr.isatty())
    return progress.display() if wanted else None


def _stdout() -> Any:
    """The real stdout for results; what the user's functions print goes to stderr, so that OUT stays clean."""
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    return results


# -- files ------------------------------------------------------------------------------------------------------------


def _ours(ours: Sequence[str], journal: str | None) -> list[str]:
    """With the files SQLite keeps beside a journal."""
    return [*ours, *(f"{journal}{end}" for end in ("-wal", "-shm", "-journal") if journal is not None)]


def _check_outputs(ours: Sequence[str], journal: str | None) -> None:
    seen: dict[str, str] = {}
    for name in ours:
        what = "the journal" if name == journal else "the output"
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


def _drive(run: Map[Any], sink: JsonLines, shown: Display | None, *, raising: bool) -> int:
    """Run to the end or to what ends it; the exit code."""
    report = run.report
    complete = False
    with ExitStack() as stack:
        stack.callback(lambda: sink.close(complete))
        if shown is not None:
            stack.callback(shown.close)
        stack.enter_context(run)
        interrupts = stack.enter_context(_interrupts(run, shown))
        try:
            sink.open()
            drive(run, sink.write)
            report = run.report
            complete = not report.stopped
        except KeyboardInterrupt:
            _end_display(shown)
            write("duodao: stopped at once; what was in flight is lost\n")
            return INTERRUPTED
        except TooManyFailures:
            return 3
        except DuodaoError:
            raise
        except Exception as error:
            _end_display(shown)
            report = run.report
            if not _explained(error, report, raising=raising):
                raise
            return 1
    if interrupts.count:
        return INTERRUPTED
    return 0 if report.ok else 1


def _interrupts(run: Map[Any], shown: Display | None) -> Interrupts:
    return Interrupts(
        run.drain,
        shown.notify if shown is not None else lambda text: write(f"duodao: {text}\n"),
        pause=getattr(shown, "pause", None),
        resume=getattr(shown, "resume", None),
    )


def _end_display(shown: Display | None) -> None:
    if shown is not None:
        shown.close()


def _explained(error: Exception, report: Report, *, raising: bool) -> bool:
    """Say in one line what ended the run, if that was the user's function, an input or the disk; a bug of ours is none."""
    for outcome in report.failures:
        if raising and outcome.error is error:
            _say(f"stopped by --errors raise: {_failure(outcome)}")
            return True
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        _say(f"stopped: {error}")
        return True
    return False


# -- the last words ---------------------------------------------------------------------------------------------------


def _tell(report: Report, failed: str | None, journal: str | None, *, quiet: bool) -> None:
    place = failed or journal
    shown = report.failures[: SHOWN if place else None]
    if quiet and report.failed:
        _say(str(report).partition("\n")[0])
    for outcome in shown:
        _say(_failure(outcome))
    if report.failed > len(shown) or (report.failed and failed):
        more = report.failed - len(shown)
        where = f"all {wording.count(report.failed)} failures are in {failed}" if failed else ""
        where = where or (
            f"duodao journal {journal} --failed lists them" if journal else "no file was asked to keep them"
        )
        _say(f"{wording.count(more)} more failed; {where}" if more else where)
    if report.dropped:
        _say(f"{wording.count(report.dropped)} inputs of the journal are gone: their results were dropped")
    if report.stopped:
        left = f", {wording.count(report.unstarted)} read inputs not started" if report.unstarted else ""
        again = f"; `duodao resume {journal}` goes on" if journal else ""
        _say(f"{report.stopped}: {wording.count(report.succeeded)} results written{left}{again}")


def _failure(outcome: Outcome[Any]) -> str:
    text = wording.clean(str(outcome.input))
    text = text if len(text) <= 200 else f"{text[:199]}…"
    error = f"{type(outcome.error).__name__}: {outcome.error}" if outcome.error is not None else ""
    return f"input {wording.count(outcome.index)} ({text}): {error}"


def _say(text: str) -> None:
    print(f"duodao: {wording.clean(text)}", file=sys.stderr)
