"""Run as a program: executes the cells it is given in a Jupyter kernel and prints every output message as JSON.

In a process of its own, because the Jupyter client keeps an event loop, its threads and its sockets until exit.
"""

import json
import sys

from jupyter_client import KernelManager


def main(cells):
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        for cell in cells:
            out = []
            client.execute_interactive(
                cell, timeout=60, output_hook=lambda m, o=out: o.append([m["msg_type"], m["content"]])
            )
            print(json.dumps(out))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main(sys.argv[1:])
