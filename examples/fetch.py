"""Pages from a web server, in two ways, and a small server to fetch them from. I/O work: it waits.

python examples/fetch.py --serve /usr/lib/python3.11     # prints its address
duodao map examples/fetch.py:fetch urls.txt -o pages.jsonl
"""

import asyncio
import contextlib
import html
import os
import re
import sys
import threading
import urllib.parse
import urllib.request

TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)


def fetch(url):
    """The page at `url`: status, title and size. A plain function that blocks while it waits."""
    with urllib.request.urlopen(url, timeout=30) as response:
        return _page(url, response.status, response.read())


async def afetch(url):
    """The same as an async function, on nothing but the standard library: HTTP/1.0, one connection per page."""
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        await writer.drain()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status = int(head.split(None, 2)[1])
    if status != 200:
        raise RuntimeError(f"{url} answered {status}")
    return _page(url, status, body)


def _page(url, status, body):
    text = body.decode("utf-8", "replace")
    title = TITLE.search(text)
    return {"url": url, "status": status, "title": html.unescape(title[1]) if title else "", "bytes": len(body)}


class Server:
    """Serves the files below a folder as HTML pages, each after `latency` seconds, as a server far away would."""

    def __init__(self, folder, latency=0.1):
        self.folder = os.path.abspath(folder)
        self.latency = latency
        self.requests = 0

    async def answer(self, reader, writer):
        """One connection, one page."""
        try:
            line = await reader.readline()
            while (await reader.readline()).strip():
                pass  # the headers don't matter here
            self.requests += 1
            await asyncio.sleep(self.latency)
            status, body = self.page(line.decode("latin-1"))
            writer.write(f"HTTP/1.0 {status}\r\nContent-Type: text/html; charset=utf-8\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()
        except ConnectionError:
            pass  # the client has gone
        finally:
            writer.close()

    def page(self, line):
        """(status, body) for a request line."""
        path = urllib.parse.unquote(line.split(" ")[1]).lstrip("/") if line.count(" ") == 2 else ""
        full = os.path.realpath(os.path.join(self.folder, path))
        if not full.startswith(os.path.realpath(self.folder)) or not os.path.isfile(full):
            return "404 Not Found", b"<title>not found</title>"
        with open(full, encoding="utf-8", errors="replace") as file:
            text = file.read()
        body = f"<!doctype html><title>{html.escape(path)}</title><pre>{html.escape(text)}</pre>"
        return "200 OK", body.encode("utf-8", "replace")


@contextlib.contextmanager
def serving(folder, latency=0.1):
    """A server in a thread of its own for the time of the `with`; gives the address to put before a file's path."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    address = []

    async def serve():
        server = await asyncio.start_server(Server(folder, latency).answer, "127.0.0.1", 0, backlog=1024)
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        async with server:
            await server.serve_forever()

    task = loop.create_task(serve())
    thread = threading.Thread(target=lambda: _run(loop, task), name="server")
    thread.start()
    started.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def _run(loop, task):
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    for connection in asyncio.all_tasks(loop):
        connection.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(connection)


if __name__ == "__main__":
    with serving(sys.argv[2] if sys.argv[1:2] == ["--serve"] else ".") as base:
        print(base, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
