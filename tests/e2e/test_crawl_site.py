"""`duodao crawl` on a real site: python3-doc on nginx. What it finds is what `wget --recursive` finds."""

from __future__ import annotations

import json
import subprocess

import pytest
from cli_program import Program, duodao
from tests.conftest import need, program
from tests.e2e.nginx_site import Nginx, python_docs

import duodao as library

MANY = 500
"""Pages that python3-doc has at least, in any release."""
QUICK = ("--scope", "prefix", "--rate", "none", "--per-host", "8", "--no-progress")


@pytest.fixture(scope="module")
def docs():
    found = python_docs()
    need(found, "Debian's python3-doc")
    return found


@pytest.fixture(scope="module")
def site(docs, tmp_path_factory):
    """The documentation below /docs/, linked from a page above it that is not to be fetched."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "above").mkdir()
    (folder / "above" / "index.html").write_text('<a href="/docs/">documentation</a>')
    with Nginx(folder / "nginx", {"/": folder / "above", "/docs/": docs}, program("nginx")) as server:
        yield server


@pytest.fixture(scope="module")
def by_wget(site, tmp_path_factory):
    """The pages that wget finds, from nginx's log: each target that was answered with 200 and HTML.

    wget obeys robots.txt, drops fragments and keeps queries, as the crawl does. It also follows <link>, <img>, <script>
    and CSS; what these lead to is no HTML, or has an <a> elsewhere that leads to it.
    """
    site.forget()
    command = [program("wget"), "--recursive", "--level=inf", "--no-parent", "--delete-after", "--no-verbose"]
    done = subprocess.run(
        [*command, f"{site.url}/docs/"],
        cwd=tmp_path_factory.mktemp("wget"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 8), done.stderr[-2000:]  # 8: a link leads to a page that is not there
    return set(site.pages())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def pages(records, site):
    """The targets of those lines that are HTML pages."""
    return {r["url"].removeprefix(site.url) for r in records if r["status"] == 200 and r["type"] == "text/html"}


def test_the_pages_are_those_that_wget_finds(site, by_wget, docs, tmp_path):
    """The same set of HTML pages, each asked for once, with the title, size and links of the file that it is."""
    site.forget()
    done = duodao("crawl", f"{site.url}/docs/", "-o", "pages.jsonl", *QUICK, cwd=tmp_path)
    records = lines(tmp_path / "pages.jsonl")
    assert len(by_wget) > MANY
    assert pages(records, site) == by_wget
    assert set(site.pages()) == by_wget
    assert max(site.pages().values()) == 1
    missing = {v.target for v in site.visits() if v.status == 404} - {"/robots.txt"}
    broken = {r["url"].removeprefix(site.url) for r in records if r["status"] != 200}
    assert broken == missing  # links of the documentation that lead nowhere: reported, not hidden
    assert done.returncode in (0, 1), done.stderr
    for record in records:
        path = docs / (record["url"].removeprefix(f"{site.url}/docs/") or "index.html")
        if record["status"] == 200 and record["type"] == "text/html":
            assert record["size"] == path.stat().st_size
            assert record["title"]
            assert record["links"]
            assert record["hash"]


def test_a_killed_crawl_goes_on(site, by_wget, tmp_path):
    """kill -9 in the middle, then the same command: the same pages, and none that was recorded is fetched again."""
    site.forget()
    argv = ["crawl", f"{site.url}/docs/", "-o", "pages.jsonl", "--journal", "crawl.journal", *QUICK]
    with Program(*argv, cwd=tmp_path) as first:
        site.wait_for(MANY // 2)
        first.process.kill()
        first.process.wait()
    with library.Journal.inspect(tmp_path / "crawl.journal") as seen:
        recorded = {outcome.input.url.removeprefix(site.url) for outcome in seen.outcomes()} & by_wget
    assert 0 < len(recorded) < len(by_wget)
    done = duodao(*argv, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    records = lines(tmp_path / "pages.jsonl")
    assert len({r["url"] for r in records}) == len(records)
    assert pages(records, site) == by_wget
    assert set(site.pages()) == by_wget
    again = {target for target, count in site.pages().items() if count > 1}
    assert again & recorded == set()
