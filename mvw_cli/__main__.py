"""The process: run the command line, and turn whatever happens into messages and an exit code.

The one place that prints errors.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mvw_cli import console
from mvw_cli.errors import ExitCode, MvwError, PluginWarning
from mvw_cli.text import error_line


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
        if error.errno != errno.ENOSPC:
            raise
        console.abandon_stdout()
        console.error("the output can't be written", "no space is left on the device", "df -h")
        return ExitCode.FAILURE


def _run(arguments: list[str]) -> int:
    import click

    from mvw_cli.cli import cli

    try:
        result = cli.main(arguments, prog_name="mvw", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        console.note("Interrupted.")
        return ExitCode.INTERRUPTED
    except MvwError as error:
        from mvw_cli.cli.command_line import as_typed

        _traceback_if_wanted()
        hint = error.hint and as_typed(error.hint, arguments, cli)
        console.error(error.message, error.cause, hint)
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC):
            raise
        _traceback_if_wanted()
        console.error(
            f"unexpected {error_line(error)}",
            "this is a fault in mvw or in a plugin; re-run with --debug to see where",
            shlex.join(["mvw", "--debug", *(a for a in arguments if a != "--debug")]),
        )
        return ExitCode.FAILURE


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
