"""The run: two stages, and the loop that feeds what pages link to back into the frontier."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Unpack

import duodao
from duodao import Journal, Outcome
from duodao.errors import CallTimeout, DuodaoError, UsageError
from duodao.watch import wording
from duodao_crawl import robots
from duodao_crawl.canonical import canonical
from duodao_crawl.fetch import Fetcher, client
from duodao_crawl.frontier import Frontier
from duodao_crawl.page import Page, Parsed, Request
from duodao_crawl.parse import parse
from duodao_crawl.scope import Scope
from duodao_crawl.settings import CrawlOptions, Settings

HOPS = 20
"""Redirects that are followed from one link, as in browsers."""
AHEAD = 32
"""Pages that may be parsed, or wait for it, beyond those that are fetched."""


def crawl(seeds: str | Iterable[str], **options: Unpack[CrawlOptions]) -> Crawl:
    """Fetch pages from `seeds` on, and what they link to, within a scope; iterate over the Pages as they come.

    seeds: URLs. Options: CrawlOptions. Returns a Crawl, which starts when its first page is asked for.
    Raises UsageError for a wrong option or seed, before anything is fetched; JournalError. Source: M33.
    """
    return Crawl(seeds, **options)


@dataclasses.dataclass(slots=True)
class Report:
    """What a crawl did. pages: URLs that ended, errors among them. refused: URLs held back by robots.txt: by its rules,
    or because it can't be had. retried: attempts that were not the last. recorded: answers that came from the journal.

    bytes: of bodies with a hash. same: pages whose body another one had. statuses: pages per status. left: URLs that
    were found and not fetched. seconds: wall time. stopped: why it ended before its URLs did, else "".
    """

    pages: int = 0
    errors: int = 0
    refused: int = 0
    retried: int = 0
    recorded: int = 0
    same: int = 0
    bytes: int = 0
    left: int = 0
    seconds: float = 0.0
    stopped: str = ""
    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def __str__(self) -> str:
        parts = [f"{wording.many(self.pages, 'page')} in {wording.duration(self.seconds)}"]
        missing = sum(count for status, count in self.statuses.items() if status >= 400)
        for count, what in (
            (self.recorded, "answers from the journal"), (missing, "answered 4xx or 5xx"),
            (self.errors, "with an error"), (self.same, "the same as another"),
            (self.refused, "held back by robots.txt"), (self.retried, "retried"), (self.left, "found and not fetched"),
        ):  # fmt: skip
            parts += [f"{wording.count(count)} {what}"] if count else []
        return ", ".join(parts)


class Crawl:
    """Pages, for one `for`, and a context manager that ends the crawl. `report` says what was done so far.

    It holds no iterator of its own: leaving the loop drops the iterator, and that ends the crawl.
    """

    def __init__(self, seeds: str | Iterable[str], **options: Unpack[CrawlOptions]) -> None:
        given: dict[str, Any] = dict(options)
        journal, progress = given.pop("journal", None), given.pop("progress", None)
        fresh, accept = given.pop("fresh", False), given.pop("accept_code", False)
        names = [field.name for field in dataclasses.fields(Settings)]
        for name in given:
            if name not in names:
                valid = ", ".join([*names, "journal", "fresh", "accept_code", "progress"])
                raise UsageError(f"unknown option {name!r} (valid: {valid})")
        self.settings = settings = Settings(**given)
        self.seeds = _seeds(seeds)
        self.report = Report()
        self._scope = Scope(self.seeds, settings.scope, settings.include, settings.exclude)
        self._journal = None if journal is None else Journal(journal, fresh=fresh, accept_code=accept)
        known = _recorded(self._journal) if self._journal is not None and not fresh else frozenset()
        self._frontier = Frontier(settings, known=lambda request: hash(request) in known, refused=self._refuse)
        self._refused: collections.deque[Page] = collections.deque()
        self._via: dict[str, tuple[str, ...]] = {}
        self._first: dict[str, str] = {}
        line = duodao.Pipeline(
            Fetcher(settings, self._frontier.started, self._frontier.landed).fetch, lane="coroutine",
            workers=settings.concurrency, setup={"client": lambda: client(settings)},
        ).then(parse, lane="process", workers=settings.parsers, timeout=settings.timeout)  # fmt: skip
        self._map = duodao.map(
            line, self._frontier, ordered=False, errors="collect", window=settings.concurrency + AHEAD,
            journal=self._journal, progress=progress,
        )  # fmt: skip
        self._began = False

    def __iter__(self) -> Iterator[Page]:
        if self._began:
            raise UsageError("this crawl was iterated already: make another one, with a journal to fetch nothing twice")
        self._began = True
        return self._run()

    def __enter__(self) -> Crawl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def note(self, name: str, value: Any) -> None:
        """Keep something JSON can hold in the journal, such as the command that began the crawl."""
        if self._journal is not None:
            self._journal.note(name, value)

    def drain(self) -> None:
        """Fetch nothing more; what is under way still comes. From any thread or signal handler."""
        self._map.drain()

    def close(self) -> None:
        """End the crawl now. Idempotent."""
        self._frontier.close()
        self._map.close()
        done = self._map.report
        self.report.left, self.report.recorded = self._frontier.left(), done.skipped
        self.report.seconds, self.report.stopped = done.seconds, done.stopped

    def _run(self) -> Iterator[Page]:
        try:
            self._frontier.add(self.seeds, 0)
            for outcome in self._map:
                page = self._take(outcome)
                while self._refused:
                    yield self._count(self._refused.popleft())
                if page is not None:
                    yield self._count(page)
            while self._refused:
                yield self._count(self._refused.popleft())
        finally:
            self.close()

    # -- what became of a request --------------------------------------------------------------------------------------

    def _take(self, outcome: Outcome[Parsed]) -> Page | None:
        """Feed back what came of a request; its Page, when that was its last attempt."""
        parsed = _parsed(outcome, self.settings.timeout)
        request = parsed.request
        try:
            if request.robots:
                self._obey(parsed)
                return None
            if parsed.again and request.attempt <= self.settings.retries:
                self._again(parsed)
                return None
            return self._follow(parsed)
        finally:
            self._frontier.done(request)

    def _again(self, parsed: Parsed) -> None:
        request = parsed.request
        self.report.retried += 1
        later = request._replace(attempt=request.attempt + 1)
        if parsed.wait is not None:  # the server's own word is for all of its host
            self._frontier.again(later, parsed.wait, everyone=True)
        else:
            pause = min(60.0, 2.0 ** (request.attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads load
            self._frontier.again(later, pause)

    def _obey(self, parsed: Parsed) -> None:
        request, page = parsed.request, parsed.page
        if parsed.again and request.attempt <= self.settings.retries:
            self._again(parsed)
        elif page.redirect is not None:
            self._frontier.moved(request, page.redirect)
        elif page.error is not None or page.status is None:
            self._frontier.rule(request, robots.unreachable(page.error or "no answer"))
        elif page.status >= 400:
            self._frontier.rule(request, robots.ALL)
        else:
            self._frontier.rule(request, robots.read(parsed.text, self.settings.user_agent))

    def _follow(self, parsed: Parsed) -> Page:
        url = parsed.request.url
        depth = self._frontier.depth(url)
        page = parsed.page._replace(depth=depth, via=self._via.pop(url, ()))
        if page.redirect is not None:
            return self._hop(page)
        if page.hash is not None:
            first = self._first.setdefault(page.hash, page.url)
            page = page._replace(same_as=None if first == page.url else first)
        settings = self.settings
        deep = settings.depth is not None and depth >= settings.depth
        if page.links and not deep and not (page.nofollow and settings.robots):
            avoid = parsed.unfollowed if settings.robots else ()
            allows = self._scope.allows
            self._frontier.add([link for link in page.links if allows(link) and link not in avoid], depth + 1)
        return page

    def _hop(self, page: Page) -> Page:
        target = page.redirect
        assert target is not None
        if len(page.via) >= HOPS:
            return page._replace(error=f"more than {HOPS} redirects in a row")
        if target == page.url:
            return page._replace(error="redirects to itself")
        if page.depth == 0:
            self._scope.moved(page.url, target)
        if self._scope.allows(target):
            self._via.setdefault(target, (*page.via, page.url))
            self._frontier.add([target], page.depth)
        return page

    def _refuse(self, url: str, why: str) -> None:
        self.report.refused += 1
        if self._frontier.depth(url) == 0:
            self._refused.append(Page(url, None, "", "", [], None, None, None, 0, 0.0, 0, why))

    def _count(self, page: Page) -> Page:
        report = self.report
        report.pages += 1
        report.errors += page.error is not None
        report.same += page.same_as is not None
        report.bytes += (page.size or 0) if page.hash is not None else 0
        if page.status is not None:
            report.statuses[page.status] += 1
        return page


def _parsed(outcome: Outcome[Parsed], timeout: float) -> Parsed:
    """The stage's result; for one that ended its parser, a page that says so."""
    if outcome.value is not None:
        return outcome.value
    request: Request = outcome.input
    error = f"{type(outcome.error).__name__}: {outcome.error}"
    if isinstance(outcome.error, CallTimeout):
        error = f"parsing it took longer than {timeout:g} s"
    return Parsed(request, Page(request.url, None, "", "", [], None, None, None, 0, 0.0, request.attempt, error))


def _seeds(seeds: str | Iterable[str]) -> list[str]:
    found = []
    single = isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable)
    for seed in [seeds] if single else seeds:
        url = canonical(seed) if isinstance(seed, str) else None
        if url is None:
            raise UsageError(f"{seed!r} is no URL to start from: one with http:// or https:// is needed")
        found.append(url)
    if not found:
        raise UsageError("no URL to start from was given")
    return found


def _recorded(journal: Journal) -> frozenset[int]:
    """Hashes of the requests whose answers the journal holds: they come at once, and must not be paced."""
    try:
        with Journal.inspect(journal.path) as seen:
            return frozenset(hash(outcome.input) for outcome in seen.outcomes())
    except DuodaoError:  # there is none yet; or the run itself says what is wrong with it
        return frozenset()
