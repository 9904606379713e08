"""`duodao crawl URL… -o pages.jsonl`: a site's pages as JSON lines."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from duodao import JsonLines, Outcome
from duodao.cli.explain import FAILED, OK
from duodao.cli.interrupt import INTERRUPTED, Interrupts, write
from duodao.cli.options import Limit, Seconds, Size
from duodao.errors import DuodaoError, UsageError
from duodao.watch import progress as displays
from duodao.watch import wording
from duodao_crawl.settings import AGENT, SCOPES, Settings

if TYPE_CHECKING:
    from duodao.watch.progress import Display
    from duodao_crawl.page import Page
    from duodao_crawl.run import Crawl

SHOWN = 3
"""Errors that are told on stderr; all of them are in the output."""

_DEFAULTS = Settings()
_NAME = re.compile(r"^(\w+)=")


class Pace(Limit):
    """A rate, or "none"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Requests per second as float, None for no limit."""
        if value is None or isinstance(value, float):
            return value
        if value == "none":
            return None
        limit = super().convert(value, param, ctx)
        return limit.n / limit.per


@click.command("crawl", epilog=(
    "Exit codes: 0 all good, 1 some pages could not be had, 2 bad usage, 130 interrupted. "
    "Ctrl-C once finishes what is under way, twice stops at once."
))  # fmt: skip
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("-o", "--output", default="-", metavar="OUT", help="One JSON line per page. [stdout]")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="host",
    help="What is followed: the hosts of the URLs, their folders, their domains, any. [host]",
)
@click.option("--include", multiple=True, metavar="REGEX", help="Follow only URLs in which one of these is found.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Follow no URL in which one of these is found.")
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    metavar="N",
    default=_DEFAULTS.depth,
    help=f"Links from the URLs at most. [{_DEFAULTS.depth}]",
)
@click.option("--max-pages", type=click.IntRange(min=1), metavar="N", help="Fetch no more than this.")
@click.option(
    "--rate",
    type=Pace(),
    metavar="N[/TIME]|none",
    default="1",
    help="Requests per second, or per TIME, to one host; a longer Crawl-delay holds, too. [1]",
)
@click.option(
    "--per-host",
    type=click.IntRange(min=1),
    metavar="N",
    default=_DEFAULTS.per_host,
    help="Connections to one host. [1]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    default=_DEFAULTS.concurrency,
    help=f"Connections in all. [{_DEFAULTS.concurrency}]",
)
@click.option("--parsers", type=click.IntRange(min=1), metavar="N", help="Processes that parse. [one per core]")
@click.option("--robots/--no-robots", default=True, help="Obey robots.txt and meta robots nofollow. [yes]")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    default=_DEFAULTS.retries,
    help=f"Further attempts after a network error, 429 or 5xx. [{_DEFAULTS.retries}]",
)
@click.option("--max-size", type=Size(), metavar="SIZE", default="10M", help="Of one body. [10M]")
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="TIME",
    default=_DEFAULTS.timeout,
    help=f"For one answer in all. [{_DEFAULTS.timeout:g}]",
)
@click.option(
    "--idle", type=Seconds(), metavar="TIME", default=_DEFAULTS.idle, help=f"Without a byte of it. [{_DEFAULTS.idle:g}]"
)
@click.option(
    "--user-agent",
    metavar="TEXT",
    default=AGENT,
    help=f"Sent to servers; its name before the slash is looked for in robots.txt. [{AGENT}]",
)
@click.option("--verify/--no-verify", default=True, help="Check certificates. [yes]")
@click.option("--journal", metavar="PATH", help="Make the crawl durable: the same command goes on where it was.")
@click.option("--fresh/--no-fresh", default=False, help="Forget what the journal holds.")
@click.option("--accept-code/--no-accept-code", default=False, help="Go on although the crawler has changed.")
@click.option("--progress/--no-progress", default=None, help="Show progress on stderr.")
def command(urls: tuple[str, ...], output: str, progress: bool | None, **given: Any) -> int:  # fmt: skip
    """Fetch pages from the URLs on, and what they link to; write one JSON line per page.

    Polite unless told otherwise: robots.txt, one connection and one request per second to a host.
    """
    _check(output, given["journal"], fresh=given["fresh"], accept_code=given["accept_code"])
    shown = displays.display() if _wanted(progress, output) else None
    crawl = _crawl(urls, progress=shown, **given)
    if given["journal"] is not None:
        crawl.note("command", {"argv": click.get_current_context().obj, "cwd": os.getcwd(), "stdin": False})
    errors: list[Page] = []
    code = _drive(crawl, JsonLines(output, journal=given["journal"]), shown, errors)
    _tell(crawl, errors, given["journal"], quiet=shown is None)
    return code


def _crawl(urls: tuple[str, ...], **given: Any) -> Crawl:
    try:
        from duodao_crawl.run import Crawl
    except ModuleNotFoundError as error:
        raise UsageError(f"crawling needs {error.name}, which isn't installed: pip install 'duodao[crawl]'") from None
    try:
        return Crawl(urls, **given)
    except UsageError as error:
        raise UsageError(_NAME.sub(lambda found: f"--{found[1].replace('_', '-')} ", str(error))) from None


def _check(output: str, journal: str | None, **needs_journal: bool) -> None:
    if output == "-" and sys.stdout is None:
        raise UsageError("the output stdout can't be written: it is closed")
    if "" in (output, journal):
        raise UsageError(f"the {'output' if output == '' else 'journal'} has an empty name")
    if journal is None:
        for name, given in needs_journal.items():
            if given:
                raise UsageError(f"--{name.replace('_', '-')} says how to use a journal: it needs --journal PATH")
    elif output != "-" and os.path.realpath(output) == os.path.realpath(journal):
        raise UsageError(f"{output} is given as the output and as the journal")


def _wanted(progress: bool | None, output: str) -> bool:
    """Lines that scroll over the terminal and a display that redraws itself there would tear each other."""
    if progress is not None:
        return progress
    return not (output == "-" and sys.stdout is not None and sys.stdout.isatty())


def _drive(crawl: Crawl, sink: JsonLines, shown: Display | None, errors: list[Page]) -> int:
    interrupts = Interrupts(
        crawl.drain,
        shown.notify if shown is not None else lambda text: write(f"duodao: {text}\n"),
        pause=getattr(shown, "pause", None),
        resume=getattr(shown, "resume", None),
    )
    complete = False
    try:
        with interrupts, contextlib.ExitStack() as stack:  # outermost: Ctrl-C must work while all the rest ends
            stack.callback(lambda: sink.close(complete))
            if shown is not None:
                stack.callback(shown.close)
            stack.enter_context(crawl)
            sink.open()
            for number, page in enumerate(crawl):
                if page.error is not None:
                    errors.append(page)
                    del errors[SHOWN:]
                sink.write([Outcome(number, page.url, page._asdict())])
            complete = not crawl.report.stopped
    except KeyboardInterrupt:
        write("duodao: stopped at once: what was under way is not in the results\n")
        return INTERRUPTED
    except OSError as error:  # a disk that is full
        if isinstance(error, DuodaoError | BrokenPipeError):
            raise
        _say(f"stopped: {error}")
        return FAILED
    if interrupts.count:
        return INTERRUPTED
    return FAILED if crawl.report.errors else OK


def _tell(crawl: Crawl, errors: list[Page], journal: str | None, *, quiet: bool) -> None:
    report = crawl.report
    for page in errors:
        _say(f"{page.url}: {page.error}")
    if report.errors > len(errors):
        _say(f"{wording.many(report.errors - len(errors), 'more error')}; all are in the output")
    if quiet and not (report.errors or report.left):
        return
    _say(f"{report}{'; the same command goes on' if report.left and journal else ''}")


def _say(text: str) -> None:
    print(f"duodao: {wording.clean(text)}", file=sys.stderr)
