"""What went wrong while a checkpoint was loaded, told in three lines.

The errors of transformers and the hub are told apart by their types; where transformers raises a
plain OSError, by looking at the files themselves. It loads nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mvw_cli import ModelProblem, MvwError, locate_weights, on_the_hub

OTHERS = "mvw list profiles"


@contextmanager
def explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading into three lines.

    Raises:
        ModelProblem: the checkpoint is gated, missing, unreachable, damaged, or not of a kind that
            is served.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        yield
    except MvwError:
        raise
    except UnpicklingError as error:
        raise ModelProblem(
            f"{name} holds more than weights in its pickle.",
            cause="It asks for code to be run, or is damaged; it was not read.",
            hint=OTHERS,
        ) from error
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # a cut archive; the type is all too common
            raise
        raise ModelProblem(
            f"{name} is damaged.",
            cause="Its pickled weights are cut, or no archive of PyTorch.",
            hint=OTHERS,
        ) from error
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, _http_error()) as error:
        problem = (
            _of_the_hub(error, name, revision)
            or _of_the_configuration(name, revision)
            or _of_the_files(name, revision)
            or ModelProblem(
                f"{name} can't be loaded.",
                cause=_first_line(error),
                hint=_download(name),
            )
        )
        raise problem from error


def check_kind(model_class: Any, name: str, revision: str | None = None) -> None:
    """Compare a checkpoint's `model_type` with the class that is to hold it.

    Args:
        model_class: a class of transformers that has `from_pretrained`: an auto class or a model.

    Raises:
        ModelProblem: another architecture, or one that this transformers does not know.
        OSError: there is no configuration.
    """
    kind = _model_type(name, revision)
    if kind is None:
        return
    served = _served(model_class)
    if served is None or kind in served:
        return
    unknown = _unknown(name, kind)
    if unknown is not None:
        raise unknown
    if len(served) > 1:
        raise _no_vision(name, kind)
    raise ModelProblem(
        f"{name} is not of an architecture that this adapter serves.",
        cause=f"Its model_type is {kind}, and {next(iter(served))} is needed.",
        hint="mvw list adapters",
    )


def pickled(name: str) -> ModelProblem:
    """Say that a checkpoint has nothing but pickled weights."""
    return ModelProblem(
        f"{name} has no weights as safetensors.",
        cause="It has pickled weights only, and reading a pickle can run any code in it.",
        hint=_with_pickle(name),
    )


def _with_pickle(name: str) -> str:
    return shlex.join(["mvw", "infer", "IMAGE", "QUESTION", "--model", name, "--allow-pickle"])


def _of_the_hub(error: BaseException, name: str, revision: str | None) -> ModelProblem | None:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_chain(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    if is_a(GatedRepoError):
        return ModelProblem(
            f"{name} is gated, and this machine has no access to it.",
            cause="Its owners want the terms accepted on its page, by a logged-in user.",
            hint="hf auth login",
        )
    if is_a(RepositoryNotFoundError):
        return ModelProblem(
            f"There is no model {name} on the hub.",
            cause="The name is wrong, or it is private and this machine is not logged in.",
            hint=OTHERS,
        )
    if is_a(RevisionNotFoundError):
        command = ["mvw", "infer", "scene.png", "QUESTION", "--model", name]
        return ModelProblem(
            f"{name} has no revision {revision}.",
            cause="The hub knows no branch, tag or commit of that name for it.",
            hint=shlex.join([*command, "--set", "revision=main"]),
        )
    if is_a(OfflineModeIsEnabled) or (is_a(LocalEntryNotFoundError) and _offline()):
        return ModelProblem(
            f"{name} is not on this machine.",
            cause="The hub is not asked: offline mode is on.",
            hint=_download(name),
        )
    if is_a(LocalEntryNotFoundError, _http_error(), ConnectionError):
        return ModelProblem(
            f"{name} can't be fetched: the hub does not answer.",
            cause="There is no network or the hub is down, and the model is not on this machine.",
            hint=_download(name),
        )
    return None


def _of_the_configuration(name: str, revision: str | None) -> ModelProblem | None:
    folder = Path(name).expanduser()
    if not on_the_hub(name) and not folder.is_dir():
        return ModelProblem(
            f"There is no folder {name}.",
            cause="It is a file." if folder.exists() else "There is nothing of that name.",
            hint=OTHERS,
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        return ModelProblem(
            f"{name} is not a checkpoint.",
            cause="The folder has no config.json.",
            hint=OTHERS,
        )
    kind = None
    with suppress(OSError, ValueError):
        kind = _model_type(name, revision)
    if kind is None:
        return None
    unknown = _unknown(name, kind)
    if unknown is not None:
        return unknown
    from transformers import AutoModelForImageTextToText

    return None if kind in (_served(AutoModelForImageTextToText) or ()) else _no_vision(name, kind)


def _no_vision(name: str, kind: str) -> ModelProblem:
    return ModelProblem(
        f"{name} is not a vision-language model.",
        cause=f"transformers has {kind} as another kind of model.",
        hint=OTHERS,
    )


def _of_the_files(name: str, revision: str | None) -> ModelProblem | None:
    held = locate_weights(name, revision)
    if held.folder is None:
        return None
    if held.missing:
        of = held.files + len(held.missing)
        return ModelProblem(
            f"{name} is incomplete.",
            cause=f"{len(held.missing)} of {of} files of weights missing: {held.missing[0]}.",
            hint=_download(name),
        )
    if held.damaged:
        return ModelProblem(
            f"{name} is damaged.",
            cause=f"{held.damaged[0]} is cut, or no safetensors file.",
            hint=f"{_download(name)} --force-download" if on_the_hub(name) else OTHERS,
        )
    if held.only_pickle:
        return pickled(name)
    if not held.files and on_the_hub(name):
        # Only the configuration has been fetched: what else the repository has is not known.
        return ModelProblem(
            f"{name} has no weights as safetensors.",
            cause="If it has pickled ones, reading them can run any code in them.",
            hint=_with_pickle(name),
        )
    if not held.files:
        return ModelProblem(
            f"{name} has no weights.",
            cause="There is no safetensors file.",
            hint=_download(name),
        )
    return None


def _download(name: str) -> str:
    return f"hf download {shlex.quote(name)}" if on_the_hub(name) else OTHERS


def _offline() -> bool:
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def _model_type(name: str, revision: str | None) -> str | None:
    from transformers import PretrainedConfig

    # The raw file: a class's own `from_pretrained` takes any other's configuration with a warning.
    raw, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    kind = raw.get("model_type")
    return kind if isinstance(kind, str) else None


def _served(model_class: Any) -> set[str] | None:
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is not None:
        return {config_class.model_type for config_class in mapping}
    config_class = getattr(model_class, "config_class", None)
    return None if config_class is None else {config_class.model_type}


def _unknown(name: str, kind: str) -> ModelProblem | None:
    import transformers
    from transformers import CONFIG_MAPPING

    if kind in CONFIG_MAPPING:
        return None
    return ModelProblem(
        f"{name} is of an architecture that transformers does not know.",
        cause=f"Its model_type is {kind}, and transformers {transformers.__version__} has no such.",
        hint="pip install --upgrade transformers",
    )


def _http_error() -> type[Exception]:
    # What the HTTP library raises that this version of the hub is built on.
    from huggingface_hub import errors

    kind: type[Exception] = vars(errors)["HTTPError"]
    return kind


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
