"""A process of its own for the tests: serves items by two workers, and tells what happens.

    python group.py FOLDER

It writes its workers' ids, then the id of each item that was answered. After Ctrl-C it drains, and
begins once more, to be killed.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main() -> None:
    from workers import items, job, served

    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.local import LocalProcesses

    wish = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: wish.set())
    with Dispatcher(LocalProcesses(job(), 2)) as pool:
        say(*(process.pid for process, _ in pool._launcher._running.values()))
        made = items(Path(sys.argv[1]), 60)
        for draining in (wish.is_set, lambda: False):
            for record in served(pool, made, draining):
                say(record["id"], record["status"])
            say("drained")


if __name__ == "__main__":
    main()
