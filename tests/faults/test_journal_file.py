"""What happens to a journal: a full disk, a cut file, a cut log, flipped bytes, kill -9. Never a wrong result."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from duodao.channel.journal import Identity, Journal
from duodao.errors import JournalDamaged, JournalFull, JournalMismatch, UsageError
from duodao.outcome import Outcome

IDENTITY = Identity(("module.f",), "c0de", "f")
INPUTS = [f"input {n}" for n in range(60)]
BIG = "x" * 3000  # a row that needs pages of its own


def value_of(text):
    """What f computes: some rows small, some on several pages."""
    return text.upper() + (BIG if text.endswith("7") else "")


def work(path, inputs=INPUTS, *, complete=True, before_finish=None):
    """One run over `inputs`; returns what each ended in and how many ran. Every value from the file is checked."""
    committed = set()
    done = threading.Event()
    errors = []
    journal = Journal(path)

    def on_committed(ids):
        committed.update(ids)
        if len(committed) == expected:
            done.set()

    expected = -1
    journal.open(IDENTITY, on_committed=on_committed, on_error=errors.append)
    try:
        known = journal.admit(range(len(inputs)), list(inputs))
        for number, outcome in known.items():
            assert outcome.value == value_of(inputs[number]), "a wrong result"
        new = [n for n in range(len(inputs)) if n not in known]
        expected = len(new)
        journal.record([Outcome(n, inputs[n], value_of(inputs[n])) for n in new])
        if before_finish is not None:
            assert not new or done.wait(30)
            before_finish()
    finally:
        journal.finish(complete=complete)
    assert errors == []
    return len(new)


def complete_and_right(path):
    """The journal holds exactly the inputs with their values."""
    with Journal.inspect(path) as inspection:
        assert [(o.input, o.value) for o in inspection.outcomes()] == [(x, value_of(x)) for x in INPUTS]


@pytest.fixture
def killed(tmp_path):
    """A folder with a journal as a killed process leaves it: some rows in the file, some only in the log."""
    source = tmp_path / "source"
    folder = tmp_path / "killed"
    source.mkdir()
    folder.mkdir()

    def copy():
        for name in ("j", "j-wal"):
            shutil.copy(source / name, folder / name)

    work(source / "j", INPUTS[:30], complete=False)
    work(source / "j", before_finish=copy)
    return folder


def offsets(size, seed, count):
    """Where to cut: every byte of the header, around every page, and anywhere."""
    near = {at + d for at in range(0, size + 1, 4096) for d in (-1, 0, 1)}
    anywhere = {random.Random(seed).randrange(size) for _ in range(count)}
    return sorted(at for at in {*range(0, 112, 9), *near, *anywhere} if 0 <= at < size)


def attempt(folder, outcomes):
    """Resume there: a clear refusal, after which fresh=True goes on, or a clean resume. Counts which."""
    try:
        ran = work(folder / "j")
    except JournalDamaged as refusal:
        outcomes["refused"] += 1
        assert str(folder / "j") in str(refusal)
        return
    outcomes["resumed"] += 1
    outcomes["again"] += ran > 30
    complete_and_right(folder / "j")


@pytest.mark.parametrize("victim", ["j", "j-wal"])
def test_cut_at_any_byte(killed, tmp_path, victim):
    """A journal or its log that is cut off anywhere is refused or resumed; no result is wrong and none is missing."""
    size = (killed / victim).stat().st_size
    outcomes = {"refused": 0, "resumed": 0, "again": 0}
    for at in offsets(size, 1, 60):
        folder = tmp_path / f"cut{at}"
        shutil.copytree(killed, folder)
        os.truncate(folder / victim, at)
        attempt(folder, outcomes)
        shutil.rmtree(folder)
    assert outcomes["resumed"] > 0
    if victim == "j":
        assert outcomes["refused"] > 0
    else:
        assert outcomes["refused"] == 0, "a log that ends early is an ordinary crash"


def test_finished_journal_cut_at_any_byte(tmp_path):
    """The same for a journal that was closed properly and is one file."""
    work(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    outcomes = {"refused": 0, "resumed": 0, "again": 0}
    for at in offsets(len(whole), 2, 100):
        folder = tmp_path / f"cut{at}"
        folder.mkdir()
        (folder / "j").write_bytes(whole[:at])
        attempt(folder, outcomes)
        shutil.rmtree(folder)
    assert outcomes["resumed"] == 1, "only the file that is cut down to nothing is a new journal"


def test_log_that_is_gone(killed):
    """A journal whose log was deleted is older, not wrong: what the log held runs again."""
    (killed / "j-wal").unlink()
    outcomes = {"refused": 0, "resumed": 0, "again": 0}
    attempt(killed, outcomes)
    assert outcomes["resumed"] == 1


@pytest.mark.parametrize("victim", ["j", "j-wal"])
def test_flipped_bytes(killed, tmp_path, victim):
    """A byte that has changed, anywhere, gives no wrong result: a refusal, a resume, or a record said to be bad."""
    data = (killed / victim).read_bytes()
    rng = random.Random(3)
    outcomes = {"refused": 0, "resumed": 0, "again": 0}
    for _ in range(80):
        at = rng.randrange(len(data))
        folder = tmp_path / "flip"
        shutil.copytree(killed, folder)
        (folder / victim).write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        with contextlib.suppress(Exception if 56 <= at < 72 else JournalDamaged):  # its format number
            attempt(folder, outcomes)
        shutil.rmtree(folder)
    assert outcomes["resumed"] + outcomes["refused"] > 40


def test_a_wrecked_file_without_its_name_is_kept(tmp_path):
    """A damaged journal is refused without being touched; fresh=True starts over in its place."""
    work(tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    wreck = data[:4096] + b"\xff" * (len(data) - 4096)
    (tmp_path / "j").write_bytes(wreck)
    with pytest.raises(JournalDamaged, match="--fresh"):
        work(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == wreck
    assert sorted(os.listdir(tmp_path)) == ["j"]
    journal = Journal(tmp_path / "j", fresh=True)
    journal.open(IDENTITY, on_committed=len, on_error=print)
    journal.close()
    work(tmp_path / "j")
    complete_and_right(tmp_path / "j")


@pytest.mark.parametrize("value", [b"{", b'"\xff"', b"[" * 100_000, b"null"], ids=["cut", "bytes", "depth", "other"])
@pytest.mark.parametrize("name", ["names", "code", "command"])
def test_what_it_says_about_its_run_is_wrecked(tmp_path, name, value):
    """A refusal by name from a run and from a reader, or a journal that goes on; never another error."""
    work(tmp_path / "j")
    db = sqlite3.connect(tmp_path / "j")
    db.execute("INSERT OR REPLACE INTO about VALUES (?, CAST(? AS TEXT))", (name, value))
    db.commit()
    db.close()
    for use in (work, complete_and_right):
        with contextlib.suppress(JournalDamaged, JournalMismatch):
            use(tmp_path / "j")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_no_file_is_no_journal(tmp_path, make, fresh):
    """A FIFO is not waited for, and nothing takes the place of a device: as root that could be /dev/null."""
    make(tmp_path / "j")
    before = os.lstat(tmp_path / "j")
    with pytest.raises(UsageError, match="it is "):
        Journal(tmp_path / "j", fresh=fresh).open(IDENTITY, on_committed=len, on_error=print)
    assert os.lstat(tmp_path / "j").st_mode == before.st_mode
    assert os.listdir(tmp_path) == ["j"]


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_up(path):
    """Record until the journal says that it is full; returns the acknowledged ids and the error."""
    acknowledged = set()
    errors = []
    full = threading.Event()
    journal = Journal(path)

    def on_error(error):
        errors.append(error)
        full.set()

    journal.open(IDENTITY, on_committed=acknowledged.update, on_error=on_error)
    for first in range(0, 200_000, 50):
        ids = range(first, first + 50)
        journal.admit(ids, [f"input {n}" for n in ids])
        journal.record([Outcome(n, f"input {n}", value_of(f"input {n}")) for n in ids])
        if full.is_set():
            break
    assert full.wait(30)
    journal.finish(complete=False)
    (error,) = errors
    return acknowledged, error


def test_disk_full(small_disk):
    """The run is told once, in clear words; all that was acknowledged is there and right, and with room it goes on."""
    acknowledged, error = fill_up(small_disk / "j")
    assert isinstance(error, JournalFull) and "make room" in str(error)
    assert acknowledged
    with Journal.inspect(small_disk / "j") as inspection:
        found = {o.index: o.value for o in inspection.outcomes()}
    assert acknowledged <= set(found)
    assert all(value == value_of(f"input {n}") for n, value in found.items())
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    inputs = [f"input {n}" for n in range(max(found) + 50)]
    assert work(small_disk / "j", inputs) == len(inputs) - len(found)
    assert sorted(os.listdir(small_disk)) == ["j"]


def test_disk_full_from_the_start(small_disk):
    """A journal for which there isn't even room to begin is refused before anything runs; nothing half-made is left."""
    with pytest.raises(OSError, match="No space"), open(small_disk / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(JournalFull):
        work(small_disk / "j")
    assert sorted(os.listdir(small_disk)) == ["ballast"]


LIMITED = """
import json, resource, sys
sys.path.insert(0, sys.argv[2])
from test_journal_file import fill_up
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
acknowledged, error = fill_up(sys.argv[1])
print(json.dumps([sorted(acknowledged), type(error).__name__]))
"""


def test_file_size_limit(tmp_path):
    """A file that may not grow is a full disk: the same error, nothing acknowledged that isn't there."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "j", os.path.dirname(__file__)], capture_output=True, check=True
    )
    acknowledged, error = json.loads(done.stdout)
    assert error == "JournalFull"
    with Journal.inspect(tmp_path / "j") as inspection:
        found = {o.index: o.value for o in inspection.outcomes()}
    assert set(acknowledged) <= set(found)
    assert all(value == value_of(f"input {n}") for n, value in found.items())


# -- kill -9 ----------------------------------------------------------------------------------------------------------

RECORDER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_journal_file import IDENTITY, value_of
from duodao.channel.journal import Journal
from duodao.outcome import Outcome

def acknowledge(ids):
    os.write(1, b"".join(b"%d\\n" % i for i in ids))

journal = Journal(sys.argv[1])
journal.open(IDENTITY, on_committed=acknowledge, on_error=print)
os.write(1, b"open\\n")
for first in range(0, 40000, 40):
    ids = range(first, first + 40)
    known = journal.admit(ids, [f"input {n}" for n in ids])
    assert all(o.value == value_of(f"input {n}") for n, o in known.items()), "a wrong result"
    journal.record([Outcome(n, f"input {n}", value_of(f"input {n}")) for n in ids if n not in known])
journal.finish(complete=True)
os.write(1, b"end\\n")
"""


def killed_runs(path, times, seed):
    """Run the recorder again and again, killed at a random instant each time; returns all ids acknowledged."""
    rng = random.Random(seed)
    acknowledged: set[int] = set()
    twice = 0
    ended = False
    for _ in range(times):
        with subprocess.Popen(
            [sys.executable, "-c", RECORDER, path, os.path.dirname(__file__)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            start = child.stdout.readline()
            assert start == b"open\n"
            timer = threading.Timer(rng.uniform(0, 0.15), child.send_signal, [signal.SIGKILL])
            timer.start()
            lines = child.stdout.read().split(b"\n")
            timer.cancel()
            timer.join()
        ended = lines[-2:] == [b"end", b""]
        # The last line may have been cut by the kill.
        ids = {int(line) for line in lines[:-1] if line.isdigit()}
        twice += len(ids & acknowledged)
        acknowledged |= ids
        with Journal.inspect(path) as inspection:
            found = {o.index: o.value for o in inspection.outcomes()}
        assert acknowledged <= set(found), "acknowledged and lost"
        assert all(value == value_of(f"input {n}") for n, value in found.items())
        if ended:
            break
    assert twice == 0, "a committed input was run again"
    return acknowledged


@pytest.mark.parametrize("seed", [1])
def test_kill_at_random_instants(tmp_path, seed):
    """What was acknowledged before a kill -9 is there after it, is right, and never runs again."""
    assert killed_runs(tmp_path / "j", 10, seed)


@pytest.mark.soak
def test_kill_at_random_instants_long(tmp_path):
    """The same 200 times."""
    for seed in range(20):
        assert killed_runs(tmp_path / f"j{seed}", 10, seed)


def test_kill_while_it_is_made(tmp_path):
    """A process killed before its journal was made leaves none, or a whole one."""
    program = (
        "import os, signal, sys\nfrom duodao.channel import journal_file\n"
        "real = os.replace\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = die\n"
        "journal_file.create(sys.argv[1], {})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "j"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "j").exists()
    work(tmp_path / "j")
    assert sorted(os.listdir(tmp_path)) == ["j"]
