"""`duodao crawl URL… -o pages.jsonl`: a site's pages as JSON lines."""

from __future__ import annotations

from typing import Any

import click

from duodao import JsonLines, Outcome
from duodao_crawl.crawl import crawl


@click.command("crawl")
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("-o", "--output", default="-", metavar="OUT", help="One JSON line per page. [stdout]")
@click.option("--scope", default="host", help="host, prefix, domain or any. [host]")
@click.option("--depth", type=int, default=32)
@click.option("--rate", type=float, default=1.0)
@click.option("--per-host", type=int, default=1)
@click.option("--journal", metavar="PATH")
def command(urls: tuple[str, ...], output: str, journal: str | None, **given: Any) -> int:
    """Crawl."""
    given["rate"] = given["rate"] or None
    sink = JsonLines(output, journal=journal)
    sink.open()
    n = 0
    try:
        with crawl(urls, journal=journal, **given) as pages:
            for page in pages:
                sink.write([Outcome(n, page.url, page._asdict())])
                n += 1
    finally:
        sink.close()
    return 0
