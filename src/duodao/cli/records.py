"""Files and stdin as items: lines, JSON values, CSV rows, each read when its turn comes."""

from __future__ import annotations

import csv
import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any

from duodao import Rejected
from duodao.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KINDS = (".txt", ".jsonl", ".csv")
COUNTED = 256 * 1024 * 1024
"""Bytes of all files together up to which their items are counted first, for the ETA: a fraction of a second."""

_CHUNK = 1 << 16


class Malformed(ValueError):
    """A line or record of an input file that can't be read; the text names file and line."""


def kind(name: str) -> str:
    """The ending that decides how a file is read."""
    return os.path.splitext(name)[1].lower()


class Stdin:
    """The items of stdin, which are bytes that end with `end`, decoded so that any path round-trips."""

    def __init__(self, end: bytes) -> None:
        self._end = end

    def __iter__(self) -> Iterator[str]:
        # Not sys.stdin: at exit the interpreter wants the lock that a reading thread holds. Unbuffered, so that a line
        # that is typed or piped is an item at once. Blocking, because another program may have changed our pipe.
        os.set_blocking(0, True)
        with open(0, "rb", buffering=0, closefd=False) as stream:
            yield from map(os.fsdecode, pieces(stream, self._end))


def pieces(stream: IO[bytes], end: bytes) -> Iterator[bytes]:
    """What `end` separates; a carriage return before a newline goes with it. A last piece needs no `end`."""
    rest: list[bytes] = []
    while chunk := stream.read(_CHUNK):
        first, *others = chunk.split(end)
        rest.append(first)
        if others:
            *whole, last = others
            yield _strip(b"".join(rest), end)
            for piece in whole:
                yield _strip(piece, end)
            rest = [last]
    if tail := b"".join(rest):
        yield _strip(tail, end)


def _strip(piece: bytes, end: bytes) -> bytes:
    return piece.removesuffix(b"\r") if end == b"\n" else piece


class Files:
    """The items of several files, one after the other."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[Any]:
        for name in self._names:
            yield from Stdin(b"\n") if name == "-" else _read(name)


class CountedFiles(Files):
    """The same with a length, which gives the run a total and an ETA."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._length = sum(1 for _ in self)

    def __len__(self) -> int:
        return self._length


def files(names: Sequence[str]) -> Iterable[Any]:
    """The items of these files (`-`: stdin), counted where that is cheap and can be done twice."""
    regular = all(name != "-" and os.path.isfile(name) for name in names)
    return CountedFiles(names) if regular and sum(map(os.path.getsize, names)) <= COUNTED else Files(names)


def _read(name: str) -> Iterator[Any]:
    if kind(name) == ".jsonl":
        return _values(name)
    return _rows(name) if kind(name) == ".csv" else _lines(name)


def _lines(name: str) -> Iterator[str]:
    with open(name, "rb", buffering=0) as stream:  # unbuffered: what comes through a FIFO is an item at once
        for number, line in enumerate(pieces(stream, b"\n")):
            yield os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line)


def _values(name: str) -> Iterator[Any]:
    with open(name, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if not line:
                continue  # a blank line holds no value
            try:
                yield json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                text = line.decode("utf-8", "backslashreplace")
                yield Rejected(text, Malformed(f"{name}:{number}: {_what(error)}"))


def _what(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start + 1}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return f"not JSON: {error}"


def _reader(stream: Iterable[str]) -> Any:
    csv.field_size_limit(sys.maxsize)  # the default refuses a field over 128 KB, which a column of texts easily has
    return csv.reader(stream, strict=True)


def _open_csv(name: str) -> IO[str]:
    return open(name, encoding="utf-8-sig", errors="surrogateescape", newline="")


def check_header(name: str) -> None:
    """Refuse a CSV file without a usable first row. Raises UsageError."""
    with _open_csv(name) as stream:
        reader = _reader(stream)
        try:
            header = _header(reader)
        except csv.Error as error:
            raise UsageError(f"{name}:{reader.line_num}: not CSV: {error}") from None
    twice = sorted({field for field in header if header.count(field) > 1})
    if twice:
        raise UsageError(f"{name}:{reader.line_num}: the header names {', '.join(map(repr, twice))} more than once")


def _header(reader: Iterator[list[str]]) -> list[str]:
    return next(filter(None, reader), [])  # blank lines before it are as little a record as those after it


def _rows(name: str) -> Iterator[Any]:
    with _open_csv(name) as stream:
        reader = _reader(stream)
        header = _header(reader)
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Rejected("", Malformed(f"{name}:{start}: not CSV: {error}"))
                continue
            if row:
                yield _row(header, row, f"{name}:{start}")


def _row(header: list[str], row: list[str], where: str) -> Any:
    if len(row) != len(header):
        error = f"{where}: {len(row)} fields, the header has {len(header)}"
        return Rejected(row, Malformed(error))
    try:
        "".join(row).encode("utf-8")
    except UnicodeEncodeError:
        text = [field.encode("utf-8", "backslashreplace").decode() for field in row]
        return Rejected(text, Malformed(f"{where}: not UTF-8"))
    return dict(zip(header, row, strict=True))
