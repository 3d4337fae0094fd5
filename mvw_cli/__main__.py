"""The process: run the command line, and turn whatever happens into messages and an exit code.

The one place that prints errors.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mvw_cli import console
from mvw_cli.errors import ExitCode, MvwError, OutOfMemory, PluginWarning
from mvw_cli.text import error_line, printable

_FULL = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the limit (ulimit -f)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mvw` with these arguments, or the process' own, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console.reset()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that can't show a character of the answer is no reason to lose the answer.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            _show_plugin_warnings()
            code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        console.abandon_stdout()  # whoever read it has had enough
        return ExitCode.FAILURE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        console.abandon_stdout()
        cause = _FULL[error.errno]
        console.error("the output can't be written", cause, "df -h")
        return ExitCode.FAILURE


def _run(arguments: list[str]) -> int:
    import click

    from mvw_cli.cli import cli

    try:
        result = cli.main(arguments, prog_name="mvw", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        sys.stderr.write(printable(shown.getvalue()))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        console.note("Interrupted.")
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, *_FULL):
            raise
        _traceback_if_wanted()
        known = error if isinstance(error, MvwError) else _recognised(error)
        if known is not None:
            from mvw_cli.cli.command_line import as_typed

            hint = known.hint and as_typed(known.hint, arguments, cli)
            console.error(known.message, known.cause, hint)
            return known.exit_code
        console.error(
            f"unexpected {error_line(error)}",
            "this is a fault in mvw or in a plugin; re-run with --debug to see where",
            shlex.join(["mvw", "--debug", *(a for a in arguments if a != "--debug")]),
        )
        return ExitCode.FAILURE


def _recognised(error: Exception) -> MvwError | None:
    """Tell what is no fault in mvw: memory that ran out anywhere, the code of a plugin, or what the
    system refuses."""
    ran_out = isinstance(error, MemoryError)
    if "torch" in sys.modules:
        with suppress(Exception):  # of a PyTorch that is broken
            from mvw_cli.engine import memory

            ran_out = memory.ran_out(error)
    if ran_out:
        return OutOfMemory(
            "out of memory",
            cause=next(iter(str(error).splitlines()), "") or "the machine has no more to give",
            hint="mvw infer IMAGE QUESTION --dtype bfloat16 --set images.max_pixels=250000",
        )
    if "mvw_cli.plugins" in sys.modules:
        from mvw_cli.plugins import culprit

        found = culprit(error)
        if found is not None:
            return found
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        path = "." if name is None or isinstance(name, int) else os.fsdecode(name)
        hint = "ulimit -n" if error.errno == errno.EMFILE else f"ls -ld {shlex.quote(path)}"
        return MvwError(f"Cannot use {path}", cause=error.strerror, hint=hint)
    return None


def _traceback_if_wanted() -> None:
    if console.settings.debug:
        import traceback

        traceback.print_exc()


def _show_plugin_warnings() -> None:
    """Show plugin warnings as one line each; while completing a word, the shell wants silence."""
    standard = warnings.showwarning
    completing = "_MVW_COMPLETE" in os.environ

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, PluginWarning):
            standard(message, category, *rest, **more)
        elif not completing:
            console.warn(str(message))

    warnings.showwarning = show
    warnings.simplefilter("always", PluginWarning)  # not even PYTHONWARNINGS=error ends a command


if __name__ == "__main__":
    raise SystemExit(main())
