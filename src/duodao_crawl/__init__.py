"""A crawler on Duodao, built from its public names: fetches on coroutines, parses on processes, feeds links back."""

from __future__ import annotations

from duodao_crawl.crawl import Crawl, Report, crawl
from duodao_crawl.page import Page
from duodao_crawl.settings import Settings

__all__ = ["Crawl", "Page", "Report", "Settings", "crawl"]
