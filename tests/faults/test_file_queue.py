"""What happens to a queue in a file: kill -9 at any instant, restarts, files that aren't ours, damage, forks."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty

import pytest

from duodao.channel import tray
from duodao.channel.base import Queue
from duodao.errors import Broken, Damaged, UsageError

PROGRAMS = Path(__file__).with_name("queue_programs.py")
MOST = 100_000


class Program:
    """A program of queue_programs.py; it is killed at the end."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def line(self):
        """The next line it says."""
        return self.process.stdout.readline().decode().rstrip("\n")

    def kill(self):
        """kill -9, and all that it had said."""
        self.process.kill()
        said = self.process.stdout.read().decode().split("\n")
        self.process.wait()
        return [int(line) for line in said[: -1 if said[-1] else None] if line]


@pytest.fixture
def path(tmp_path):
    """Where the queue is."""
    return tmp_path / "queue.db"


def made(path, maxsize=MOST, **options):
    """The queue there."""
    return Queue(maxsize, via=f"file:{path}", **options)


def drain(queue):
    """All that is in it now."""
    found = []
    with contextlib.suppress(Empty):
        while True:
            found += queue.get_many(1000, timeout=0)
    return found


def kill_writer(path, rounds, rng):
    """Writers that are killed, one after the other: every item whose put had returned is in the file."""
    said = []
    for _ in range(rounds):
        with Program("file_write", path, len(said)) as writer:
            assert writer.line() == "ready"
            got = [int(writer.line()) for _ in range(rng.randrange(1, 40))]
            got += writer.kill()
        with made(path) as queue:
            held = drain(queue)
            for _ in held:
                queue.task_done()
        assert held[: len(got)] == got
        assert len(held) - len(got) in (0, 1), "only the put that was cut off may be in unsaid"
        said += held


def test_what_was_put_is_there_after_kill(path):
    """kill -9 of a writer at random instants loses nothing that put() had returned for."""
    kill_writer(path, 4, random.Random(3))


@pytest.mark.soak
def test_a_hundred_killed_writers(path):
    """The long form."""
    kill_writer(path, 100, random.Random(4))


def kill_reader(path, rounds, rng):
    """Readers that acknowledge, killed one after the other: what was not acknowledged comes again, the rest doesn't."""
    count = 2000
    with made(path) as queue:
        queue.put_many(range(count))
        said, again = [], 0
        for _ in range(rounds):
            with Program("file_read_and_done", path) as reader:
                assert reader.line() == "ready"
                said += [int(reader.line()) for _ in range(rng.randrange(1, 30))]
                said += reader.kill()
        with pytest.warns(RuntimeWarning, match="will be got again") if _has_taken(path) else contextlib.nullcontext():
            rest = drain(queue)
        again = len(said) + len(rest) - len(set(said) | set(rest))
        assert set(said) | set(rest) == set(range(count)), "lost"
        assert again <= rounds, "each killed reader had at most one item in hand"
        for _ in rest:
            queue.task_done()
        assert queue.join(timeout=0)


def _has_taken(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT count(*) FROM item WHERE taker IS NOT NULL").fetchone()[0]


def test_a_killed_reader_loses_nothing(path):
    """kill -9 of readers that use task_done: nothing is lost, and only what was in hand is got twice."""
    kill_reader(path, 3, random.Random(5))


@pytest.mark.soak
def test_fifty_killed_readers(path):
    """The long form."""
    kill_reader(path, 50, random.Random(6))


def test_a_waiting_reader_gets_what_a_killed_one_had(path):
    """The death of who has an item wakes a reader that waits in another process, and it is said."""
    with made(path) as queue:
        queue.put("only")
        with Program("file_take", path) as taker:
            assert taker.line() == "only"
            caught = []

            def wait():
                with pytest.warns(RuntimeWarning, match=f"process {taker.process.pid} ended with 1 items"):
                    caught.append(queue.get(timeout=30))

            waiter = threading.Thread(target=wait)
            waiter.start()
            while not queue.statistics().getters:
                pass
            taker.process.kill()
            waiter.join(40)
            assert caught == ["only"]


def test_a_put_elsewhere_wakes(path):
    """A reader that waits is woken by a put in another process, without asking again and again."""
    with made(path) as queue, Program("file_take", path, 2) as taker:
        queue.put("one")
        assert taker.line() == "one"
        queue.put("two")
        assert taker.line() == "two"


@pytest.mark.parametrize(("acknowledged", "left"), [(0, []), (1, [1, 2])])
def test_after_a_normal_end(path, acknowledged, left):
    """What a program had got and not task_done counts as done if it never calls that, else it is got again."""
    with made(path) as queue:
        queue.put_many(range(3))
    with Program("file_take_and_end", path, acknowledged) as program:
        program.process.wait(30)
    assert sorted(os.listdir(path.parent)) == ["queue.db"]
    with made(path) as queue:
        assert queue.qsize() == len(left)
        assert queue.join(timeout=0) == (not left)
        assert drain(queue) == left


def test_it_goes_on_where_it_ended(path):
    """Items, order and the unfinished count outlast the program; -wal and -shm are gone after close."""
    with made(path, order="priority") as queue:
        queue.put_many([(3, "c"), (1, "a"), (2, "b")])
        assert queue.get() == (1, "a")
        queue.task_done()
    assert os.listdir(path.parent) == ["queue.db"]
    with made(path, order="priority") as queue:
        assert not queue.join(timeout=0)
        assert drain(queue) == [(2, "b"), (3, "c")]
        queue.task_done()
        queue.task_done()
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()


def test_other_options_are_refused(path):
    """A file made with another maxsize or order says which, at the second handle and after a restart."""
    with made(path, 10), pytest.raises(UsageError, match="maxsize=10 and order='fifo'"):
        made(path, 11)
    with pytest.raises(UsageError, match="maxsize=10 and order='fifo'"):
        made(path, 10, order="lifo")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(path, mode):
    """Items are unpickled, so nothing is read from a file that somebody else may have written."""
    made(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(mode)
    with pytest.raises(UsageError, match="not ours alone"):
        made(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["", "-wal"])
def test_a_file_of_another_user_is_refused(path, which):
    """Neither the file nor a log that somebody laid beside it may be another's."""
    made(path).close()
    other = Path(f"{path}{which}")
    other.touch()
    os.chown(other, 12345, 12345)
    with pytest.raises(UsageError, match="owner 12345"):
        made(path)


def test_a_folder_that_all_may_write_is_refused(tmp_path):
    """Where everybody may exchange files, none is ours."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="everybody may write"):
        made(folder / "q")


@pytest.mark.parametrize("content", [b"some text", b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_queue_is_left_as_it_is(path, content):
    """Any other file is Damaged, and unchanged."""
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Damaged, match="left as it is"):
        made(path)
    assert path.read_bytes() == content


def test_another_database_is_left_as_it_is(path):
    """An SQLite file of another program, too."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.commit()
    path.chmod(0o600)
    before = path.read_bytes()
    with pytest.raises(Damaged, match="another program"):
        made(path)
    assert path.read_bytes() == before


def test_a_changed_item_is_found(path):
    """A body that is not what was put is Damaged; it is not unpickled."""
    with made(path) as queue:
        queue.put("item")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE item SET body = ?", (pickle.dumps("other"),))
        db.commit()
    with made(path) as queue, pytest.raises(Damaged, match="not what was put"):
        queue.get()


def test_numbers_that_are_none(path):
    """Damage that leaves a whole database, with another type where a number or an item should be: Damaged."""
    for statement in (
        "UPDATE item SET body = 'text'",
        "UPDATE item SET sum = 'text'",
        "UPDATE meta SET ready = x'00ff'",
        "UPDATE meta SET shut = 'x', ready = 'many', unfinished = 'all'",
        "UPDATE user SET pid = 'nobody', space = x'ff'",
    ):
        path.unlink(missing_ok=True)
        with made(path) as queue:
            queue.put("item")
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO user (pid, start, space, let_go) VALUES (1, 1, 'x', 0)")
            db.execute(statement)
            db.commit()
        with contextlib.suppress(Damaged), made(path) as queue:
            assert queue.get_nowait() == "item"


def test_a_file_that_was_removed(path):
    """Removed or replaced while it is open: Broken, for who puts, gets and waits; nothing is put where nobody reads."""
    with made(path) as queue:
        waiting = threading.Thread(target=lambda: failed.append(pytest.raises(Broken, queue.get)))
        failed: list[object] = []
        waiting.start()
        while not queue.statistics().getters:
            pass
        path.unlink()
        waiting.join(60)
        assert failed
        for call in (lambda: queue.put(1), queue.get_nowait, queue.qsize):
            with pytest.raises(Broken, match="removed"):
                call()
        path.write_bytes(b"")
        with pytest.raises(Broken, match="replaced"):
            queue.put(1)


def test_two_names_of_one_file(path):
    """By a symbolic link it is the same queue, in the same process, too."""
    link = path.with_name("link")
    link.symlink_to(path)
    with made(path) as one:
        with made(link) as other:
            other.put(1)
            assert one.path == other.path
        assert one.get_nowait() == 1
    assert sorted(each.name for each in path.parent.iterdir()) == ["link", path.name]


def test_not_a_file(tmp_path):
    """A directory, a device and a missing folder are refused by name."""
    for where in (tmp_path, Path("/dev/full"), tmp_path / "none" / "q"):
        with pytest.raises(UsageError):
            made(where)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_it_is_used(path):
    """A fork in the middle of use harms neither side: the copy is a user of its own, with its own waits."""
    with made(path) as queue:
        stop = threading.Event()
        turn = []

        def use():
            while not stop.is_set():
                queue.put("x")
                queue.get()
                queue.task_done()
                turn.append(1)

        user = threading.Thread(target=use)
        user.start()
        for at in range(10):
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    queue.put(at)
                    queue.close()
                    code = 0
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stop.set()
        user.join(30)
        assert sorted(str(item) for item in drain(queue) if item != "x")[:10] or turn
    assert os.listdir(path.parent) == ["queue.db"]


def test_what_is_in_hand_is_bounded(path, monkeypatch):
    """A program that never calls task_done keeps only its last items in the file."""
    monkeypatch.setattr(tray, "KEPT", 5)
    with made(path) as queue:
        queue.put_many(range(30))
        for _ in range(30):
            queue.get()
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM item").fetchone()[0] <= 6
        assert not queue.join(timeout=0)
    with made(path) as queue:
        assert queue.join(timeout=0)


_MAPPED = """
import sys
import duodao
from duodao.channel.base import Queue
q = Queue(1000, via=f"file:{sys.argv[1]}")
q.put_many(range(50))
def take(x, q=q):
    return q.get()
assert sorted(duodao.map(take, range(40), lane="process", workers=2)) == list(range(40))
"""


def test_workers_let_go_with_their_run(path):
    """What workers of the process lane got counts as done when their run has ended: it doesn't come again."""
    subprocess.run([sys.executable, "-c", _MAPPED, str(path)], check=True)
    with made(path, 1000) as queue:
        assert drain(queue) == list(range(40, 50))
