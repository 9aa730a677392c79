"""Faults for ranks of test jobs, which find this module through PYTHONPATH: FAULT_KIND at step FAULT_STEP of attempts FAULT_ATTEMPTS.

Also FAULT_NODE: a node whose preflight may use one processor only, as where a step is bound to too few cores.

exit: the process ends with code 7, without a word. memory: MemoryError in the main thread. error: RuntimeError there.
"""

import ctypes
import json
import os
import sys
import threading
import time


def _wait_and_fail(run: str, attempt: str, rank: str) -> None:
    beat = f"{run}/attempts/{attempt}/heartbeat.rank-{rank}.json"
    while True:
        try:
            with open(beat) as file:
                if json.load(file)["step"] >= int(os.environ.get("FAULT_STEP", "1")):
                    break
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    kind = os.environ["FAULT_KIND"]
    if kind == "exit":
        os._exit(7)
    error = {"memory": MemoryError, "error": RuntimeError}[kind]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.main_thread().ident), ctypes.py_object(error))


if "FAULT_KIND" in os.environ and sys.orig_argv[1:3] == ["-m", "launcher.train"]:
    words = sys.orig_argv
    number = words[words.index("--attempt") + 1]
    if number in os.environ.get("FAULT_ATTEMPTS", "1").split(",") or os.environ.get("FAULT_ATTEMPTS") == "all":
        place = (words[words.index("--run") + 1], number, os.environ.get("RANK", "0"))
        if os.environ.get("FAULT_RANK", place[2]) == place[2]:
            threading.Thread(target=_wait_and_fail, args=place, daemon=True).start()

if os.environ.get("FAULT_NODE") == os.environ.get("SLURMD_NODENAME") and sys.orig_argv[3:4] == ["preflight"]:
    os.sched_setaffinity(0, {0})
