"""The process that a command runs in: Ctrl-C that works at once, and libraries that keep quiet.

Python runs signal handlers between two bytecodes, so a prefill of minutes would hold Ctrl-C up
for minutes; and a KeyboardInterrupt that hits an import half way may be swallowed or wrapped. But
its C-level handler writes a byte to the wake-up descriptor right away, and a thread that reads it
can end the process while the main thread is deep inside PyTorch, which releases the GIL.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from mvw_cli import console
from mvw_cli.errors import ExitCode, PluginWarning

_DEFAULT = (signal.default_int_handler, signal.SIG_DFL)
_PATIENCE_S = 1.0
"""How long the last message may wait for a reader of stderr that does not read."""


@contextmanager
def exit_on_interrupt(on_interrupt: Callable[[], str]) -> Iterator[None]:
    """Within it, Ctrl-C writes the text of `on_interrupt` to stderr and ends the process with 130.

    Nothing is cleaned up: use it around work that leaves nothing half done on disk. Where signals
    are not ours to handle (another thread, or a parent that has SIGINT ignored), it does nothing.
    """
    with _watching((signal.SIGINT,), lambda: leave(on_interrupt())):
        yield


@contextmanager
def finish_on_interrupt(on_interrupt: Callable[[], str]) -> Iterator[threading.Event]:
    """Within it, Ctrl-C or SIGTERM once asks to finish what is begun; twice leaves at once.

    Whoever works has to look at the event. Leaving is as in `exit_on_interrupt`.
    """
    shutdown = threading.Event()

    def act() -> None:
        if shutdown.is_set():
            leave(on_interrupt())
        shutdown.set()

    with _watching((signal.SIGINT, signal.SIGTERM), act):
        yield shutdown


@contextmanager
def _watching(signals: Sequence[signal.Signals], act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in another thread each time that one of the signals comes."""
    ours = [one for one in signals if signal.getsignal(one) in _DEFAULT]
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while received := reader.recv(64):
            for number in received:
                if number in ours:
                    act()

    watcher = threading.Thread(target=watch, name="mvw-interrupt", daemon=True)
    watcher.start()
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # Python's handlers have nothing to do: the watcher acts.
    before = [signal.signal(one, lambda number, frame: None) for one in ours]
    try:
        yield
    finally:
        for one, handler in zip(ours, before, strict=True):
            signal.signal(one, handler)
        signal.set_wakeup_fd(previous_fd)
        writer.close()
        watcher.join()
        reader.close()


def leave(message: str) -> None:
    """Write to stderr as long as someone reads it, and end the process."""
    # Not through sys.stderr: the main thread may be in the middle of writing to it.
    rest = message.encode(errors="backslashreplace")
    with suppress(OSError, ValueError):
        while rest and select.select([], [console.stderr_fd], [], _PATIENCE_S)[1]:
            rest = rest[os.write(console.stderr_fd, rest[:512]) :]
    if "multiprocessing" in sys.modules:  # else it has started none, and --help need not load it
        from mvw_cli.machine.child_process import kill_children

        kill_children()
    os._exit(ExitCode.INTERRUPTED)


def mute_libraries() -> None:
    """Silence log lines, warnings, and the bars of downloads and loading.

    Call it before they are imported: it acts through their environment variables. What the user has
    set stays as it is.
    """
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_VERBOSITY", "error"),
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", PluginWarning)


def stay_offline() -> None:
    """Keep the hub's library off the network, whichever adapter calls it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    loaded = sys.modules.get("huggingface_hub.constants")
    if loaded is not None:  # a plugin was quicker, and the variable has been read
        loaded.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
