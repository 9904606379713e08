"""The frontier: what may be fetched next, and when; one clock, moved by the test."""

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao_crawl.frontier import Frontier
from duodao_crawl.page import Request
from duodao_crawl.robots import ALL, Rules
from duodao_crawl.settings import Settings

A, B = "http://a", "http://b"


class Bench:
    """A frontier whose time the test moves. `out()` takes all that may go out now, and says when to look again."""

    def __init__(self, known=(), **settings):
        self.now, self.refused, self.known = 100.0, [], set(known)
        settings = {"robots": False, "rate": 1.0, **settings}
        self.frontier = Frontier(
            Settings(**settings), known=self.known.__contains__, clock=lambda: self.now,
            refused=lambda url, why: self.refused.append(url),
        )  # fmt: skip
        self.add, self.done, self.landed = self.frontier.add, self.frontier.done, self.frontier.landed

    def out(self, after=0.0, started=True):
        """started: each request that isn't known goes out as soon as it is handed out."""
        self.now += after
        found = []
        while True:
            request, self.wait = self.frontier.take(self.now)
            if request is None:
                return found
            found.append(request)
            if started and request not in self.known:
                self.frontier.started(request)

    def urls(self, after=0.0):
        return [request.url for request in self.out(after)]


def test_one_host_is_paced():
    """One request a second, and one at a time: the next when the last has landed and the second is over."""
    bench = Bench()
    bench.add([f"{A}/1", f"{A}/2", f"{A}/3"], 0)
    assert bench.urls() == [f"{A}/1"]
    assert bench.urls(5.0) == []
    bench.landed(Request(f"{A}/1"))
    assert bench.urls() == [f"{A}/2"]
    bench.landed(Request(f"{A}/2"))
    assert bench.urls() == []
    assert bench.wait == pytest.approx(1.0)
    assert bench.urls(0.5) == []
    assert bench.urls(0.5) == [f"{A}/3"]


def test_the_next_is_timed_from_the_start_of_the_last():
    """However long it takes from here to the wire, the next one is a second behind; one that never starts is over."""
    bench = Bench(per_host=4)
    bench.add([f"{A}/{n}" for n in range(5)], 0)
    assert bench.out(started=False) == [Request(f"{A}/0")]
    assert bench.urls(30.0) == []
    bench.frontier.started(Request(f"{A}/0"))
    assert bench.urls(0.9) == []
    assert bench.out(0.1, started=False) == [Request(f"{A}/1")]
    bench.landed(Request(f"{A}/1"))
    assert bench.urls() == [f"{A}/2"]


def test_hosts_take_turns():
    """Each host has its own pace; they go out side by side."""
    bench = Bench(rate=None, per_host=2)
    bench.add([f"{A}/1", f"{A}/2", f"{A}/3", f"{B}/1", f"{B}/2", f"{B}/3"], 0)
    assert sorted(bench.urls()) == [f"{A}/1", f"{A}/2", f"{B}/1", f"{B}/2"]
    bench.landed(Request(f"{B}/1"))
    assert bench.urls() == [f"{B}/3"]


def test_http_and_https_of_a_name_are_one_server():
    """They share its pace and its connections; another port does not."""
    bench = Bench()
    bench.add(["http://a/1", "https://a/1", "https://a:444/1"], 0)
    assert bench.urls() == ["http://a/1", "https://a:444/1"]
    bench.landed(Request("http://a/1"))
    assert bench.urls(0.9) == []
    assert bench.urls(0.1) == ["https://a/1"]


def test_all_hosts_together_are_bounded():
    """concurrency=3: a fourth request goes out when one has landed."""
    bench = Bench(rate=None, concurrency=3)
    bench.add([f"http://h{n}/" for n in range(10)], 0)
    first = bench.urls()
    assert len(first) == 3
    bench.landed(Request(first[0]))
    assert len(bench.urls()) == 1
    bench.done(Request(first[0]))
    assert bench.urls() == []
    bench.done(Request(first[1]))
    assert len(bench.urls()) == 1


def test_a_url_is_queued_once():
    """Also when it was fetched long ago."""
    bench = Bench(rate=None)
    bench.add([f"{A}/1", f"{A}/1"], 0)
    assert bench.urls() == [f"{A}/1"]
    bench.done(Request(f"{A}/1"))
    bench.add([f"{A}/1"], 3)
    assert bench.urls() == []


def test_robots_comes_first():
    """Nothing but robots.txt goes out before it is known; then its rules and its delay hold."""
    bench = Bench(robots=True, rate=10.0)
    bench.add([f"{A}/1", f"{A}/no", f"{A}/2"], 0)
    (robots,) = bench.out()
    assert robots == Request(f"{A}/robots.txt", robots=True)
    bench.landed(robots)
    assert bench.urls(4.0) == []
    bench.frontier.rule(robots, Rules(lambda url: not url.endswith("no"), delay=7.0))
    bench.done(robots)
    assert bench.urls(2.9) == []  # its delay holds behind robots.txt itself, too
    assert bench.urls(0.1) == [f"{A}/1"]
    bench.done(Request(f"{A}/1"))
    assert bench.urls(6.5) == []
    assert bench.urls(0.5) == [f"{A}/2"]
    assert bench.refused == [f"{A}/no"]


def test_robots_of_two_hosts_in_one_place():
    """A robots.txt that is moved to another host's is asked for once, and holds for both."""
    bench = Bench(robots=True, rate=None)
    bench.add([f"{A}/1", f"{B}/1"], 0)
    of_a, of_b = sorted(bench.out())
    bench.frontier.moved(of_a, of_b.url)
    bench.done(of_a)
    assert bench.out() == []
    bench.frontier.rule(of_b, ALL)
    bench.done(of_b)
    assert sorted(bench.urls()) == [f"{A}/1", f"{B}/1"]


def test_another_attempt_waits_alone_or_with_its_host():
    """After a network error the URL waits, others go on; after a Retry-After the host waits."""
    bench = Bench(rate=None)
    bench.add([f"{A}/1", f"{A}/2", f"{A}/3"], 0)
    bench.out()
    bench.frontier.again(Request(f"{A}/1", 2), 5.0)
    bench.done(Request(f"{A}/1"))
    assert bench.urls() == [f"{A}/2"]
    bench.frontier.again(Request(f"{A}/2", 2), 9.0, everyone=True)
    bench.done(Request(f"{A}/2"))
    assert bench.urls(8.0) == []
    assert bench.out(1.0) == [Request(f"{A}/1", 2)]
    bench.done(Request(f"{A}/1", 2))
    assert bench.out() == [Request(f"{A}/2", 2)]
    bench.done(Request(f"{A}/2", 2))
    assert bench.urls() == [f"{A}/3"]


def test_what_the_journal_has_is_not_paced():
    """Recorded requests go out at once, without a slot; the others keep their pace."""
    known = [Request(f"{A}/{n}") for n in range(50)]
    bench = Bench(known)
    bench.add([f"{A}/{n}" for n in range(52)], 0)
    assert len(bench.out()) == 51
    for request in known:
        bench.landed(request)
        bench.done(request)
    assert bench.out() == []
    bench.done(Request(f"{A}/50"))
    assert bench.out(1.0) == [Request(f"{A}/51")]


def test_a_recorded_attempt_does_not_wait():
    """A retry that the journal holds comes at once, whatever its wait was, and before those that do wait."""
    later = Request(f"{A}/1", 2)
    bench = Bench([later])
    bench.add([f"{A}/1"], 0)
    bench.out()
    bench.frontier.again(Request(f"{A}/0", 2), 60.0)
    bench.frontier.again(later, 3600.0)
    bench.done(Request(f"{A}/1"))
    assert bench.out() == [later]


def test_max_pages_counts_urls():
    """Two URLs go out, with all their attempts; what is left is counted."""
    bench = Bench(rate=None, max_pages=2, per_host=9)
    bench.add([f"{A}/{n}" for n in range(5)], 0)
    assert len(bench.out()) == 2
    bench.frontier.again(Request(f"{A}/0", 2), 0.0)
    bench.done(Request(f"{A}/0"))
    assert bench.out() == [Request(f"{A}/0", 2)]
    assert bench.frontier.left() == 3


def test_the_last_page_of_max_pages_hurries_no_retry():
    """A host that has a retry waiting, and no room any more for its next URL, keeps waiting."""
    bench = Bench(rate=None, max_pages=2)
    bench.add([f"{A}/1", f"{A}/2"], 0)
    bench.out()
    bench.frontier.again(Request(f"{A}/1", 2), 60.0)
    bench.done(Request(f"{A}/1"))
    bench.add([f"{B}/1"], 0)
    assert bench.urls() == [f"{B}/1"]
    assert bench.out(59.0) == []
    assert bench.out(1.0) == [Request(f"{A}/1", 2)]


def test_the_depth_is_of_the_shortest_way():
    """Also when that was found while the URL waited, or was out."""
    bench = Bench(rate=None)
    for depth in (7, 3, 5):
        bench.add([f"{A}/1"], depth)
    bench.out()
    assert bench.frontier.depth(f"{A}/1") == 3
    bench.add([f"{A}/1"], 2)
    assert bench.frontier.depth(f"{A}/1") == 2


def test_it_ends_when_nothing_can_come():
    """The iterator waits as long as a page is out, which may bring links; then it ends."""
    frontier = Frontier(Settings(robots=False, rate=None))
    frontier.add([f"{A}/1"], 0)
    seen, moved = [], threading.Semaphore(0)

    def read():
        for request in frontier:
            seen.append(request.url)
            moved.release()

    reader = threading.Thread(target=read)
    reader.start()
    assert moved.acquire(timeout=10)
    frontier.add([f"{A}/2"], 1)
    frontier.done(Request(f"{A}/1"))
    assert moved.acquire(timeout=10)
    assert reader.is_alive()
    frontier.done(Request(f"{A}/2"))
    reader.join(10)
    assert not reader.is_alive()
    assert seen == [f"{A}/1", f"{A}/2"]
    frontier.close()


def test_close_wakes_who_waits():
    """A frontier that is closed ends its iterator, although a page is out."""
    frontier = Frontier(Settings(robots=False))
    frontier.add([f"{A}/1"], 0)
    assert next(frontier) == Request(f"{A}/1")
    reader = threading.Thread(target=lambda: list(frontier))
    reader.start()
    frontier.close()
    reader.join(10)
    assert not reader.is_alive()


@given(
    st.dictionaries(st.integers(0, 14), st.lists(st.integers(0, 14), max_size=5), max_size=15),
    st.integers(1, 3), st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_graph_in_any_order(links, per_host, concurrency, robots, random):
    """Whatever links to what, and whatever comes back first: each page that can be reached goes out once, within the
    bounds of its host and of all, and then it ends."""
    url = "http://h{}/{}".format
    settings = Settings(robots=robots, rate=None, per_host=per_host, concurrency=concurrency)
    frontier = Frontier(settings, clock=lambda: 1.0)
    frontier.add([url(0, 0)], 0)
    air, landed, seen = [], [], []
    while True:
        while (request := frontier.take(1.0)[0]) is not None:
            frontier.started(request)
            air.append(request)
            seen.append(request.url)
            hosts = Counter(out.url.split("/")[2] for out in air)
            assert len(air) <= concurrency
            assert max(hosts.values()) <= per_host
        if air and (not landed or random.random() < 0.5):
            landed.append(air.pop(random.randrange(len(air))))
            frontier.landed(landed[-1])
        elif landed:
            request = landed.pop(random.randrange(len(landed)))
            if request.robots:
                frontier.rule(request, ALL)
            else:
                at = int(request.url.rpartition("/")[2])
                frontier.add([url(n % 3, n) for n in links.get(at, ())], frontier.depth(request.url) + 1)
            frontier.done(request)
        else:
            break
    reached, waiting = {0}, [0]
    while waiting:
        fresh = set(links.get(waiting.pop(), ())) - reached
        reached |= fresh
        waiting += fresh
    pages = [page for page in seen if not page.endswith("robots.txt")]
    assert sorted(pages) == sorted(url(n % 3, n) for n in reached)
    assert len(seen) - len(pages) == (len({n % 3 for n in reached}) if robots else 0)
