"""A crawler on Duodao, built from its public names: fetches on coroutines, parses on processes, feeds links back."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duodao_crawl.page import Page
    from duodao_crawl.run import Crawl, Report, crawl

__all__ = ["Crawl", "Page", "Report", "crawl"]

_HOMES = {"Crawl": "run", "Page": "page", "Report": "run", "crawl": "run"}


def __getattr__(name: str) -> Any:
    """Loaded when first used: `duodao --help` imports this package for its command alone."""
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'duodao_crawl' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"duodao_crawl.{home}"), name)
    return value
