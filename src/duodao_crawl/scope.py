"""Which URLs belong to a crawl."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from duodao.errors import UsageError
from duodao_crawl.canonical import origin


class Scope:
    """Says of a canonical URL whether it is followed.

    kind: "host": same scheme, host and port as a seed; "prefix": below the folder of a seed; "domain": the host of a
    seed and hosts below it; "any". include: one of these must be found in the URL; exclude: none of these.
    """

    def __init__(
        self, seeds: Iterable[str], kind: str = "host", include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._kind = kind
        self._origins: set[str] = set()
        self._folders: tuple[str, ...] = ()
        self._hosts: set[str] = set()
        for seed in seeds:
            self._add(seed)
        self._include = _patterns("include", include)
        self._exclude = _patterns("exclude", exclude)

    def allows(self, url: str) -> bool:
        """True for a URL that is followed."""
        if not self._inside(url) or any(pattern.search(url) for pattern in self._exclude):
            return False
        return not self._include or any(pattern.search(url) for pattern in self._include)

    def moved(self, seed: str, target: str) -> None:
        """A seed redirects to `target`: where only http:// or www. is the difference, the site has moved with it."""
        if _site(seed) == _site(target):
            self._add(target)

    def _add(self, seed: str) -> None:
        self._origins.add(origin(seed))
        self._folders = tuple({*self._folders, seed.partition("?")[0].rpartition("/")[0] + "/"})
        self._hosts.add(host(seed))

    def _inside(self, url: str) -> bool:
        if self._kind == "host":
            return origin(url) in self._origins
        if self._kind == "prefix":
            return url.startswith(self._folders)
        if self._kind == "domain":
            name = host(url)
            return name in self._hosts or any(name.endswith(f".{known}") for known in self._hosts)
        return True


def host(url: str) -> str:
    """The host's name in a canonical URL, without its port."""
    name = origin(url).partition("://")[2]
    return name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name


def _site(url: str) -> str:
    return origin(url).partition("://")[2].removeprefix("www.")  # with its port: another port is another server


def _patterns(option: str, given: Sequence[str]) -> list[re.Pattern[str]]:
    each: object = given
    found = []
    try:
        for each in [given] if isinstance(given, str) else given:
            found.append(re.compile(each))
    except (re.error, TypeError) as error:
        raise UsageError(f"{option}={each!r}: not a regular expression: {error}") from None
    return found
