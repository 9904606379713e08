"""What a Command means: placeholders, quoting, what is refused, and its name in a journal."""

from __future__ import annotations

import os
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duodao import Command
from duodao.channel.identity import fingerprint
from duodao.errors import UsageError
from duodao.lanes.program import Words, as_stdin, encoded

PATHS = {  # as GNU parallel 20221122 prints them
    "a.jpg": ["a.jpg", "a", "a.jpg", ".", "a"],
    "dir.d/b c.tar.gz": ["dir.d/b c.tar.gz", "dir.d/b c.tar", "b c.tar.gz", "dir.d", "b c.tar"],
    "/x.y/noext": ["/x.y/noext", "/x.y/noext", "noext", "/x.y", "noext"],
    "/top": ["/top", "/top", "top", "/", "top"],
    "a/b/": ["a/b/", "a/b/", "", "a", ""],
    ".bashrc": [".bashrc", "", ".bashrc", ".", ""],
    "x.": ["x.", "x", "x.", ".", "x"],
    "": ["", "", "", ".", ""],
}


@pytest.mark.parametrize("item", PATHS)
def test_placeholders(item):
    """{}, {.}, {/}, {//} and {/.} are what GNU parallel makes of them, anywhere in a word, several times."""
    words = Words(Command(["p", "{}", "{.}", "{/}", "{//}", "{/.}"]))
    assert words.fill(item) == ["p", *PATHS[item]]
    assert Words(Command("p a{.}b{.}c")).fill(item) == ["p", f"a{PATHS[item][1]}b{PATHS[item][1]}c"]


def test_what_is_put_in_is_not_looked_at_again():
    """An item that contains a placeholder, a space or a quote stays as it is, and is one word."""
    assert Words(Command("p {} x")).fill("{.} 'a\" $(id)") == ["p", "{.} 'a\" $(id)", "x"]


def test_without_placeholder_the_item_is_the_last_word():
    """A command with no placeholder gets the item at its end; with stdin='item' it gets none."""
    assert Words(Command("wc -l")).fill("a b") == ["wc", "-l", "a b"]
    assert Words(Command("wc -l", stdin="item")).fill("a b") == ["wc", "-l"]
    assert Words(Command("p {/}", stdin="item")).fill("a/b") == ["p", "b"]


@pytest.mark.parametrize(
    ("item", "text"),
    [(7, "7"), (2.5, "2.5"), (Path("a/b"), "a/b"), (b"\xff", "\udcff"), (Decimal("1.10"), "1.10"), ("-rf", "-rf")],
)
def test_items_that_are_words(item, text):
    """Numbers, paths and bytes are words; one that starts with '-' is passed on."""
    assert Words(Command("p {}")).fill(item) == ["p", text]
    assert as_stdin(item) == os.fsencode(text)


@pytest.mark.parametrize("item", [("a", "b"), ["a"], {"a": 1}, None, True])
def test_items_that_are_no_words(item):
    """What has no one text is refused, with what to do."""
    with pytest.raises(UsageError, match=r"json\.dumps"):
        Words(Command("p {}")).fill(item)


def test_nul_is_refused_by_name():
    """A NUL character can be in no argument: the error says so, for an item and for the command itself."""
    with pytest.raises(UsageError, match="NUL"):
        Words(Command("p {}")).fill("a\0b")
    with pytest.raises(UsageError, match="NUL"):
        Command(["p", "a\0"])


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_the_shell_sees_the_item_as_one_word(item):
    """Whatever the item holds, /bin/sh hands it on as it is."""
    argv = Words(Command("printf '%s|' {} end", shell=True)).fill(item)
    assert subprocess.run(argv, capture_output=True, check=True).stdout == f"{item}|end|".encode()


@pytest.mark.parametrize(
    "line",
    [
        'echo "{}"',
        "echo '{.}'",
        "echo `ls {}`",
        "echo \\{}",
        'x "$(ls {/})"',
        'x "$(ls "{/}" (a) )"',
        "cat <<E\n{}\nE",
    ],
)
def test_placeholders_that_quotes_would_not_protect(line):
    """Where the line's quotes would end the item's own, the command is refused before anything runs."""
    with pytest.raises(UsageError, match="shell=True"):
        Command(line, shell=True)


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("true # {}", "a\necho run"),
        ("true #", "a\necho run"),
        ('true "$(case x in x) true "a {}";; esac)"', "$(echo run >&2)"),
        ('true "${none-"{}"}"', "$(echo run >&2)"),
    ],
)
def test_no_item_is_code(line, item):
    """In a comment, and in quotes nested so that the check of the line loses its way, the shell runs no item."""
    done = subprocess.run(Words(Command(line, shell=True)).fill(item), capture_output=True, check=True)
    assert b"run" not in done.stdout + done.stderr


def test_the_name_of_a_line_with_a_quote_in_a_comment():
    """What is no quote to the shell is none to us: the line has a name and runs."""
    command = Command("printf %s {} # don't", shell=True)
    assert command.name == "printf"
    assert subprocess.run(Words(command).fill("it"), capture_output=True, check=True).stdout == b"it"


@pytest.mark.parametrize("line", ["ls {} | wc -l >{.}.n", "x \"a\" 'b' {}", "x $(ls {})", 'x "\\"" {}', "x '\\' {}"])
def test_placeholders_that_are_bare(line):
    """Quotes and backslashes elsewhere don't matter."""
    assert Words(Command(line, shell=True)).fill("it")[:2] == ["/bin/sh", "-c"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"argv": ""}, "empty"),
        ({"argv": "   ", "shell": True}, "empty"),
        ({"argv": []}, "empty"),
        ({"argv": "a 'b"}, "can't be split"),
        ({"argv": ["a", 1]}, "no str"),
        ({"argv": ["a"], "shell": True}, "one line"),
        ({"argv": "a", "protocol": "xml"}, "'once', 'jsonl'"),
        ({"argv": "a", "stdin": "file"}, "'null', 'item'"),
        ({"argv": "a {}", "protocol": "jsonl"}, "placeholder"),
        ({"argv": "a", "protocol": "jsonl", "stdin": "item"}, "stdin="),
        ({"argv": "a", "max_output": 0}, "max_output"),
        ({"argv": "a", "env": {"A=": "b"}}, "variable"),
        ({"argv": "a", "env": {"A": 1}}, "no str"),
    ],
)
def test_what_is_refused(options, said):
    """What can't be meant is a UsageError before anything starts, and says what is valid."""
    with pytest.raises(UsageError, match=said):
        Command(**options)


def test_json_of_items():
    """Paths are text in JSON; NaN and objects are none."""
    assert encoded({"a": [1, Path("x"), "ü\n"]}) == '{"a":[1,"x","\\u00fc\\n"]}'
    for bad in (float("nan"), {1, 2}, b"x"):
        with pytest.raises((TypeError, ValueError)):
            encoded(bad)


def test_fingerprint(tmp_path):
    """A journal notices other words, another protocol, other variables, and another content of a program named by its
    path; not a limit."""
    script = tmp_path / "score"
    script.write_text("one")
    base = Command([str(script), "{}"])

    def code(command):
        return fingerprint([command]).code

    assert code(base) == code(Command((str(script), "{}"), max_output=5))
    others = [
        Command([str(script), "{.}"]),
        Command([str(script)], protocol="jsonl"),
        Command(base.argv, env={"A": "1"}),
    ]
    assert len({code(command) for command in (base, *others)}) == 4
    before = code(base)
    script.write_text("two")
    assert code(base) != before
    assert fingerprint([base]).names == ("score",)
