"""The journal: what it keeps, what it refuses, what a second run finds in it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duodao.channel import journal_file
from duodao.channel.journal import Counts, Identity, Joined, Journal
from duodao.channel.rows import COLUMNS
from duodao.errors import Closed, JournalBusy, JournalDamaged, JournalMismatch, NotPicklable, UsageError
from duodao.outcome import Outcome

IDENTITY = Identity(("module.f",), "c0de", "f")


class Run:
    """A run without an engine: admits all inputs, computes f(x) = 2x (a string fails), records, finishes."""

    def __init__(self, path, identity=IDENTITY, **options):
        self.journal = Journal(path, **options)
        self.committed = []
        self.errors = []
        self.ran = []
        self.outcomes = {}
        self.journal.open(identity, on_committed=self.committed.extend, on_error=self.errors.append)

    def go(self, items, first=0, limit=None):
        """Work through `items`, of which only the first `limit` new ones run."""
        for at in range(0, len(items), 7):
            part = list(items[at : at + 7])
            ids = range(first + at, first + at + len(part))
            known = self.journal.admit(ids, part)
            self.outcomes.update(known)
            new = [(i, x) for i, x in zip(ids, part, strict=True) if i not in known]
            if limit is not None:
                new, limit = new[:limit], limit - len(new[:limit])
            done = [self.call(i, x) for i, x in new]
            self.ran += [x for _, x in new]
            self.outcomes.update((o.index, o) for o in done)
            assert self.journal.record(done) == []
        return self

    @staticmethod
    def call(i, x):
        if isinstance(x, str):
            return Outcome(i, x, None, ValueError(x), lane="inline")
        return Outcome(i, x, 2 * x, lane="inline")

    def finish(self, complete=True):
        counts = self.journal.finish(complete)
        assert self.errors == []
        return counts


def state(path):
    """(input, value or error text) of everything in the journal, in input order."""
    with Journal.inspect(path) as inspection:
        return [(o.input, o.value if o.ok else repr(o.error)) for o in inspection.outcomes()]


@pytest.fixture
def path(tmp_path):
    """Where a journal may be; in the end nothing else is there."""
    yield str(tmp_path / "run.journal")
    left = set(os.listdir(tmp_path)) - {"run.journal"}
    assert not left, f"left behind: {left}"


def test_first_run(path):
    """Every input runs, every outcome is acknowledged once and kept in input order."""
    run = Run(path).go([3, "bad", 1])
    assert run.finish() == Counts(3, 3, 0, 0)
    assert sorted(run.committed) == [0, 1, 2]
    assert state(path) == [(3, 6), ("bad", "ValueError('bad')"), (1, 2)]


def test_second_run_runs_nothing(path):
    """Finished inputs, failed ones too, come back as Outcomes and never run again."""
    first = Run(path).go([3, "bad", 1])
    first.finish()
    again = Run(path).go([3, "bad", 1])
    assert again.ran == []
    assert again.finish() == Counts(3, 0, 3, 0)
    assert [again.outcomes[i].value for i in range(3)] == [6, None, 2]
    assert type(again.outcomes[1].error) is ValueError


def test_interrupted_run_goes_on(path):
    """What an incomplete run recorded stays; the rest runs; nothing is dropped before all inputs were seen."""
    Run(path).go(range(20), limit=12).finish(complete=False)
    again = Run(path).go(range(20))
    assert again.ran == list(range(12, 20))
    assert again.finish() == Counts(20, 8, 12, 0)
    assert state(path) == [(x, 2 * x) for x in range(20)]


def test_changed_inputs(path):
    """New inputs run, gone ones are dropped and counted, those that moved stand where they now belong."""
    Run(path).go([1, 2, 3, 4, 5]).finish()
    again = Run(path).go([9, 5, 4, 2, 8])
    assert again.ran == [9, 8]
    assert again.finish() == Counts(5, 2, 3, 2)
    assert state(path) == [(x, 2 * x) for x in [9, 5, 4, 2, 8]]


def test_incomplete_run_drops_nothing(path):
    """A run that was stopped doesn't know what is gone."""
    Run(path).go([1, 2, 3]).finish()
    assert Run(path).go([3]).finish(complete=False) == Counts(1, 0, 1, 0)
    assert sorted(state(path)) == [(1, 2), (2, 4), (3, 6)]


def test_equal_inputs_are_told_apart(path):
    """The third of three equal inputs is an input of its own, in this run and in the next."""
    Run(path).go([7, 7, 1, 7], limit=2).finish(complete=False)
    again = Run(path).go([7, 7, 1, 7])
    assert again.ran == [1, 7]
    again.finish()
    fewer = Run(path).go([7, 1])
    assert fewer.finish() == Counts(2, 0, 2, 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=1, max_size=4), st.integers(0, 30))
def test_any_sequence_of_runs(tmp_path_factory, runs, limit):
    """Whatever inputs the runs before had and wherever they stopped, a complete run ends with its own inputs in order,
    and no input runs that a run before had finished and none since had dropped."""
    path = tmp_path_factory.mktemp("runs") / "j"
    for inputs in runs[:-1]:
        Run(path).go(inputs, limit=limit).finish(complete=False)
    final = Run(path).go(runs[-1])
    final.finish()
    assert state(path) == [(x, 2 * x) for x in runs[-1]]
    done: dict[int, int] = {}
    for inputs in runs[:-1]:
        met: dict[int, int] = {}
        left = limit
        for x in inputs:
            met[x] = met.get(x, 0) + 1
            if met[x] > done.get(x, 0) and left:
                done[x], left = met[x], left - 1
    assert len(final.ran) == sum(max(0, runs[-1].count(x) - done.get(x, 0)) for x in set(runs[-1]))


def test_retry_of_failures(path):
    """retry_failed runs what failed and nothing else; its outcome takes the place of the old one."""
    Run(path).go([1, "bad", 2]).finish()
    retry = Run(path, retry_failed=True)
    known = retry.journal.admit(range(3), [1, "bad", 2])
    assert sorted(known) == [0, 2]
    retry.journal.record([Outcome(1, "bad", 42)])
    assert retry.finish() == Counts(3, 1, 2, 0)
    assert state(path) == [(1, 2), ("bad", 42), (2, 4)]
    again = Run(path).go([1, "bad", 2])
    assert again.ran == []
    again.finish()


def test_retry_that_is_cut_off(path):
    """A failure whose second run never ended is still a failure."""
    Run(path).go(["bad"]).finish()
    retry = Run(path, retry_failed=True)
    assert retry.journal.admit([0], ["bad"]) == {}
    retry.finish(complete=False)
    assert state(path) == [("bad", "ValueError('bad')")]


def test_another_function(path):
    """A journal of another function or pipeline is refused, and the way on is named."""
    Run(path).finish()
    for other in (replace(IDENTITY, names=("module.g",)), replace(IDENTITY, shape="f -> batch(3)")):
        with pytest.raises(JournalMismatch, match=r"--fresh"):
            Run(path, other)


def test_another_key(path):
    """A journal that knows its inputs by another key is refused: nothing in it would be found again."""
    Run(path).finish()
    with pytest.raises(JournalMismatch, match="key=content"):
        Run(path, key=len)


def test_changed_code(path):
    """Changed code needs accept_code, which is then remembered; a retry needs nothing and changes nothing."""
    Run(path).go([1, "bad"]).finish()
    changed = replace(IDENTITY, code="0ther")
    with pytest.raises(JournalMismatch, match=r"module\.f has changed.*--accept-code"):
        Run(path, changed)
    Run(path, changed, retry_failed=True).go([1, "bad"]).finish()
    Run(path).go([1, "bad"]).finish()
    Run(path, changed, accept_code=True).go([1, "bad"]).finish()
    last = Run(path, changed).go([1, "bad"])
    assert last.ran == []
    last.finish()


def test_fresh(path):
    """fresh starts over, whosever the journal was."""
    Run(path).go([1, 2]).finish()
    run = Run(path, replace(IDENTITY, names=("module.g",)), fresh=True).go([2])
    assert run.ran == [2]
    run.finish()
    assert state(path) == [(2, 4)]


def test_options_that_contradict(path):
    """fresh and retry_failed together, a wrong key and a wrong path are refused at once."""
    for arguments, options in [((path,), {"fresh": True, "retry_failed": True}), ((path,), {"key": 3}), ((3.5,), {})]:
        with pytest.raises(UsageError):
            Journal(*arguments, **options)


def test_no_such_folder(tmp_path):
    """A journal that can't be made says why, before anything runs."""
    with pytest.raises(UsageError, match="No such file"):
        Run(tmp_path / "nowhere" / "j")
    with pytest.raises(UsageError, match="directory"):
        Run(tmp_path)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("text", [b"name,age\n", b"SQLite format 3\0 and so on", b"x" * 5000])
def test_file_of_the_user(path, text, fresh):
    """A file that is no journal is refused and left as it is, with fresh too."""
    with open(path, "wb") as file:
        file.write(text)
    with pytest.raises(JournalDamaged, match="not a journal"):
        Run(path, fresh=fresh)
    with open(path, "rb") as file:
        assert file.read() == text


def test_another_sqlite_file(path):
    """An SQLite file of another program is refused and left as it is, with fresh too."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE item (id INTEGER)")
    db.close()
    with open(path, "rb") as file:
        before = file.read()
    with pytest.raises(JournalDamaged, match="SQLite file, but not a journal"):
        Run(path, fresh=True)
    with open(path, "rb") as file:
        assert file.read() == before


def test_another_format(path):
    """A journal of another format version is refused; fresh goes on."""
    Run(path).finish()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(JournalMismatch, match="format 99"):
        Run(path)
    Run(path, fresh=True).finish()


def test_empty_file_is_a_new_journal(path):
    """A file of no bytes, as mktemp makes them, becomes the journal."""
    open(path, "w").close()
    Run(path).go([1]).finish()
    assert state(path) == [(1, 2)]


def test_log_of_an_earlier_journal_is_not_replayed(path):
    """A write-ahead log whose journal is gone never gets into the next journal of that name."""
    run = Run(path).go([1, 2])
    run.journal._shelf._writer.end()
    with open(path + "-wal", "rb") as file:
        log = file.read()
    run.finish()
    assert len(log) > 4096
    os.unlink(path)
    with open(path + "-wal", "wb") as file:
        file.write(log)
    again = Run(path).go([1])
    assert again.ran == [1]
    again.finish()
    assert state(path) == [(1, 2)]


def test_one_run_at_a_time(path):
    """A second run in the same program is refused; when the first is done it may have the journal."""
    first = Run(path)
    with pytest.raises(JournalBusy, match="in this program"):
        Run(path)
    first.finish()
    Run(path).finish()


OTHER = """
import sys
from duodao.channel.journal import Identity, Journal
journal = Journal(sys.argv[1])
journal.open(Identity(("module.f",), "c0de", "f"), on_committed=print, on_error=print)
print("open", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time(path):
    """Another process is refused with the pid of the holder; a holder that is killed holds nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(JournalBusy, match=f"process {other.pid}"):
            Run(path)
        other.kill()
        other.wait()
        Run(path).finish()


def test_a_forked_child_does_not_hold_it(path):
    """A child forked while the journal is open keeps nobody out when its parent is done."""
    run = Run(path)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: the writer is a thread, and the child never uses it
        pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    run.finish()
    Run(path).finish()
    os.close(read)
    os.close(write)
    os.waitpid(pid, 0)


def test_value_that_cannot_be_stored(path):
    """Its id comes back with the error, it isn't recorded, and may be recorded as the failure it is."""
    run = Run(path)
    run.journal.admit([0, 1], ["x", "y"])
    ((number, error),) = run.journal.record([Outcome(0, "x", threading.Lock()), Outcome(1, "y", 2)])
    assert number == 0 and isinstance(error, NotPicklable)
    assert run.journal.record([Outcome(0, "x", None, error)]) == []
    run.finish()
    assert sorted(run.committed) == [0, 1]
    assert [ok for ok, _ in state(path)] == ["x", "y"]


def test_input_without_a_key(path):
    """An input that can't be keyed is a failure of that input alone, told to the reader, and tried again next time."""
    for _ in range(2):
        run = Run(path)
        known = run.journal.admit([0, 1, 2], [1, lambda: 1, 3])
        assert isinstance(known.pop(1).error, NotPicklable)
        run.journal.record([Run.call(i, x) for i, x in ((0, 1), (2, 3)) if i not in known])
        assert run.finish().dropped == 0
        with Journal.inspect(path) as inspection:
            assert inspection.counts()[:3] == (3, 2, 1)
            (letter,) = inspection.failures()
            assert letter.index == 1 and letter.input() == 1


def test_failure_that_was_never_admitted(path):
    """What failed before it was an input, a malformed line, is kept for the reader and read again next time."""
    for _ in range(2):
        run = Run(path)
        assert run.journal.record([Outcome(1, "{bad", None, ValueError("line 2"))]) == []
        run.go([1])
        run.finish()
        assert state(path) == [(1, 2), ("{bad", "ValueError('line 2')")]


def test_key_function_that_raises(path):
    """What a key function raises is that input's error, with a note that names the input."""
    run = Run(path, key=lambda row: row["id"])
    known = run.journal.admit([0, 1], [{"id": 1}, {}])
    assert list(known) == [1]
    assert isinstance(known[1].error, KeyError)
    assert known[1].error.__notes__ == ["input 1 has no key"]
    run.finish()


def test_group_members(path):
    """Members of a group finish with its outcome, and are told apart from inputs that have one of their own."""
    run = Run(path)
    assert run.journal.admit(range(4), [1, 2, 3, 4]) == {}
    run.journal.record([Outcome(0, [1, 2, 3], 6)], {0: [1, 2]})
    run.finish(complete=False)
    assert sorted(run.committed) == [0, 1, 2]
    again = Run(path)
    known = again.journal.admit(range(4), [1, 2, 3, 4])
    assert known == {0: replace(known[0], value=6), 1: Joined(1), 2: Joined(2)}
    again.finish(complete=False)


def test_retry_of_a_failed_group(path):
    """When a group failed, all its members run again, not its first alone."""
    run = Run(path)
    run.journal.admit(range(3), [1, 2, 3])
    run.journal.record([Outcome(0, [1, 2, 3], None, ValueError("x"))], {0: [1, 2]})
    run.finish()
    again = Run(path, retry_failed=True)
    assert again.journal.admit(range(3), [1, 2, 3]) == {}
    again.journal.record([Outcome(0, [1, 2, 3], 6)], {0: [1, 2]})
    assert again.finish() == Counts(3, 3, 0, 0)
    with Journal.inspect(path) as inspection:
        assert inspection.counts() == (3, 1, 0, 2)


def test_results_wait_on_disk(path):
    """What the run has committed can be read back by number, in any order and number."""
    done = threading.Event()
    count = 600
    journal = Journal(path)
    seen: set[int] = set()

    def committed(ids):
        seen.update(ids)
        if len(seen) == count:
            done.set()

    journal.open(IDENTITY, on_committed=committed, on_error=lambda error: done.set())
    journal.admit(range(count), list(range(count)))
    journal.record([Run.call(i, i) for i in range(count)])
    assert done.wait(30)
    wanted = [599, 0, *range(100, 500), 17]
    assert {i: o.value for i, o in journal.load(wanted).items()} == {i: 2 * i for i in wanted}
    assert [o.value for o in journal.load(list(range(0, 600, 7))).values()] == list(range(0, 1200, 14))
    journal.finish()


def test_acknowledged_means_committed(path):
    """An id is acknowledged only when another connection can read its row."""
    wrong = []
    journal = Journal(path)

    def committed(ids):
        db = journal_file.connect(path, "ro")
        found = {row for (row,) in db.execute("SELECT position FROM item")}
        db.close()
        wrong.extend(set(ids) - found)

    journal.open(IDENTITY, on_committed=committed, on_error=wrong.append)
    for at in range(0, 1000, 50):
        journal.admit(range(at, at + 50), list(range(at, at + 50)))
        journal.record([Run.call(i, i) for i in range(at, at + 50)])
    journal.finish()
    assert wrong == []


def test_a_changed_record_is_never_returned(path):
    """A value that was altered in the file stops the run that meets it; it isn't handed out."""
    Run(path).go([1, 2]).finish()
    db = sqlite3.connect(path)
    (body,) = db.execute("SELECT body FROM item WHERE position = 1").fetchone()
    db.execute("UPDATE item SET body = ? WHERE position = 0", (body,))
    db.commit()
    db.close()
    run = Run(path)
    with pytest.raises(JournalDamaged, match="input 0"):
        run.journal.admit(range(2), [1, 2])
    run.finish(complete=False)


def test_missing_parts(path):
    """A journal without one of its tables or of its own entries is damaged, not empty."""
    for statement in ("DROP TABLE item", "DELETE FROM about WHERE name = 'code'"):
        Run(path, fresh=True).finish()
        db = sqlite3.connect(path)
        db.execute(statement)
        db.commit()
        db.close()
        with pytest.raises(JournalDamaged, match="--fresh"):
            Run(path)


def test_using_it_when_closed(path):
    """Before `open` and after `finish` it says that it isn't open; finish may be called again."""
    journal = Journal(path)
    with pytest.raises(Closed):
        journal.admit([0], [1])
    journal.close()
    run = Run(path).go([1])
    counts = run.finish()
    assert run.finish() == counts
    with pytest.raises(Closed):
        run.journal.load([0])


def test_it_can_be_opened_again(path):
    """One Journal object may serve one run after the other, not two at once."""
    run = Run(path)
    with pytest.raises(UsageError, match="in use"):
        run.journal.open(IDENTITY, on_committed=print, on_error=print)
    run.finish()
    run.journal.open(IDENTITY, on_committed=print, on_error=print)
    run.journal.close()


def test_context_manager_and_forgotten_one(path):
    """Leaving `with` closes it; one that is forgotten warns and gives file and lock back."""
    with Journal(path) as journal:
        journal.open(IDENTITY, on_committed=print, on_error=print)
    journal = Journal(path)
    journal.open(IDENTITY, on_committed=print, on_error=print)
    with pytest.warns(ResourceWarning, match="never closed"):
        del journal
    Run(path).finish()


def test_no_thread_is_left(path):
    """The writer has ended when finish returns."""
    Run(path).go([1]).finish()
    assert not [t for t in threading.enumerate() if t.name == "duodao-journal"]


def test_failed_open_leaves_nothing_open(path):
    """A journal that was refused keeps no lock, thread or descriptor."""
    Run(path).finish()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(JournalMismatch):
            Run(path, replace(IDENTITY, names=("other",)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_undecodable_name(tmp_path):
    """The journal's own name may be any path."""
    path = os.path.join(os.fsencode(tmp_path), b"a?b#%20\xff.journal")
    Run(path).go([1]).finish()
    assert os.listdir(os.fsencode(tmp_path)) == [b"a?b#%20\xff.journal"]
    assert state(path) == [(1, 2)]


def test_symlink(tmp_path):
    """A journal reached by two names is one journal, with one lock."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run = Run(tmp_path / "link")
    with pytest.raises(JournalBusy):
        Run(tmp_path / "real")
    run.finish()
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_columns_are_those_of_the_table(path):
    """The list of columns that rows are made of is the table's own."""
    Run(path).finish()
    db = sqlite3.connect(path)
    assert [name for _, name, *_ in db.execute("PRAGMA table_info(item)")] == COLUMNS.split(", ")
    db.close()
