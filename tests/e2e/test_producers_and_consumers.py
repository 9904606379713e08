"""Producers and consumers joined by a bounded queue: a run reads one and writes another, on any lane. Source: M22."""

from __future__ import annotations

import threading

import pytest

import duodao

PATIENCE = 30.0


def double(item):
    return item * 2


@pytest.mark.parametrize("lane", ["inline", "thread", "process", "auto"])
def test_a_run_between_two_queues(lane):
    """A map over a queue ends after its shutdown; results go into a queue whose reader has a speed of its own."""
    inputs, results, read = duodao.Queue(5), duodao.Queue(5), []

    def produce():
        inputs.put_many(range(100))
        inputs.shutdown()

    def consume():
        for item in results:
            read.append(item)
            results.task_done()

    threads = [threading.Thread(target=produce), threading.Thread(target=consume)]
    for thread in threads:
        thread.start()
    report = duodao.run(double, inputs, into=results, lane=lane)
    assert results.join(PATIENCE)
    results.shutdown()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert report.succeeded == 100
    assert read == [n * 2 for n in range(100)]
