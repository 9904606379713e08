"""`duodao crawl` in a process of its own, on a site whose every request is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest
from cli_program import Program, duodao
from tests.faults.hostile_site import Site, answer, moved, page

import duodao as library

QUICK = ("--rate", "none", "--per-host", "4", "--no-progress")
COUNT = 60


def numbered(**options):
    """A site of COUNT pages; each links to the next five."""

    async def others(request, wire):
        at = int(request.target[1:])
        return page(*(f"/{n}" for n in range(at + 1, min(at + 6, COUNT))), title=str(at))

    return Site({"/robots.txt": answer(b"", "404 Not Found")}, others=others, **options)


class Held:
    """A site like that whose page 20 is held until `go` is set; `reached` is set when it was asked for."""

    def __init__(self):
        self.reached, self.go = threading.Event(), threading.Event()
        self.site = numbered()
        self.site.pages["/20"] = self._hold

    async def _hold(self, request, wire):
        import asyncio

        self.reached.set()
        await asyncio.to_thread(self.go.wait, 30)
        return page("/21", title="20")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def titled(found):
    """Lines by title, without the depth: of two ways to a page, the shorter one may have been found after it."""
    return {line["title"]: {**line, "depth": 0} for line in found}


def test_a_site_as_json_lines(tmp_path):
    """One line per URL, with everything a Page has; a summary on stderr; exit code 0."""
    pages = {"/": page("/a", "/b", "/gone", title="home"), "/a": page(title="same"), "/b": page(title="same")}
    with Site({**pages, "/gone": moved("/a")}) as site:
        done = duodao("crawl", site.url, "-o", "pages.jsonl", *QUICK, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = {line["url"].removeprefix(site.url): line for line in lines(tmp_path / "pages.jsonl")}
    assert set(found) == {"/", "/a", "/b", "/gone"}
    home = found["/"]
    assert (home["title"], home["status"], home["depth"], home["error"]) == ("home", 200, 0, None)
    assert home["links"] == [f"{site.url}/{name}" for name in ("a", "b", "gone")]
    assert home["size"] == len(pages["/"].partition(b"\r\n\r\n")[2])
    assert found["/gone"]["redirect"] == f"{site.url}/a"
    assert {found["/a"]["same_as"], found["/b"]["same_as"]} == {None, *(found[p]["url"] for p in "/a /b".split()
                                                                       if not found[p]["same_as"])}  # fmt: skip


def test_pages_that_can_not_be_had(tmp_path):
    """They are lines with an error, told on stderr, and exit code 1; stdout is the default output."""
    with Site({"/": page("/broken")}, others=answer(b"", "500 Broken")) as site:
        site.pages["/robots.txt"] = answer(b"", "404 Not Found")
        done = duodao("crawl", site.url, "--retries", "0", *QUICK, cwd=tmp_path)
    assert done.returncode == 1
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == [200, 500]
    assert f"duodao: {site.url}/broken: answered 500\n" in done.stderr
    assert "2 pages in" in done.stderr


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "missing argument 'URL...'"),
        (["example.com"], "'example.com' is no URL to start from"),
        (["http://x/", "--rate", "fast"], "'fast' is no rate over 0"),
        (["http://x/", "--include", "("], "--include '(': not a regular expression"),
        (["http://x/", "--scope", "all"], "'all' is not one of"),
        (["http://x/", "--fresh"], "it needs --journal PATH"),
        (["http://x/", "-o", "j", "--journal", "j"], "j is given as the output and as the journal"),
        (["http://x/", "-o", ""], "the output has an empty name"),
        (["http://x/", "-o", "no/such"], "no/such can't be written"),
    ],
)
def test_refusals(tmp_path, argv, text):
    """One line that names what is wrong, exit code 2, nothing written, nothing fetched."""
    done = duodao("crawl", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_output_that_can_not_be_written(tmp_path):
    """A device that is full ends the crawl with what it says, and exit code 1; a closed stdout is refused."""
    with Site({"/": page("/a"), "/a": page()}) as site, open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "duodao", "crawl", site.url, *QUICK]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("duodao: stopped: [Errno 28] No space left on device\n")
        assert "Traceback" not in done.stderr
        shell = ["sh", "-c", 'exec "$@" >&-', "sh", *argv]
        done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, "duodao: the output stdout can't be written: it is closed\n")


def test_nothing_is_needed_for_the_help(tmp_path):
    """Without the extra's packages `duodao --help` works, and `duodao crawl` says what to install."""
    program = (
        "import sys\n"
        "for name in ('ada_url', 'aiohttp', 'selectolax', 'protego'): sys.modules[name] = None\n"
        "from duodao.cli.main import main; main(sys.argv[1:])"
    )
    for argv, code, text in (["--help"], 0, "crawl"), (["crawl", "http://x/"], 2, "pip install 'duodao[crawl]'"):
        done = subprocess.run([sys.executable, "-c", program, *argv], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code
        assert text in done.stdout + done.stderr


def test_ctrl_c_finishes_what_is_under_way(tmp_path):
    """After the first one nothing new is fetched; what was asked for is written; exit code 130."""
    held = Held()
    with held.site as site:
        argv = ["crawl", f"{site.url}/0", "-o", "out.jsonl", "--rate", "none", "--no-progress"]  # one at a time
        with Program(*argv, cwd=tmp_path) as program:
            assert held.reached.wait(30)
            program.process.send_signal(signal.SIGINT)
            program.until("finishing what is in flight")
            held.go.set()
            assert program.end() == 130
            assert "found and not fetched" in program.said
            assert "Traceback" not in program.said
        titles = {line["title"] for line in lines(tmp_path / "out.jsonl")}
        assert titles == {str(n) for n in range(21)}
        assert set(site.hits) == {"/robots.txt", *(f"/{n}" for n in range(21))}


def test_kill_9_and_the_same_command_again(tmp_path):
    """What the journal had is not fetched again, nothing is lost, and the output is as of an undisturbed crawl."""
    held = Held()
    with held.site as site:
        argv = ["crawl", f"{site.url}/0", "-o", "out.jsonl", "--journal", "crawl.journal", *QUICK]
        with Program(*argv, cwd=tmp_path) as program:
            assert held.reached.wait(30)
            program.process.kill()
            program.process.wait()
        held.go.set()
        with library.Journal.inspect(tmp_path / "crawl.journal") as seen:
            recorded = {outcome.input.url.removeprefix(site.url) for outcome in seen.outcomes()}
        assert 10 < len(recorded) < COUNT
        before = site.hits.copy()
        assert duodao(*argv, cwd=tmp_path).returncode == 0
        again = site.hits - before
        assert set(again).isdisjoint(recorded)
        assert set(site.hits) == {"/robots.txt", *(f"/{n}" for n in range(COUNT))}
        assert all(count == 1 for count in again.values())
        assert sorted(int(line["title"]) for line in lines(tmp_path / "out.jsonl")) == list(range(COUNT))

        before, written = site.hits.copy(), lines(tmp_path / "out.jsonl")
        done = duodao("resume", "crawl.journal", cwd=tmp_path)
        assert done.returncode == 0
        assert site.hits == before
        assert titled(lines(tmp_path / "out.jsonl")) == titled(written)


def test_a_journal_goes_deeper(tmp_path):
    """Another depth with the same journal: only what is new is fetched; what is recorded is not paced."""
    with numbered() as site:
        argv = ["crawl", f"{site.url}/0", "-o", "out.jsonl", "--journal", "crawl.journal", *QUICK]
        assert duodao(*argv, "--depth", "1", cwd=tmp_path).returncode == 0
        assert len(lines(tmp_path / "out.jsonl")) == 6
        assert duodao(*argv, "--depth", "3", cwd=tmp_path).returncode == 0
        assert len(lines(tmp_path / "out.jsonl")) == 16
        assert duodao(*argv, "--depth", "3", "--rate", "1/m", cwd=tmp_path).returncode == 0
        assert set(site.hits.values()) == {1}
