"""A whole crawl: Debian's python3-doc, twice under two prefixes, on an nginx of its own; beside Scrapy and wget."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.nginx_site import Nginx, python_docs

from benchmarks.scenario import Bench, scenario

NAMES = ("crawling",)
COPIES = ("/a/", "/b/")
CONCURRENCY = 16

S = scenario(
    "crawling",
    "Crawl of python3-doc, two copies on a local nginx, 16 requests at a time",
    "pages/s",
    2 * 526 + 1,
    about="robots.txt obeyed, no delay, no limit of depth; of each page its title, links, status, size and hash as "
    "JSON. Every run must find the same pages as wget. nginx and the crawl share the cores.",
)


@contextlib.contextmanager
def site() -> Iterator[Nginx]:
    """The server, started anew for each run, and read once so that the files are in memory."""
    docs = python_docs()
    if docs is None:
        raise FileNotFoundError("Debian's python3-doc is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = folder / "pages"
        pages.mkdir()
        links = "".join(f'<a href="{copy}index.html">{copy}</a>' for copy in COPIES)
        (pages / "index.html").write_text(f"<title>copies</title>{links}")
        with Nginx(folder / "nginx", {"/": pages, **dict.fromkeys(COPIES, docs)}) as server:
            yield server


def by_wget(server: Nginx) -> set[str]:
    """The pages that wget finds, from nginx's log."""
    server.forget()
    with tempfile.TemporaryDirectory() as folder:
        command = ["wget", "--recursive", "--level=inf", "--delete-after", "--quiet", f"{server.url}/"]
        subprocess.run(command, cwd=folder, check=False)  # 8: a link leads to a page that is not there
    return {server.url + target for target in server.pages()}


def pages(path: Path) -> set[str]:
    """The HTML pages of a file of records: those with a title."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["url"] for record in records if record["status"] == 200 and record.get("title")}


def write(url: str, path: Path, most: int | None = None) -> None:
    from duodao_crawl import crawl

    found = crawl(url, rate=None, per_host=CONCURRENCY, concurrency=CONCURRENCY, depth=None, max_pages=most)
    with open(path, "w") as file:
        file.writelines(json.dumps(page._asdict()) + "\n" for page in found)


@S.row("duodao crawl", ours=True)
def ours(bench: Bench) -> None:
    with site() as server:
        write(server.url, server.folder / "imports.jsonl", 4)
        wanted, out = by_wget(server), server.folder / "out.jsonl"
        began = time.perf_counter()
        write(server.url, out)
        compare(bench, time.perf_counter() - began, pages(out), wanted)


def scrapy(bench: Bench, style: str) -> None:
    """Its own seconds, from the start of its reactor to the end: imports are not counted, nor are ours."""
    python = os.environ.get("SCRAPY", ".venv-scrapy/bin/python")
    spider = Path(__file__).with_name("scrapy_spider.py")
    with site() as server:
        wanted, out = by_wget(server), server.folder / "out.jsonl"
        command = [python, spider, f"{server.url}/", out, str(CONCURRENCY), style]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        compare(bench, float(told), pages(out), wanted)


def compare(bench: Bench, seconds: float, found: set[str], wanted: set[str]) -> None:
    """Pages per second, if they are the right ones. Reading them back is not timed."""
    assert found == wanted, f"{len(found)} pages for {len(wanted)}, the difference: {list(found ^ wanted)[:5]}"
    bench.seconds, bench.value = seconds, len(found) / seconds


@S.row("Scrapy", note="2.19, as its documentation writes a spider; uvloop, no cookies, no log")
def plain(bench: Bench) -> None:
    scrapy(bench, "plain")


@S.row("Scrapy, tuned", note="2.19; links by lxml itself, each joined once, seen ones dropped in the spider")
def tuned(bench: Bench) -> None:
    scrapy(bench, "tuned")


@S.row("wget --recursive", limit=True, note="one connection; no fields, no JSON")
def wget(bench: Bench) -> None:
    with site() as server:
        began = time.perf_counter()
        found = by_wget(server)
        compare(bench, time.perf_counter() - began, found, found)


S.goal("twice the pages per second of Scrapy", "duodao crawl", 2.0, "=Scrapy")
S.goal("twice those of Scrapy, tuned", "duodao crawl", 2.0, "Scrapy, tuned")
