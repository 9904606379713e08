"""Programs on processes as a text on concurrency in Python shows them: the same with both libraries."""

from __future__ import annotations

import pytest
from tests.e2e.moved_program import same_in_both

PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "function": (
        """
        from multiprocessing import Process

        def task(name, times=1):
            print(f"{name} is running" * times)

        if __name__ == "__main__":
            p = Process(target=task, args=("child",), kwargs={"times": 1})
            p.start()
            p.join()
            print("main", p.exitcode)
        """,
        ["child is running", "main 0"],
    ),
    "subclass": (
        """
        from multiprocessing import Process, current_process

        class MyProcess(Process):
            def __init__(self, dish):
                super().__init__()
                self.dish = dish
                self.name = f"cook of {dish}"

            def run(self):
                print(f"{current_process().name} cooks {self.dish}")

        if __name__ == "__main__":
            cooks = [MyProcess(dish) for dish in ("soup", "rice", "fish")]
            for each in cooks:
                each.start()
            for each in cooks:
                each.join()
            print("all served", [each.exitcode for each in cooks])
        """,
        ["all served [0, 0, 0]", "cook of fish cooks fish", "cook of rice cooks rice", "cook of soup cooks soup"],
    ),
    "memory is not shared": (
        """
        from multiprocessing import Process

        money = 100

        def spend():
            global money
            money = 666
            print("child", money)

        if __name__ == "__main__":
            p = Process(target=spend)
            p.start()
            p.join()
            print("main", money)
        """,
        ["child 666", "main 100"],
    ),
    "names, pids, parents": (
        """
        import os
        import multiprocessing

        def task():
            me = multiprocessing.current_process()
            print(me.name, me.pid == os.getpid(), multiprocessing.parent_process().pid == int(os.environ["MAIN"]))

        if __name__ == "__main__":
            os.environ["MAIN"] = str(os.getpid())
            processes = [multiprocessing.Process(target=task, name=f"p{n}") for n in range(3)]
            for p in processes:
                p.start()
            for p in processes:
                p.join()
            print(multiprocessing.current_process().name, len({p.pid for p in processes}))
            print(multiprocessing.active_children())
        """,
        ["MainProcess 3", "[]", "p0 True True", "p1 True True", "p2 True True"],
    ),
    "alive, terminate": (
        """
        import time
        from multiprocessing import Process, Event

        def task(started):
            started.set()
            time.sleep(60)
            print("never")

        if __name__ == "__main__":
            started = Event()
            p = Process(target=task, args=(started,))
            print(p.is_alive(), p.pid, p.exitcode)
            p.start()
            started.wait()
            print(p.is_alive())
            p.terminate()
            p.join()
            print(p.is_alive(), p.exitcode)
        """,
        ["False -15", "False None None", "True"],
    ),
    "exit codes": (
        """
        import os
        import signal
        import sys
        from multiprocessing import Process

        def leave(how):
            if how == "exit":
                sys.exit(3)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "os":
                os._exit(7)

        if __name__ == "__main__":
            for how in ("fine", "exit", "kill", "os"):
                p = Process(target=leave, args=(how,))
                p.start()
                p.join(30)
                print(how, p.exitcode)
        """,
        ["exit 3", "fine 0", "kill -9", "os 7"],
    ),
    "daemon": (
        """
        import time
        from multiprocessing import Process

        def watch():
            time.sleep(60)
            print("never: the daemon ends with the main process")

        def child():
            try:
                Process(target=watch).start()
            except AssertionError as error:
                print(error)

        if __name__ == "__main__":
            p = Process(target=watch)
            p.daemon = True
            p.start()
            q = Process(target=child, daemon=True)
            q.start()
            q.join()
            print("main ends", p.is_alive(), p.daemon)
        """,
        ["daemonic processes are not allowed to have children", "main ends True True"],
    ),
    "no join: the main process waits": (
        """
        import time
        from multiprocessing import Process

        def task():
            time.sleep(0.2)
            print("child")

        if __name__ == "__main__":
            Process(target=task).start()
            print("main")
        """,
        ["child", "main"],
    ),
    "tickets": (
        """
        import json
        import time
        from multiprocessing import Lock, Process

        def search(name):
            with open("db.json") as file:
                return json.load(file)["count"]

        def get(name):
            with open("db.json") as file:
                dic = json.load(file)
            if dic["count"] > 0:
                time.sleep(0.01)
                dic["count"] -= 1
                with open("db.json", "w") as file:
                    json.dump(dic, file)
                print("a ticket is sold")
            else:
                print("sold out")

        def task(name, mutex):
            mutex.acquire()
            search(name)
            get(name)
            mutex.release()

        if __name__ == "__main__":
            with open("db.json", "w") as file:
                json.dump({"count": 3}, file)
            mutex = Lock()
            buyers = [Process(target=task, args=(f"buyer {n}", mutex)) for n in range(8)]
            for each in buyers:
                each.start()
            for each in buyers:
                each.join()
            print(search("main"), "left")
        """,
        ["0 left", *["a ticket is sold"] * 3, *["sold out"] * 5],
    ),
    "value, array": (
        """
        from ctypes import Structure, c_double
        from multiprocessing import Array, Process, Value

        class Point(Structure):
            _fields_ = [("x", c_double), ("y", c_double)]

        def change(number, row, points, text):
            for _ in range(100):
                with number.get_lock():
                    number.value += 1
            with row.get_lock():
                for i in range(len(row)):
                    row[i] = -row[i]
            for point in points:
                point.x **= 2
            text.value = text.value.upper()

        if __name__ == "__main__":
            number, row = Value("i", 0), Array("d", range(4))
            points = Array(Point, [(2, 3), (-1, 5)], lock=False)
            text = Array("c", b"hello")
            processes = [Process(target=change, args=(number, row, points, text)) for _ in range(3)]
            for p in processes:
                p.start()
                p.join()
            print(number.value, row[:], [(point.x, point.y) for point in points], text.value)
        """,
        ["300 [-0.0, -1.0, -2.0, -3.0] [(256.0, 3.0), (1.0, 5.0)] b'HELLO'"],
    ),
}
"""What it is about -> the program, and what it prints, sorted."""


@pytest.mark.parametrize("about", PROGRAMS)
def test_processes(about, tmp_path):
    """A program on processes prints the same with both libraries, and ends the same."""
    source, expected = PROGRAMS[about]
    assert same_in_both(tmp_path, source) == expected
