"""A process of its own for the tests: serves items by two workers, and tells what happens.

    python group.py FOLDER

It writes its workers' ids, then the id of each item that was answered. Ctrl-C means nothing to it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main() -> None:
    from workers import items, job, served

    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.local import LocalProcesses

    signal.signal(signal.SIGINT, lambda *_: None)
    with Dispatcher(LocalProcesses(job(), 2)) as pool:
        say(*(process.pid for process, _ in pool._launcher._running.values()))
        for record in served(pool, items(Path(sys.argv[1]), 60)):
            say(record["id"], record["status"])


if __name__ == "__main__":
    main()
