"""What happens to queues over pipes and sockets: kill -9 on either side, strangers, garbage, silence, no room."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty

import pytest

from duodao.channel import framing, handshake, peers
from duodao.channel.away import Away
from duodao.channel.base import Queue
from duodao.errors import Closed, PeerLost, UsageError

PROGRAMS = Path(__file__).with_name("queue_programs.py")
VIAS = ["pipe", "unix:{tmp}/q.sock", "tcp://127.0.0.1:0"]


class Program:
    """A program of queue_programs.py; it is killed at the end."""

    def __init__(self, *words, handle=None):
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS), *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if handle is not None:
            self.process.stdin.write(pickle.dumps(handle))
        self.process.stdin.close()

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
        return [line for line in said if line]


@pytest.fixture(params=VIAS, ids=["pipe", "unix", "tcp"])
def via(request, tmp_path):
    """Each transport."""
    return request.param.format(tmp=tmp_path)


def drain(queue):
    """All that is in it now."""
    found = []
    with contextlib.suppress(Empty):
        while True:
            found += queue.get_many(1000, timeout=0)
    return found


def kill_reader(queue, program, items, rng):
    """Kill a reader after a random number of its items; every item but those in its hands is still there."""
    with Program(program, handle=queue) as reader:
        assert reader.line() == "ready"
        putter = threading.Thread(target=queue.put_many, args=(items,))
        putter.start()
        said = [int(reader.line()) for _ in range(rng.randrange(1, len(items) // 2))]
        said += map(int, reader.kill())
    Away(queue._place, queue._key).connect()  # by its answer the maker has seen the reader's end
    rest = []
    while putter.is_alive() or not queue.empty():
        with contextlib.suppress(Empty):
            rest.append(queue.get(timeout=0.05))
    putter.join()
    return said, rest + drain(queue)


@pytest.mark.parametrize(("program", "hands"), [("read_all", 1), ("read_many", 50)])
def test_a_killed_reader_takes_only_what_was_in_its_hands(via, program, hands, rounds=3):
    """After kill -9 of a reader nothing comes twice, nothing is lost but what it held, and the others go on."""
    rng = random.Random(17)
    with Queue(100, via=via) as queue:
        for number in range(rounds):
            items = list(range(number * 400, number * 400 + 400))
            said, rest = kill_reader(queue, program, items, rng)
            assert len(said) + len(rest) == len(set(said) | set(rest)), "an item came twice"
            missing = set(items) - set(said) - set(rest)
            assert len(missing) <= hands, f"lost: {missing}"


@pytest.mark.soak
@pytest.mark.parametrize("program", ["read_all", "read_many"])
def test_readers_killed_at_a_hundred_instants(via, program):
    """The long form."""
    test_a_killed_reader_takes_only_what_was_in_its_hands(via, program, 50 if program == "read_many" else 1, rounds=100)


def test_what_was_sent_and_not_acknowledged_stands_in_front_again(via):
    """An item on its way to a client that ends comes back to the front, before items that came later."""
    with Queue(10, via=via) as queue:
        queue.put_many(["first", "second", "third"])
        away = Away(queue._place, queue._key)
        link, _ = away._connect()
        link.stream.add(framing.GET, 2)
        frame = link.next(None)
        assert frame.number == 2 and queue.qsize() == 1
        link.close()
        still_works(queue, before=["first", "second", "third"])


@pytest.mark.parametrize("order", ["fifo", "lifo", "priority"])
def test_the_front_in_each_order(order):
    """What comes back is the next item in every order, ties of priority included."""
    with Queue(10, via="pipe", order=order) as queue:
        queue.put_many([(1, "a"), (1, "b"), (1, "c")])
        away = Away(queue._place, queue._key)
        link, _ = away._connect()
        link.stream.add(framing.GET, 2)
        link.next(None)
        waiting = threading.Event()
        got = []

        def get_all():
            waiting.set()
            got.extend(queue.get(timeout=30)[1] for _ in range(3))

        assert queue.get()[1] == ("a" if order == "lifo" else "c")
        reader = threading.Thread(target=get_all)
        reader.start()
        waiting.wait()
        link.close()
        queue.put((2, "d") if order != "lifo" else (1, "d"))
        reader.join(30)
        expected = ["c", "b"] if order == "lifo" else ["a", "b"]
        assert [item for item in got if item != "d"] == expected
        away.leave()


@pytest.mark.parametrize("many", [1, 20])
def test_a_killed_writer_leaves_whole_items(via, many):
    """After kill -9 of a writer every item that it had put is there, once, in order; others go on."""
    with Queue(10_000, via=via) as queue:
        with Program("write_all", 0, many, handle=queue) as writer:
            assert writer.line() == "ready"
            said = [int(writer.line()) for _ in range(200)]
            said += map(int, writer.kill())
        queue.put("after")
        found = []
        while (item := queue.get(timeout=30)) != "after":
            found.append(item)
        found += drain(queue)
        assert found[: len(said)] == said
        assert len(found) <= len(said) + many


def test_the_makers_death_is_told_at_once(via):
    """When the maker is killed its clients get PeerLost, the waiting ones too, and so does who calls later."""
    with Program("serve", via) as maker:
        maker.line()
        queue = pickle.loads(bytes.fromhex(maker.line()))
        queue.put(1)
        assert queue.get() == 1
        errors = []

        def wait():
            try:
                queue.get()
            except PeerLost as error:
                errors.append(error)

        waiters = [threading.Thread(target=wait) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        while len(queue._links) < 3:
            queue.qsize()
        maker.kill()
        for waiter in waiters:
            waiter.join(10)
        assert len(errors) == 3
        with pytest.raises(PeerLost):
            queue.put(1)
        queue.close()


def test_a_close_is_told_as_such(via):
    """When the maker closes, waiting clients get Closed, not PeerLost."""
    queue = Queue(10, via=via)
    with Program("wait_interrupted", handle=queue) as client:
        assert client.line() == "ready"
        clone = Away(queue._place, queue._key)
        clone.connect()
        handle = pickle.loads(pickle.dumps(queue))
        handle._release()
        handle._hold(clone)
        queue.close()
        with pytest.raises((Closed, PeerLost)):
            handle.get()
        handle.close()


def test_ctrl_c_ends_a_wait(via):
    """Ctrl-C in a client's get() is a KeyboardInterrupt there, and the queue stays usable for it."""
    with Queue(10, via=via) as queue, Program("wait_interrupted", handle=queue) as client:
        assert client.line() == "ready"
        while not queue.statistics().getters:
            pass
        client.process.send_signal(signal.SIGINT)
        assert client.line() == "interrupted"
        assert queue.get(timeout=30) == "still usable"


# Strangers


@pytest.mark.parametrize("via", VIAS[1:])
def test_strangers_speak_plain_values_only(tmp_path, via):
    """Another program puts and gets plain values; what is more it can neither put nor get, and is told so."""
    with Queue(10, via=via.format(tmp=tmp_path)) as queue:
        with Program("stranger", queue.address, "one", "two") as stranger:
            assert "NotPicklable" in stranger.line()
            assert stranger.line() == "'one'"
        assert queue.get(timeout=30) == "two"
        queue.put(threading.Thread)
        with Program("stranger", queue.address) as stranger:
            stranger.line()
            assert "NotPicklable" in stranger.line()
        assert queue.get(timeout=30) is threading.Thread
        queue.put((1, b"two", {"three": None}))
        with Program("stranger", queue.address) as stranger:
            stranger.line()
            assert stranger.line() == "(1, b'two', {'three': None})"


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("via", VIAS[1:])
def test_a_strangers_pickle_is_not_read(tmp_path, via):
    """A client without the secret that sends a pickle is refused, and the pickle is never loaded."""
    with Queue(10, via=via.format(tmp=tmp_path)) as queue:
        away = Away(queue._place, None)
        link, _ = away._connect()
        blob = pickle.dumps(Bomb())
        link.stream.add(framing.PUT, 1, [len(blob).to_bytes(4, "little") + b"\x01" + blob])
        frame = link.next(None)
        assert frame.kind == framing.REFUSED and b"not read" in bytes(frame.body)
        link.close()
        assert queue.empty()


@pytest.mark.parametrize("blob", [b'{"x":', b'{"zz":1}', b"[" * 100_000, b'{"d":[[[1],2]]}', b'"\xff"'])
def test_a_stranger_that_sends_rubbish_is_told(tmp_path, blob):
    """An item that isn't one of plain values is refused as it comes: no reader meets it."""
    with Queue(10, via=f"unix:{tmp_path}/q") as queue:
        link, _ = Away(queue._place, None)._connect()
        link.stream.add(framing.PUT, 1, [len(blob).to_bytes(4, "little") + b"\x00" + blob])
        frame = link.next(None)
        assert frame.kind == framing.REFUSED and b"plain values" in bytes(frame.body)
        link.close()
        assert queue.empty()
        still_works(queue)


def test_a_client_that_asks_and_does_not_read(tmp_path):
    """Who asks again and again without reading the answers is let go: they don't gather in the maker's memory."""
    with Queue(10, via=f"unix:{tmp_path}/q") as queue:
        link, _ = Away(queue._place, None)._connect()
        os.set_blocking(link.stream.writer, True)
        asked = framing.HEAD.pack(0, framing.LOOK, 0, 0) * 1000
        peers_of = queue._core._broker._peers
        while not any(peer.leaving for peer in list(peers_of)):
            os.write(link.stream.writer, asked)
            assert max((len(peer.stream.unsent) for peer in list(peers_of)), default=0) < 10
        link.close()
        still_works(queue)


@pytest.mark.parametrize("facts", [b"[5]", b"[null, {}, 1]", b"7", b"\xff", b"[1e999, 1, 1]"])
def test_a_server_whose_facts_are_none(facts):
    """A server that says nonsense about its queue is no queue: PeerLost."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(framing.HEAD.pack(48, framing.HELLO, 0, 0) + handshake._MAGIC + bytes(32))
                body = bytes(32) + facts
                connection.sendall(framing.HEAD.pack(len(body), framing.WELCOME, 0, 0) + body)
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PeerLost, match="another language"):
            Away(peers.Place("tcp", server.getsockname()[:2]), None).connect()
        thread.join(10)


@pytest.mark.parametrize("via", VIAS)
def test_a_wrong_secret_is_refused(tmp_path, via):
    """Who claims to be a task of ours and can't prove it is refused, or never heard."""
    with Queue(10, via=via.format(tmp=tmp_path)) as queue:
        if via == "pipe":
            return  # its call packet isn't answered at all: test_garbage_in_the_control_pipe
        with pytest.raises(PeerLost, match="another program"):
            Away(queue._place, b"x" * 32).connect()


def test_a_false_server_is_refused(tmp_path):
    """A client believes nobody who doesn't prove the secret: what such a server sends is never unpickled."""
    with Queue(10, via=f"unix:{tmp_path}/other") as queue, pytest.raises(PeerLost, match="another program"):
        Away(queue._place, b"y" * 32).connect()


def test_marks_find_what_was_changed():
    """A sealed frame that was altered, left out, or sent again is refused."""

    def pair():
        left, right = socket.socketpair()
        from duodao.children import lifeline

        with lifeline.unforked() as private:
            streams = [framing.Stream(fd, fd) for fd in (private(left.detach()), private(right.detach()))]
        for stream in streams:
            stream.limit = 1000
        return streams

    for change in ("alter", "drop", "repeat", None):
        sender, receiver = pair()
        sender.seal_out, receiver.seal_in = framing.Seal(b"k" * 32), framing.Seal(b"k" * 32)
        for text in (b"one", b"two"):
            sender.add(framing.PUT, 1, [text])
        first, second = map(bytes, sender.unsent)
        raw = {
            "alter": first.replace(b"one", b"0ne") + second, "drop": second, "repeat": first + first,
            None: first + second,
        }[change]  # fmt: skip
        os.write(sender.writer, raw)
        if change is None:
            assert [bytes(frame.body) for frame in receiver.read()] == [b"one", b"two"]
        else:
            with pytest.raises(PeerLost, match="altered"):
                receiver.read()
        sender.close()
        receiver.close()


# Garbage, silence, numbers


def still_works(queue, before=()):
    """The queue serves a client, after it has seen what came before this one; then it holds those items alone."""
    away = Away(queue._place, queue._key)
    away.connect()
    away.leave()
    queue.put("item")
    assert [queue.get(timeout=30) for _ in range(len(before) + 1)] == [*before, "item"]


@pytest.mark.parametrize("via", VIAS[1:])
@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\xff" * 4096, b"half"])
def test_garbage_is_refused(tmp_path, via, words):
    """Who speaks another language is told so, or waited for no longer than the greeting takes; the others go on."""
    with Queue(10, via=via.format(tmp=tmp_path)) as queue:
        raw = peers.connect(queue._place)
        os.write(raw.writer, words)
        still_works(queue)
        raw.close()
        still_works(queue)


def test_garbage_in_the_control_pipe():
    """Whatever is written into a pipe queue's control pipe, clients still get through."""
    with Queue(10, via="pipe") as queue:
        pid, number, _ = queue._place.what
        for words in (b"x", b"y" * 96, b"z" * 4000):
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)
            os.write(fd, words)
            os.close(fd)
            still_works(queue)


def test_a_server_of_something_else():
    """A client that meets another server than a queue's gets PeerLost; so does one that meets silence in time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = peers.Place("tcp", server.getsockname()[:2])

        def answer():
            connection, _ = server.accept()
            connection.sendall(b"220 mail.example ESMTP ready, and more than a thousand words\r\n" * 9)
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PeerLost, match="another language"):
            Away(place, None).connect()
        thread.join(10)


def test_silence_ends(monkeypatch):
    """Neither side waits for a silent one longer than the greeting may take."""
    monkeypatch.setattr(handshake, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(PeerLost, match="has not answered"):
            Away(peers.Place("tcp", server.getsockname()[:2]), None).connect()
    with Queue(10, via="tcp://127.0.0.1:0") as queue:
        with socket.create_connection(queue._place.what) as silent:
            silent.settimeout(10)
            said = b""
            while part := silent.recv(4096):
                said += part
            assert b"said nothing" in said
        still_works(queue)


def test_frames_are_bounded(tmp_path):
    """A stranger that announces more than it may is refused before it has sent it."""
    with Queue(10, via=f"unix:{tmp_path}/q") as queue:
        away = Away(queue._place, None)
        link, _ = away._connect()
        os.write(link.stream.writer, framing.HEAD.pack(framing.STRANGERS + 1, framing.PUT, 0, 1))
        frame = link.next(None)
        assert frame.kind == framing.REFUSED and b"too large" in bytes(frame.body)
        link.close()


def test_a_thousand_connects(via):
    """A thousand clients that come and vanish leave nothing behind."""
    with Queue(10, via=via) as queue:
        away = Away(queue._place, queue._key)
        for at in range(1000):
            link, _ = away._connect()
            if at % 3 == 0:
                link.stream.add(framing.GET, 1)
                link.stream.flush()
            link.close()
        still_works(queue)
        assert queue.statistics().getters == ()


def test_no_descriptors_left(via):
    """When the maker's descriptors run out a new client is told so; those it has go on, and later ones come in."""
    with Queue(10, via=via) as queue:
        away = Away(queue._place, queue._key)
        away.connect()
        with Program("wait_interrupted", handle=queue) as client:
            assert client.line() == "ready"
            while not queue.statistics().getters:
                pass
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with Program("read_all", handle=queue) as late:
                free = os.dup(0)
                os.close(free)
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
                try:
                    late.process.wait(30)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.process.send_signal(signal.SIGINT)
            assert client.line() == "interrupted"
            assert queue.get(timeout=30) == "still usable"
        away.leave()
        still_works(queue)


# The socket's file


@pytest.mark.parametrize("via", VIAS[1:])
def test_made_again_while_the_last_one_ends(tmp_path, via):
    """Who makes an address just given back serves it: the end of the last queue there is not taken for a stranger."""
    with Queue(2, via=via.format(tmp=tmp_path)) as queue:
        address = queue.address
    for number in range(100):
        queue = Queue(2, via=address)
        queue.put(number)
        assert queue.get(timeout=30) == number
        del queue  # it isn't closed: its thread ends a little later


def test_the_file_is_ours_alone_and_goes(tmp_path):
    """A unix socket's file has mode 0600 and is gone after close; a live one isn't replaced, a dead one is."""
    path = tmp_path / "q"
    with Queue(10, via=f"unix:{path}") as queue:
        assert path.stat().st_mode & 0o777 == 0o600
        with Queue(10, via=f"unix:{path}") as other:
            other.put(1)
            assert queue.get(timeout=30) == 1
        still_works(queue)
        with pytest.raises(UsageError, match="maxsize=10"):
            Queue(11, via=f"unix:{path}")
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Queue(10, via=f"unix:{path}") as queue:
        still_works(queue)
    path.write_text("no socket")
    with pytest.raises(UsageError, match="no socket"):
        Queue(10, via=f"unix:{path}")
    assert path.read_text() == "no socket"


@pytest.mark.parametrize("how", ["return", "raise", "kill"])
def test_the_file_is_gone_after_any_end(tmp_path, how):
    """Normal exit, an exception, kill -9: the socket's file goes with its maker."""
    path = tmp_path / "q"
    with Program("serve_and_end", f"unix:{path}", how) as maker:
        assert maker.line() == f"unix:{path}"
        maker.process.wait(30)
        maker.process.stdout.read()  # ends with the guard, which holds it, too
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_copy_is_a_client(via):
    """A handle that came by fork, not by pickle, asks its maker; neither side's end harms the other."""
    with Queue(10, via=via) as queue:
        queue.put("before")
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                queue.put(queue.get() + " and after")
            os._exit(0)
        os.waitpid(pid, 0)
        assert queue.get(timeout=30) == "before and after"
        still_works(queue)
