"""In a Jupyter kernel: cells' own functions and classes, prints and logging, the interrupt button, a running loop."""

import time

import psutil
import pytest

jupyter_client = pytest.importorskip("jupyter_client")
pytestmark = pytest.mark.leaves("threads", "files")  # of the Jupyter client, which never closes its loop


@pytest.fixture
def kernel():
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    try:
        yield manager, client
    finally:
        family = psutil.Process(manager.provisioner.process.pid).children(recursive=True)
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        gone, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, "processes outlived their kernel"


def run(client, code, on_output=None):
    """Execute a cell; returns (all text it showed, the error's name or None)."""
    text = []

    def hook(message):
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            text.append(content["text"])
        elif kind in ("execute_result", "display_data", "update_display_data"):
            text.append(content["data"].get("text/plain", "") + content["data"].get("text/html", ""))
        elif kind == "error":
            text.append("\n".join(content["traceback"]))
        if on_output is not None:
            on_output("".join(text))

    reply = client.execute_interactive(code, timeout=60, output_hook=hook)
    return "".join(text), reply["content"].get("ename")


def test_functions_and_classes_of_a_cell_run_in_processes(kernel):
    """Functions, lambdas, closures and classes of cells work on the process lane, twice, and see their new versions."""
    _, client = kernel
    cell = """
import duodao
class Point:
    def __init__(self, x): self.x = x
def double(p): return Point(p.x * %d)
print([p.x for p in duodao.map(double, [Point(1), Point(2)], lane="process")])
print(list(duodao.map(lambda x: x + 1, range(3), lane="process")))
"""
    assert run(client, cell % 2) == ("[2, 4]\n[1, 2, 3]\n", None)
    assert run(client, cell % 3) == ("[3, 6]\n[1, 2, 3]\n", None)


def test_prints_and_logging_reach_the_cell(kernel):
    """What a worker prints or logs appears in the cell, by whole lines."""
    _, client = kernel
    cell = """
import duodao, logging
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
def talk(x):
    print("line", x)
    logging.getLogger("work").warning("logged %d", x)
report = duodao.run(talk, range(3), lane="process")
"""
    text, error = run(client, cell)
    assert error is None
    for x in range(3):
        assert f"line {x}\n" in text and f"WARNING logged {x}" in text


def test_the_interrupt_button_ends_the_run(kernel):
    """Interrupting the cell raises KeyboardInterrupt there and leaves no worker at work; the kernel goes on."""
    manager, client = kernel
    pressed = []

    def press(text):
        if "begun" in text and not pressed:
            pressed.append(time.monotonic())
            manager.interrupt_kernel()

    cell = """
import duodao, time
def slow(x):
    print("begun", flush=True)
    time.sleep(60)
duodao.run(slow, range(4), lane="process")
"""
    _, error = run(client, cell, press)
    assert error == "KeyboardInterrupt" and pressed
    assert time.monotonic() - pressed[0] < 20
    assert run(client, "print(list(duodao.map(abs, [-1], lane='process')))") == ("[1]\n", None)


def test_async_for_at_the_top_of_a_cell(kernel):
    """The kernel's own loop runs async functions; plain `for` works beside it."""
    _, client = kernel
    cell = """
import duodao, asyncio
async def wait(x):
    await asyncio.sleep(0)
    return x * 10
print([v async for v in duodao.map(wait, range(3))], list(duodao.map(wait, range(3))))
"""
    assert run(client, cell) == ("[0, 10, 20] [0, 10, 20]\n", None)


def test_progress_shows_a_bar_in_the_notebook(kernel):
    """progress=True shows and updates one display in the cell."""
    _, client = kernel
    text, error = run(client, "import duodao\nr = duodao.run(abs, range(1000), lane='thread', progress=True)")
    assert error is None
    assert "1,000" in text or "1000" in text
