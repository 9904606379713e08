"""robots.txt: what it allows, for whom, and whose it is."""

from duodao_crawl import robots
from duodao_crawl.robots import ALL, Desk, Rules

TEXT = """
User-agent: *
Disallow: /private
Allow: /private/open
Crawl-delay: 2

User-agent: rude
Disallow: /
"""


def test_rules_and_delay():
    """The longest match counts; the delay is the host's own."""
    rules = robots.read(TEXT, "duodao-crawl/0.1")
    assert rules.allows("http://a/x")
    assert rules.allows("http://a/private/open/x")
    assert not rules.allows("http://a/private/x")
    assert rules.delay == 2.0


def test_the_agents_name_is_what_stands_before_the_slash():
    """Rules for one agent hold for it alone."""
    assert not robots.read(TEXT, "Rude/7 (+http://rude.example)").allows("http://a/x")


def test_a_delay_of_a_year_is_cut():
    """A host can't hold up a crawl for ever."""
    assert robots.read("User-agent: *\nCrawl-delay: 1e9", "x").delay == robots.SLOWEST
    assert robots.read("User-agent: *\nCrawl-delay: -5", "x").delay == 0.0
    assert robots.read("User-agent: *\nCrawl-delay: soon", "x").delay == 0.0
    assert robots.read("User-agent: *\nCrawl-delay: nan", "x").delay == 0.0


def test_a_rate_with_hundreds_of_digits():
    """Is a delay like any other: the longest, or none."""
    many = "9" * 400
    assert robots.read(f"User-agent: *\nRequest-rate: 1/{many}", "x").delay == robots.SLOWEST
    assert robots.read(f"User-agent: *\nRequest-rate: {many}/1", "x").delay == 0.0
    assert robots.read("User-agent: *\nRequest-rate: 2/1m", "x").delay == 30.0


def test_many_wildcards_take_no_time():
    """A rule of wildcards is looked for from left to right, once: no URL makes it try all ways (and time out here)."""
    rules = robots.read(f"User-agent: *\nDisallow: /{'*a' * 50}b\n", "x")
    assert rules.allows(f"http://a/{'a' * 1900}")
    assert not rules.allows(f"http://a/{'a' * 1900}b")


def test_noise():
    """Text that is no robots.txt allows everything."""
    assert robots.read("<html>\0\ufffd: :\n:::\nDisallow", "x").allows("http://a/x")


def test_one_answer_for_all_who_wait():
    """Two hosts whose robots.txt lead to the same place: it is fetched once."""
    desk = Desk()
    assert desk.ask("a/robots.txt", ["a"]) == (True, [])
    assert desk.ask("b/robots.txt", ["b"]) == (True, [])
    assert desk.moved("a/robots.txt", "c") == (True, [])
    assert desk.moved("b/robots.txt", "c") == (False, [])
    rules = Rules(lambda _: False)
    assert desk.answer("c", rules) == [("a", rules), ("b", rules)]
    assert desk.ask("c", ["d"]) == (False, [("d", rules)])


def test_a_circle_of_redirects_ends():
    """Beyond five hops it is as if there were none."""
    desk = Desk()
    desk.ask("0", ["a"])
    for hop in range(robots.HOPS):
        assert desk.moved(str(hop), str(hop + 1)) == (True, [])
    assert desk.moved("5", "6") == (False, [("a", ALL)])


def test_a_robots_txt_that_leads_to_itself():
    """It is as if there were none: the same request is not made again while it is out."""
    desk = Desk()
    desk.ask("0", ["a"])
    assert desk.moved("0", "0") == (False, [("a", ALL)])
