"""Option texts and what they mean to the Python API."""

from __future__ import annotations

import click
import pytest

from duodao import Rate, Retry
from duodao.cli import options
from duodao.errors import UsageError

BARE = {
    "lane": "auto", "workers": None, "timeout": None, "seed": None, "max_memory": None, "star": False, "rate": (),
    "common": (), "setup": (), "retries": None, "retry_first": None, "retry_factor": None, "retry_at_most": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.Seconds(), "30", 30.0),
        (options.Seconds(), "1.5s", 1.5),
        (options.Seconds(), "500ms", 0.5),
        (options.Seconds(), "2m", 120.0),
        (options.Seconds(), "1h", 3600.0),
        (options.Seconds(zero=True), "0", 0.0),
        (options.Size(), "65536", 65536),
        (options.Size(), "500M", 500 << 20),
        (options.Size(), "1.5g", 3 << 29),
        (options.Size(), "2GiB", 2 << 30),
        (options.Limit(), "10", Rate(10)),
        (options.Limit(), "100/60s", Rate(100, 60)),
        (options.Limit(), "5/m", Rate(5, 60)),
        (options.Limit(), "0.5/s", Rate(0.5)),
        (options.Share(), "10", 10),
        (options.Share(), "0", 0),
        (options.Share(), "5%", 0.05),
        (options.Width(), "8", 8),
        (options.Width(), "2,50", (2, 50)),
    ],
)
def test_texts_and_their_values(kind, text, value):
    """Times, sizes, rates and shares in the forms that people write."""
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(options.Seconds(), t) for t in ("", "0", "-1", "nan", "inf", "1d", "1..2", "x", "9999999h")]
    + [(options.Size(), t) for t in ("0", "-1", "M", "1X", "lots")]
    + [(options.Limit(), t) for t in ("0", "-1", "1/0s", "x", "10/", "/s", "1/2/3", "1/9999999h")]
    + [(options.Share(), t) for t in ("-1", "0%", "100%", "1.5", "x%", "%")],
)
def test_texts_that_mean_nothing(kind, text):
    """What is no time, size, rate or share is refused with the text and the valid forms."""
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(text, None, None)
    assert repr(text) in str(caught.value)


def test_only_what_was_given_is_passed_on():
    """Options that weren't given leave the API's own defaults in force."""
    assert options.stage_arguments(BARE) == {"lane": "auto"}


def test_stage_arguments():
    """Every stage option arrives under the API's name and with its type."""
    given = {
        **BARE, "workers": 3, "star": True, "rate": (Rate(1),), "common": ("a=1", 'b="x"'), "retries": 2,
        "retry_first": 0.5, "retry_at_most": 9.0,
    }  # fmt: skip
    assert options.stage_arguments(given) == {
        "lane": "auto", "workers": 3, "star": True, "rate": [Rate(1)], "common": {"a": 1, "b": "x"},
        "retries": Retry(2, first=0.5, at_most=9.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"common": ("a",)}, "--common a: NAME=… is needed"),
        ({"common": ("a-b=1",)}, "--common a-b=1: NAME=… is needed"),
        ({"common": ("a=x",)}, "--common a: 'x' is not JSON"),
        ({"common": ("a=1", "a=2")}, "--common a is given twice"),
        ({"setup": ("db=gone.py:f",)}, "--setup db: no such file: gone.py"),
        ({"retry_first": 1.0}, "need --retries"),
    ],
)
def test_stage_arguments_refused(change, says):
    """A NAME=… that is wrong is named with its option."""
    with pytest.raises(UsageError) as caught:
        options.stage_arguments({**BARE, **change})
    assert says in str(caught.value)


def test_key():
    """--key is a word, or a function of a file; anything else names these."""
    assert options.key(None) is None
    assert options.key("mtime") == "mtime"
    with pytest.raises(UsageError, match="content, mtime or FILE.py:FUNC"):
        options.key("size")
