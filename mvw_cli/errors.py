"""Exit codes, and the errors that a user can do something about.

Every such error is three lines: what happened, why, and a command to type next. Only
`mvw_cli/__main__.py` prints them, and a module that is a command of its own (`python -m`).
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells the shell. The table in docs/exit-codes.md is checked against it."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    ITEMS_FAILED = 3
    PLUGIN = 4
    OUT_OF_MEMORY = 5
    BAD_IMAGE = 6
    MODEL = 7
    CHECKS_FAILED = 20
    INTERRUPTED = 130


class MvwError(Exception):
    """A failure with a message for the user: what, cause, and a hint that is a valid command.

    In a hint `mvw infer IMAGE QUESTION --option …` stands for the command that was typed, with that
    option: so it is shown, whichever command it was.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint


def raised_in(error: BaseException, package: str) -> bool:
    """Whether it is a package's code that has raised, be it through PyTorch."""
    from traceback import walk_tb

    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    tops = [name.partition(".")[0] for name in names]
    while tops and tops[-1] == "torch":
        del tops[-1]
    return bool(tops) and tops[-1] == package


class PluginWarning(UserWarning):
    """Something is wrong with a plugin; the message is one line and names the way out."""


class UsageProblem(MvwError):
    """A wrong argument, profile or configuration."""

    exit_code = ExitCode.USAGE


class PluginProblem(MvwError):
    """An adapter, policy or plugin is missing or broken."""

    exit_code = ExitCode.PLUGIN


class OutOfMemory(MvwError):
    """The device has too little memory for the model or the request."""

    exit_code = ExitCode.OUT_OF_MEMORY


class BadImage(MvwError):
    """An input image is missing, unreadable or refused."""

    exit_code = ExitCode.BAD_IMAGE


class ModelProblem(MvwError):
    """A model can't be loaded, can't be served exactly, or gives numbers that are none."""

    exit_code = ExitCode.MODEL


class NotFetched(ModelProblem):
    """The hub does not give a model: out of reach, gated, not there. Asking again won't help."""
