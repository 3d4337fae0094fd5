"""A worker process on this machine: what runs at the far end of a pipe.

It lives as long as its parent does: when the pipe closes, it ends at once, whatever it is doing.
It holds nothing that needs tidying up. Ctrl-C and SIGTERM, which reach the whole process group,
are for the parent to decide upon.
"""

from __future__ import annotations

import threading
import warnings
from multiprocessing.connection import Connection

from mvw_cli.batch.workers.child_process import end_now, go_deaf
from mvw_cli.batch.workers.messages import Report
from mvw_cli.batch.workers.worker import Job

_EVERY_S = 0.2


def main(connection: Connection, job: Job, workers: int) -> None:
    """Serve what comes through the pipe.

    Args:
        workers: that many share the cores of this machine.
    """
    go_deaf()
    warnings.simplefilter("ignore")  # the parent has told them, and would tell them again
    from mvw_cli.batch.workers.serving import Serving, share_threads

    lock = threading.Lock()

    def send(report: Report) -> None:
        try:
            with lock:
                connection.send(report)
        except OSError:
            end_now()

    serving = Serving(job, send, every_s=_EVERY_S)

    def listen() -> None:
        while True:
            try:
                order = connection.recv()
            except (EOFError, OSError):
                return end_now()
            serving.deliver(order)

    threading.Thread(target=listen, name="mvw-orders", daemon=True).start()
    share_threads(workers)
    serving.work()
