"""Which items INPUT… means, and which INPUTs are refused."""

from __future__ import annotations

import os

import pytest

from duodao import Rejected
from duodao.cli.inputs import open_inputs
from duodao.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lines_of_a_text_file_are_items(folder):
    """Line ends of both kinds go, an empty line stays an item, a last line needs no end, a byte order mark goes."""
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ntwo\nthree")
    assert list(open_inputs(["a.txt"])) == ["one", "", "two", "three"]


def test_lines_longer_than_a_read_are_whole(folder):
    """A line is joined from as many reads as it takes."""
    long = "x" * 200_000
    (folder / "a.txt").write_text(f"{long}\nshort\n{long}")
    assert list(open_inputs(["a.txt"])) == [long, "short", long]


def test_undecodable_bytes_round_trip(folder):
    """A line that isn't UTF-8 becomes a text that os.fsencode turns into the same bytes."""
    (folder / "a.txt").write_bytes(b"caf\xe9\n")
    (item,) = open_inputs(["a.txt"])
    assert os.fsencode(item) == b"caf\xe9"


def test_values_of_a_jsonl_file_are_items(folder):
    """One value per line, blank lines hold none."""
    (folder / "a.jsonl").write_text('{"a": 1}\n\n[2]\n"three"\nnull')
    assert list(open_inputs(["a.jsonl"])) == [{"a": 1}, [2], "three", None]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{oops}", "a.jsonl:2: not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'"\xff"', "a.jsonl:2: not UTF-8 at byte 2"),
        (b"[" * 100_000, "a.jsonl:2: not JSON: "),
        (b"1" * 10_000, "a.jsonl:2: not JSON: "),
    ],
    ids=["syntax", "encoding", "depth", "digits"],
)
def test_malformed_json_line(folder, line, says):
    """A line that is no value is a Rejected in its place, naming file and line; the ones around it are items."""
    (folder / "a.jsonl").write_bytes(b"1\n" + line + b"\n3\n")
    first, rejected, third = open_inputs(["a.jsonl"])
    assert (first, third) == (1, 3)
    assert isinstance(rejected, Rejected)
    assert str(rejected.error).startswith(says)


def test_records_of_a_csv_file_are_items(folder):
    """A dict per record; quoted line ends stay inside their field; the BOM of a spreadsheet is no part of a name."""
    (folder / "a.csv").write_bytes('\ufeffname,age\r\nAda,36\r\n"Bob\nB.",7\r\n\r\n'.encode())
    assert list(open_inputs(["a.csv"])) == [{"name": "Ada", "age": "36"}, {"name": "Bob\nB.", "age": "7"}]


def test_malformed_csv_records(folder):
    """Too few or too many fields, a stray quote or a wrong encoding is that record's error, with file and line."""
    (folder / "a.csv").write_bytes(b'a,b\n1,2\n3\n4,5,6\n"x"y,2\n\xff,1\n7,8\n')
    items = list(open_inputs(["a.csv"]))
    errors = [str(item.error) for item in items if isinstance(item, Rejected)]
    assert [item for item in items if not isinstance(item, Rejected)] == [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}]
    assert errors[0] == "a.csv:3: 1 fields, the header has 2"
    assert errors[1] == "a.csv:4: 3 fields, the header has 2"
    assert errors[2].startswith("a.csv:5: not CSV: ")
    assert errors[3] == "a.csv:6: not UTF-8"


def test_files_follow_each_other_and_are_counted(folder):
    """Several files are one input, with a length that counts every item of every kind."""
    (folder / "a.txt").write_text("1\n2\n")
    (folder / "b.jsonl").write_text("3\n\nx\n")
    (folder / "c.csv").write_text("n\n4\n")
    items = open_inputs(["a.txt", "b.jsonl", "c.csv"])
    assert len(items) == 5
    assert len(list(items)) == 5


def test_paths_are_items_directories_recursively_in_order(folder):
    """--paths: files as they were given, directories with all that is below, sorted; its own output is left out."""
    for name in ("d/b.xml", "d/a.xml", "d/sub/c.xml", "d/note.txt", "d/out.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "z.xml").touch()
    found = open_inputs(["z.xml", "d"], paths=True, match="*.xml", ours=["d/out.jsonl"])
    assert found == ["z.xml", "d/a.xml", "d/b.xml", "d/sub/c.xml"]
    assert "d/out.jsonl" not in open_inputs(["d"], paths=True, ours=["d/out.jsonl"])
    assert open_inputs(["d"], paths=True, match="sub/*.xml") == ["d/sub/c.xml"]


def test_paths_that_do_not_decode_round_trip(folder):
    """A file name that isn't UTF-8 is an item from which the file can be opened."""
    raw = os.fsencode(folder) + b"/d"
    os.mkdir(raw)
    with open(raw + b"/caf\xe9", "w") as file:
        file.write("here")
    (path,) = open_inputs(["d"], paths=True)
    with open(path) as file:
        assert file.read() == "here"


def test_one_file_of_another_kind_is_lines_and_says_so(folder, capsys):
    """A single file with another ending is read by lines, and a line on stderr tells the other way."""
    (folder / "urls").write_text("a\nb\n")
    assert list(open_inputs(["urls"])) == ["a", "b"]
    assert "--paths" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ([], {}, "no INPUT"),
        (["nothing.txt"], {}, "no such file: nothing.txt"),
        (["a.xml", "b.xml"], {}, "a.xml is no .txt, .jsonl or .csv file"),
        (["a.txt", "b.xml"], {}, "--paths"),
        (["d"], {}, "d is a directory"),
        (["-", "-"], {}, "- can be given once"),
        (["a.txt"], {"match": "*.txt"}, "--match needs --paths"),
        (["a.txt"], {"nul": True}, "-0 is for stdin"),
        (["-"], {"paths": True}, "every INPUT is a path"),
        ([], {"paths": True}, "--paths needs"),
        (["gone"], {"paths": True}, "no such file: gone"),
        (["a.txt"], {"ours": ["./a.txt"]}, "a.txt is an INPUT and an output"),
        (["twice.csv"], {}, "twice.csv:1: the header names 'a' more than once"),
    ],
)
def test_refused(folder, inputs, options, says):
    """What can't be meant is refused before anything starts, in one line that says what to do."""
    for name in ("a.xml", "b.xml", "a.txt"):
        (folder / name).touch()
    (folder / "d").mkdir()
    (folder / "twice.csv").write_text("a,b,a\n")
    with pytest.raises(UsageError) as caught:
        open_inputs(inputs, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blank_lines_before_a_csv_header_are_none(folder):
    """The first row that has something names the fields, as blank lines further down are no records."""
    (folder / "a.csv").write_text("\n\na,b\n\n1,2\n")
    assert list(open_inputs(["a.csv"])) == [{"a": "1", "b": "2"}]
