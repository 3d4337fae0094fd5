"""What went wrong while a checkpoint was loaded, told in three lines.

Errors are told apart by their types, those of the hub in `hub_problems.py`; where transformers
raises a plain OSError, by looking at the files themselves. It loads nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mvw_cli import ModelProblem, MvwError, locate_weights, on_the_hub
from mvw_hf.hub_problems import OTHERS, disk_is_full, download, http_error, no_space, of_the_hub
from mvw_hf.processor_files import lack_of_a_processor


@contextmanager
def explained(
    name: str,
    revision: str | None = None,
    *,
    kinds: Collection[str] = (),
    weights: bool = True,
) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading into three lines.

    Args:
        kinds: model types that are served without transformers knowing them.
        weights: whether any are read, so that theirs may be the fault.

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
        if disk_is_full(error):
            raise no_space(name) from error
        if "PytorchStreamReader" not in str(error):  # a cut archive; the type is all too common
            raise
        raise ModelProblem(
            f"{name} is damaged.",
            cause="Its pickled weights are cut, or no archive of PyTorch.",
            hint=OTHERS,
        ) from error
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, http_error()) as error:
        problem = (
            of_the_hub(error, name, revision)
            or _of_the_configuration(name, revision, kinds)
            or (_of_the_files(name, revision) if weights else None)
            or ModelProblem(
                f"{name} can't be loaded.",
                cause=lack_of_a_processor(name, revision) or _first_line(error),
                hint=download(name),
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
    if len(served) > 1:
        raise _unknown(name, revision, kind) or _no_vision(name, kind)
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


def _of_the_configuration(
    name: str, revision: str | None, kinds: Collection[str]
) -> ModelProblem | None:
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
    if kind is None or kind in kinds:
        return None
    unknown = _unknown(name, revision, kind)
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
            hint=download(name),
        )
    if held.damaged:
        return ModelProblem(
            f"{name} is damaged.",
            cause=f"{held.damaged[0]} is cut, or no safetensors file.",
            hint=f"{download(name)} --force-download" if on_the_hub(name) else OTHERS,
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
            hint=download(name),
        )
    return None


def _raw(name: str, revision: str | None) -> dict[str, Any]:
    """Read `config.json` as it is; classes take any other's configuration with a warning.

    Raises:
        OSError: there is none.
    """
    from transformers import PretrainedConfig

    raw: dict[str, Any] = PretrainedConfig.get_config_dict(name, revision=revision)[0]
    return raw


def _model_type(name: str, revision: str | None) -> str | None:
    kind = _raw(name, revision).get("model_type")
    return kind if isinstance(kind, str) else None


def _served(model_class: Any) -> set[str] | None:
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is not None:
        return {config_class.model_type for config_class in mapping}
    config_class = getattr(model_class, "config_class", None)
    return None if config_class is None else {config_class.model_type}


def _unknown(name: str, revision: str | None, kind: str) -> ModelProblem | None:
    import transformers
    from transformers import CONFIG_MAPPING

    if kind in CONFIG_MAPPING:
        return None
    if "auto_map" in _raw(name, revision):
        return ModelProblem(
            f"{name} is of an architecture that transformers does not know.",
            cause=f"Its model_type is {kind}; code of its own lies beside it, which is not run.",
            hint="mvw list adapters",
        )
    return ModelProblem(
        f"{name} is of an architecture that transformers does not know.",
        cause=f"Its model_type is {kind}, and transformers {transformers.__version__} has no such.",
        hint="pip install --upgrade transformers",
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
