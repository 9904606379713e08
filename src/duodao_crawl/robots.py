"""What a host's robots.txt says, as RFC 9309 wants it read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST = 512_000
"""Bytes of a robots.txt that count: the RFC asks for 500 KiB at least."""
HOPS = 5
"""Redirects of a robots.txt that are followed; beyond, it is as if there were none (RFC 9309, 2.3.1.2)."""
SLOWEST = 300
"""Seconds: a longer Crawl-delay counts as this one."""


@dataclass(frozen=True, slots=True)
class Rules:
    """allows: whether a URL may be fetched. delay: seconds between two requests that the host asks for."""

    allows: Callable[[str], bool]
    delay: float = 0.0
    why: str = "robots.txt disallows it"


def everything(_url: str) -> bool:
    """No rule forbids it."""
    return True


ALL = Rules(everything)


def read(text: str, agent: str) -> Rules:
    """The rules in `text` for a crawler whose User-Agent is `agent`."""
    from protego import Protego

    name = agent.partition("/")[0].strip()
    parsed: Any = Protego.parse(text)
    delay = float(parsed.crawl_delay(name) or 0.0)
    rate = parsed.request_rate(name)
    if rate is not None:  # of whole numbers, which may have hundreds of digits
        delay = max(delay, min(rate.seconds, SLOWEST * rate.requests) / rate.requests)
    return Rules(lambda url: parsed.can_fetch(url, name), min(delay, SLOWEST))


def unreachable(reason: str) -> Rules:
    """The rules of a host whose robots.txt can't be had: nothing may be fetched (RFC 9309, 2.3.1.4)."""
    return Rules(lambda _url: False, why=f"robots.txt can't be had ({reason}), so nothing of this host is fetched")


@dataclass(slots=True)
class _Question:
    """A robots.txt on its way. names: the hosts that wait for it. hops: redirects that led here."""

    names: list[str]
    hops: int = 0


@dataclass(slots=True)
class Desk:
    """Which robots.txt is asked for whom, so that each is fetched once although redirects lead to the same one."""

    _asked: dict[str, _Question] = field(default_factory=dict)
    _answers: dict[str, Rules] = field(default_factory=dict)

    def ask(self, url: str, names: list[str], hops: int = 0) -> tuple[bool, list[tuple[str, Rules]]]:
        """(whether `url` is to be fetched, hosts whose rules are known already)."""
        if hops > HOPS:
            return False, self._settle(names, ALL)
        if url in self._answers:
            return False, self._settle(names, self._answers[url])
        if url in self._asked:
            self._asked[url].names += names
            return False, []
        self._asked[url] = _Question(names, hops)
        return True, []

    def moved(self, url: str, target: str) -> tuple[bool, list[tuple[str, Rules]]]:
        """The robots.txt at `url` is at `target`; returns as `ask`."""
        question = self._asked.pop(url)
        # One that leads to itself would be the same request again, while this one is still out.
        return self.ask(target, question.names, question.hops + 1 if target != url else HOPS + 1)

    def answer(self, url: str, rules: Rules) -> list[tuple[str, Rules]]:
        """It is there: the hosts it is for."""
        self._answers[url] = rules
        return self._settle(self._asked.pop(url).names, rules)

    @staticmethod
    def _settle(names: list[str], rules: Rules) -> list[tuple[str, Rules]]:
        return [(name, rules) for name in names]
