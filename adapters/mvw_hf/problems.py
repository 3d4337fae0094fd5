"""What went wrong while a checkpoint was loaded, told in three lines.

Errors are told apart by their types, a full disk by its number; where transformers raises a plain
OSError, by looking at the files themselves.
"""

from __future__ import annotations

import errno
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub import constants, errors, is_offline_mode
from safetensors import SafetensorError

from mvw_cli import ModelProblem, NotFetched, locate_weights, on_the_hub
from mvw_hf.loading import fetched

OTHERS = "mvw list profiles"
WITH_PICKLE = "mvw infer IMAGE QUESTION --allow-pickle"
# What the HTTP library raises on which this version of the hub is built: it has been renamed once.
_HTTP_ERROR: type[Exception] = vars(errors)["HTTPError"]
_OF_LOADING = (OSError, ValueError, KeyError, ImportError, SafetensorError, _HTTP_ERROR)
_OF_PROCESSORS = (
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json"),
)


def problem_of(
    error: Exception, name: str, revision: str | None, *, weights: bool = True
) -> ModelProblem | None:
    """Explain an error that transformers or the hub raised while loading; None for any other.

    Args:
        weights: whether any were read, so that theirs may be the fault.
    """
    if isinstance(error, UnpicklingError):
        return ModelProblem(
            f"{name} holds more than weights in its pickle.",
            cause="It asks for code to be run, or is damaged; it was not read.",
            hint=OTHERS,
        )
    if isinstance(error, RuntimeError):
        if disk_is_full(error):
            return _no_space(name)
        if "PytorchStreamReader" not in str(error):  # a cut archive; the type is all too common
            return None
        return ModelProblem(
            f"{name} is damaged.",
            cause="Its pickled weights are cut, or no archive of PyTorch.",
            hint=OTHERS,
        )
    if not isinstance(error, _OF_LOADING):
        return None
    return (
        _of_the_hub(error, name, revision)
        or _of_the_folder(name)
        or (_of_the_files(name, revision) if weights else None)
        or ModelProblem(
            f"{name} can't be loaded.",
            cause=_lack_of_a_processor(name, revision) or _first_line(error),
            hint=_download(name),
        )
    )


def processor_is_missing(error: Exception, name: str, revision: str | None) -> bool:
    """Whether a processor could not be loaded because it can't be had, rather than for a fault."""
    if not isinstance(error, (OSError, ValueError, _HTTP_ERROR)) or disk_is_full(error):
        return False
    return _of_the_hub(error, name, revision) is not None or bool(_processor_lacks(name, revision))


def disk_is_full(error: BaseException) -> bool:
    """Whether an error comes from a write for which the disk had no room.

    What downloads may be written in Rust, which tells the number in its text only.
    """
    return any(
        (isinstance(one, OSError) and one.errno == errno.ENOSPC)
        or f"(os error {errno.ENOSPC})" in str(one)
        for one in _chain(error)
    )


def _of_the_hub(error: BaseException, name: str, revision: str | None) -> NotFetched | None:
    """Explain what the hub, or the way to it, did not give; None where it was something else."""
    if disk_is_full(error):
        return _no_space(name)
    causes = list(_chain(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    hint = _download(name)
    not_held = is_a(errors.LocalEntryNotFoundError)
    if is_a(errors.GatedRepoError):
        message = f"{name} is gated, and this machine has no access to it."
        cause = "Its owners want the terms accepted on its page, by a logged-in user."
        hint = "hf auth login"
    elif is_a(errors.RepositoryNotFoundError):
        message = f"There is no model {name} on the hub."
        cause = "The name is wrong, or it is private and this machine is not logged in."
        hint = OTHERS
    elif is_a(errors.RevisionNotFoundError):
        message = f"{name} has no revision {revision}."
        cause = "The hub knows no branch, tag or commit of that name for it."
        hint = "mvw infer IMAGE QUESTION --set revision=main"
    elif is_a(errors.OfflineModeIsEnabled) or (not_held and is_offline_mode()):
        message = f"{name} is not on this machine."
        cause = "The hub is not asked: offline mode is on."
    elif not_held or is_a(_HTTP_ERROR, ConnectionError):
        message = f"{name} can't be fetched: the hub does not answer."
        cause = "There is no network or the hub is down, and the model is not on this machine."
    else:
        return None
    return NotFetched(message, cause=cause, hint=hint)


def _no_space(name: str) -> NotFetched:
    left = ""
    with suppress(OSError):
        left = f", which has {shutil.disk_usage(constants.HF_HUB_CACHE).free / 2**30:.1f} GiB left"
    return NotFetched(
        f"{name} can't be stored: the disk is full.",
        cause=f"It was being written to {constants.HF_HUB_CACHE}{left}.",
        hint="hf cache ls",
    )


def _of_the_folder(name: str) -> ModelProblem | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return None
        message, cause = f"{name} is not a checkpoint.", "The folder has no config.json."
    elif on_the_hub(name):
        return None
    else:
        message = f"There is no folder {name}."
        cause = "It is a file." if folder.exists() else "There is nothing of that name."
    return ModelProblem(message, cause=cause, hint=OTHERS)


def _of_the_files(name: str, revision: str | None) -> ModelProblem | None:
    held = locate_weights(name, revision)
    if held.folder is None:
        return None
    hint = _download(name)
    if held.missing:
        said = "is incomplete"
        of = held.files + len(held.missing)
        cause = f"{len(held.missing)} of {of} files of weights missing: {held.missing[0]}."
    elif held.damaged:
        said, cause = "is damaged", f"{held.damaged[0]} is cut, or no safetensors file."
        hint = f"{hint} --force-download" if on_the_hub(name) else OTHERS
    elif held.only_pickle:
        said, hint = "has no weights as safetensors", WITH_PICKLE
        cause = "It has pickled weights only, and reading a pickle can run any code in it."
    elif held.files:
        return None
    elif on_the_hub(name):
        # Only the configuration has been fetched: what else the repository has is not known.
        said, hint = "has no weights as safetensors", WITH_PICKLE
        cause = "If it has pickled ones, reading them can run any code in them."
    else:
        said, cause = "has no weights", "There is no safetensors file."
    return ModelProblem(f"{name} {said}.", cause=cause, hint=hint)


def _download(name: str) -> str:
    """Write the command that fetches a model, where it is one of the hub's."""
    return f"hf download {shlex.quote(name)}" if on_the_hub(name) else OTHERS


def _processor_lacks(name: str, revision: str | None) -> list[tuple[str, ...]]:
    """List the files that no processor can do without and that can't be had, by their names."""
    return [
        files
        for files in _OF_PROCESSORS
        if not any(fetched(name, file, revision) for file in files)
    ]


def _lack_of_a_processor(name: str, revision: str | None) -> str | None:
    """Name the missing files in a sentence; None where none is missing, or that can't be told."""
    with suppress(OSError, ValueError):
        lacking = [" or ".join(files) for files in _processor_lacks(name, revision)]
        return f"There is no {', and no '.join(lacking)}." if lacking else None
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
