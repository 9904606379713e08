"""The guard's loop, from inside."""

from __future__ import annotations

import os
import socket

import pytest

from duodao.children import newborn, wire
from duodao.children.zygote import _preload, _Zygote


def test_a_supervisor_that_reads_nothing_blocks_nobody():
    """Reports to a stopped supervisor wait in the guard, which goes on; later they arrive, all, in their order."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = _Zygote(theirs)
    for number in range(5000):
        zygote._post(("ended", [(number, 0)]))
    zygote._flush()
    assert zygote._outbox
    arrived = []
    while len(arrived) < 5000:
        message, _ = wire.receive(ours)
        arrived.append(message[1][0][0])
        zygote._flush()
    assert arrived == list(range(5000))
    zygote._post(("ended", []))
    ours.close()
    zygote._flush()
    assert not zygote._outbox
    for fd in (zygote._woken, zygote._waker):
        os.close(fd)
    theirs.close()


def test_a_module_that_can_not_be_imported_is_left_to_who_needs_it(monkeypatch, tmp_path):
    """Preloading is an optimisation: a module that is missing or broken doesn't keep the guard from starting."""
    (tmp_path / "broken_module_of_ours.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    _preload("no_such_module_of_ours")
    _preload("broken_module_of_ours")


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (3, 3), (256 + 7, 7), (-1, 255), (True, 1), ("x", 1)])
def test_exit_codes_of_sys_exit(code, status, capfd):
    """What sys.exit() was given becomes the exit code that the interpreter itself would give."""
    assert newborn._exit_code(code) == status
