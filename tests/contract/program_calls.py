"""The program of the command lane's contract, one item per process or JSON lines: program_calls.py HOW WHAT …"""

import json
import os
import sys
import time


def square(x):
    return x * x


def gated(x, gate, started):
    """As contract_calls.gated."""
    if x < 0:
        with open(gate, "rb", buffering=0) as file:
            fd = os.open(started, os.O_WRONLY)
            os.write(fd, f"{x}\n".encode())
            os.close(fd)
            file.read(1)
    elif x >= 1000:
        time.sleep(0.030)
    return x


def odd_fails(x):
    if x % 2:
        raise ValueError(f"odd {x}")
    return x


def main(how, what, *args):
    call = {"square": square, "gated": gated, "odd_fails": odd_fails}[what]
    if how == "once":
        print(call(int(args[-1]), *args[:-1]))
        return
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"output": call(asked["input"], *args)}
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps({"id": asked["id"], **answer}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
