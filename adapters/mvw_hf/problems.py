"""What went wrong while a checkpoint was loaded, told in three lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pickle import UnpicklingError

from huggingface_hub import constants, errors, is_offline_mode

from mvw_cli import ModelProblem, NotFetched, checkpoint_problem, lora_base, on_the_hub
from mvw_hf.loading import fetched, said

OTHERS = "mvw list profiles"
# What the HTTP library raises on which this version of the hub is built: it has been renamed once.
_HTTP_ERROR: type[Exception] = vars(errors)["HTTPError"]
_OUT_OF_REACH = (errors.LocalEntryNotFoundError, _HTTP_ERROR, ConnectionError)
_OF_PROCESSORS = (
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json"),
)


@dataclass(frozen=True, slots=True)
class Known:
    """What to tell of an error, by its type and text, or those of one that it comes from."""

    types: type[Exception] | tuple[type[Exception], ...]
    message: str
    cause: str
    hint: str
    text: str = ""
    """A pattern to be found in what the error says."""
    problem: type[ModelProblem] = NotFetched


DISK_IS_FULL = Known(
    (OSError, RuntimeError),
    "{name} can't be stored: the disk is full.",
    "It was being written to {cache}.",
    "hf cache ls",
    text=r"\[Errno 28\]|\(os error 28\)",  # the second is of what downloads, written in Rust
)
_NOT_HERE = Known(
    (errors.OfflineModeIsEnabled, *_OUT_OF_REACH),
    "{name} is not on this machine.",
    "The hub is not asked: offline mode is on.",
    "{download}",
)
_KNOWN = (
    DISK_IS_FULL,
    Known(
        errors.GatedRepoError,
        "{name} is gated, and this machine has no access to it.",
        "Its owners want the terms accepted on its page, by a logged-in user.",
        "hf auth login",
    ),
    Known(
        errors.RepositoryNotFoundError,
        "There is no model {name} on the hub.",
        "The name is wrong, or it is private and this machine is not logged in.",
        OTHERS,
    ),
    Known(
        errors.RevisionNotFoundError,
        "{name} has no revision {revision}.",
        "The hub knows no branch, tag or commit of that name for it.",
        "mvw infer IMAGE QUESTION --set revision=main",
    ),
    Known(
        _OUT_OF_REACH,
        "{name} can't be fetched: the hub does not answer.",
        "There is no network or the hub is down, and the model is not on this machine.",
        "{download}",
    ),
    Known(
        (UnpicklingError, RuntimeError),
        "{name} has pickled weights that can't be read.",
        "They are cut, or ask for code to be run; none was.",
        OTHERS,
        text="Weights only load failed|PytorchStreamReader",
        problem=ModelProblem,
    ),
)


def problem_of(
    error: BaseException, name: str, revision: str | None, *, weights: bool = True
) -> ModelProblem | None:
    """Explain an error that transformers or the hub raised while loading; None of lacking memory.

    Whatever it is, the files of the checkpoint have led to it: they may hold anything.

    Args:
        weights: whether any were read, so that theirs may be the fault.
    """
    known = known_of(error)
    if known is None:
        problem = checkpoint_problem(name, revision, weights=weights, thorough=True)
        if problem is not None:
            return problem
    # What a LoRA adapter lacks is its base model's.
    name, revision = lora_base(name, revision) or (name, revision)
    if known is not None:
        values = {
            "name": name,
            "revision": revision,
            "cache": constants.HF_HUB_CACHE,
            "download": _download(name),
        }
        told = [text.format_map(values) for text in (known.message, known.cause, known.hint)]
        return known.problem(told[0], cause=told[1], hint=told[2])
    if isinstance(error, MemoryError) or re.search("(out of|allocate) memory", str(error)):
        return None
    lacking = lack_of_a_processor(name, revision)
    cause = f"There is no {', and no '.join(lacking)}." if lacking else said(error)
    return ModelProblem(f"{name} can't be loaded.", cause=cause, hint=_download(name))


def known_of(error: BaseException) -> Known | None:
    """Look an error up, and whatever it comes from."""
    causes = list(_chain(error))
    for known in (DISK_IS_FULL, _NOT_HERE, *_KNOWN) if is_offline_mode() else _KNOWN:
        if any(isinstance(one, known.types) and re.search(known.text, str(one)) for one in causes):
            return known
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _download(name: str) -> str:
    """Write the command that fetches a model, where it is one of the hub's."""
    return f"hf download {shlex.quote(name)}" if on_the_hub(name) else OTHERS


def lack_of_a_processor(name: str, revision: str | None) -> list[str]:
    """List the files that no processor can do without and that can't be had, by their names."""
    return [
        " or ".join(files)
        for files in _OF_PROCESSORS
        if not any(fetched(name, file, revision) for file in files)
    ]


def processor_is_missing(error: Exception, name: str, revision: str | None) -> bool:
    """Whether a processor could not be loaded because it can't be had, rather than for a fault."""
    known = known_of(error)
    return bool(lack_of_a_processor(name, revision)) if known is None else known != DISK_IS_FULL
