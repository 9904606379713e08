"""The same crawl by Scrapy, in an environment of its own: scrapy_spider.py URL OUT CONCURRENCY STYLE -> its seconds.

STYLE: "plain", as its documentation writes a spider, or "tuned", with what Scrapy itself does for each link taken over.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urljoin

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.http import HtmlResponse, Response

URL, OUT, CONCURRENCY, STYLE = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
SETTINGS = {
    "ROBOTSTXT_OBEY": True,
    "CONCURRENT_REQUESTS": CONCURRENCY,
    "CONCURRENT_REQUESTS_PER_DOMAIN": CONCURRENCY,
    "DOWNLOAD_DELAY": 0,
    "DEPTH_LIMIT": 0,
    "FEEDS": {OUT: {"format": "jsonlines", "overwrite": True}},
    # What only costs it time here:
    "ASYNCIO_EVENT_LOOP": "uvloop.Loop",
    "COOKIES_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "LOG_LEVEL": "ERROR",
}


class Pages(scrapy.Spider):
    """Every HTML page of one host."""

    name = "pages"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen = {URL}

    async def start(self) -> AsyncIterator[scrapy.Request]:
        yield scrapy.Request(URL)

    def parse(self, response: Response, **_: Any) -> Iterator[Any]:
        record = {"url": response.url, "status": response.status, "size": len(response.body)}
        record["hash"] = hashlib.blake2b(response.body, digest_size=16).hexdigest()
        if not isinstance(response, HtmlResponse):
            yield record
            return
        links = tuned(response) if STYLE == "tuned" else plain(response)
        yield record | {"title": response.xpath("//title/text()").get(), "links": links}
        for link in links:
            if not link.startswith(URL):
                continue
            if STYLE == "plain":
                yield scrapy.Request(link)
            elif link not in self.seen:  # a link that was seen costs no Request and no fingerprint
                self.seen.add(link)
                yield scrapy.Request(link, dont_filter=True)


def plain(response: HtmlResponse) -> list[str]:
    links = (response.urljoin(link).partition("#")[0] for link in response.xpath("//a/@href").getall())
    return list(dict.fromkeys(links))


def tuned(response: HtmlResponse) -> list[str]:
    """By lxml itself, no Selector for every href, and each href is joined once."""
    found = dict.fromkeys(href.partition("#")[0] for href in response.selector.root.xpath("//a/@href"))
    return list(dict.fromkeys(urljoin(response.url, href) for href in found))


process = CrawlerProcess(SETTINGS)
process.crawl(Pages)
began = time.perf_counter()
process.start()
print(time.perf_counter() - began)
