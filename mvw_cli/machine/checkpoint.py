"""What lies under a model's name on this machine: its weights, or something else in their place.

Weights are looked for and not read, and no network is asked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mvw_cli.errors import ModelProblem

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
"""By which an adapter of PEFT is known, as LoRA is one."""
WITH_PICKLE = "mvw infer IMAGE QUESTION --allow-pickle"
_OTHERS = "mvw list profiles"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_READ = (
    *(CONFIG, ADAPTER, _INDEX, "generation_config.json", "processor_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "tiktoken.model", "chat_template.json", "chat_template.jinja"),
)
"""What is read of a checkpoint besides its weights."""
_STEP = re.compile(r"checkpoint-(\d+)")
"""A folder of transformers' Trainer (`PREFIX_CHECKPOINT_DIR`)."""
_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The safetensors files of one checkpoint."""

    folder: Path | None
    """Where they lie; None where nothing of the model is on this machine."""
    files: int = 0
    size_bytes: int = 0
    missing: tuple[str, ...] = ()
    """Files that the checkpoint's index names and that are not there."""
    damaged: tuple[str, ...] = ()
    """Files that are cut, or no safetensors."""
    only_pickle: bool = False


def on_the_hub(model: str) -> bool:
    """Whether a name reads as ORG/NAME, and there is no folder of that name."""
    return model.count("/") == 1 and model[0] not in "./~" and not os.path.exists(model)


def locate_weights(model: str, revision: str | None = None) -> WeightFiles:
    """Look for the weights of a model: a folder, or a hub id in the hub's cache.

    Those of a LoRA adapter are its base model's.
    """
    base = lora_base(model, revision)
    if base is not None and base[0] != model:
        return locate_weights(*base)
    folder = _folder(model, revision)
    if folder is None:
        return WeightFiles(None)
    named = _named(folder)
    present = [folder / name for name in named if (folder / name).is_file()]
    return WeightFiles(
        folder=folder,
        files=len(present),
        size_bytes=sum(path.stat().st_size for path in present),
        missing=tuple(name for name in named if not (folder / name).is_file()),
        damaged=tuple(path.name for path in present if not is_whole(path)),
        only_pickle=not named and any(folder.glob("*.bin")),
    )


def lora_base(model: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return name and revision of the model that an adapter of PEFT is for; None for all others.

    It is the folder's own where a whole model lies beside the adapter.
    """
    folder = _folder(model, revision)
    if folder is None or not _has(folder, ADAPTER):
        return None
    if _has(folder, CONFIG) and _named(folder):
        return model, revision
    told = _told(folder / ADAPTER) or {}
    base = told.get("base_model_name_or_path")
    if not (base and isinstance(base, str)):
        return None
    base = os.path.expanduser(base)
    if _has(Path(base), ADAPTER) and not _named(Path(base)):
        return None  # an adapter over an adapter, or over itself
    return base, told.get("revision")


def checkpoint_problem(
    model: str, revision: str | None = None, *, weights: bool = True, thorough: bool = False
) -> ModelProblem | None:
    """Name what keeps a model from being loaded, as far as its files tell; None for nothing.

    Args:
        weights: whether they are to be read, too.
        thorough: whether to look into the files, and for weights that are missing.
    """
    return not_a_checkpoint(model) or damage(model, revision, weights=weights, thorough=thorough)


def not_a_checkpoint(model: str) -> ModelProblem | None:
    """Name what lies where a folder of a model should; None for a checkpoint and for a hub id."""
    if on_the_hub(model):
        return None
    folder = Path(model)
    if not os.path.isdir(folder):
        return _no_folder(model, folder)
    if _has(folder, CONFIG):
        return None
    if _has(folder, ADAPTER):
        if lora_base(model) is not None:
            return None
        return ModelProblem(
            f"{model} is a LoRA adapter without a base model.",
            cause=f"base_model_name_or_path in its {ADAPTER} is to name one.",
            hint=f"cat {shlex.quote(str(folder / ADAPTER))}",
        )
    below = sorted({file.parent for name in (CONFIG, ADAPTER) for file in folder.glob(f"*/{name}")})
    steps = [one for one in below if _STEP.fullmatch(one.name)]
    message, cause = f"{model} is not a checkpoint.", f"The folder has no {CONFIG}."
    if steps:
        newest = max(steps, key=lambda one: int(one.name.rpartition("-")[2]))
        message = f"{model} is the folder of a training run, not a checkpoint."
        return _elsewhere(message, f"Its newest checkpoint is {newest.name}.", newest)
    if any(folder.glob("*.gguf")):
        return _gguf(model)
    # As the hub's cache has it (huggingface_hub, `file_download.py`): refs name snapshots.
    below += [file.parent for file in folder.glob(f"snapshots/*/{CONFIG}")]
    main = folder / "refs" / "main"
    kept = [one for one in below if _has(folder, "refs/main") and one.name == main.read_text()]
    if folder.name == "original" and _has(folder.parent, CONFIG):
        kept = [folder.parent]  # of Meta's and Mistral's models
    if kept or len(below) == 1:
        return _elsewhere(message, f"{cause[:-1]}; another has.", (kept or below)[0])
    if _has(folder, "params.json"):
        cause = f"{cause[:-1]}; params.json is of its authors' own code."
    return ModelProblem(message, cause=cause, hint=_OTHERS)


def damage(
    model: str, revision: str | None = None, *, weights: bool = True, thorough: bool = True
) -> ModelProblem | None:
    """Name what is wrong with the files of a model, as `checkpoint_problem` does."""
    folder = _folder(model, revision)
    if folder is None:
        return None
    held = [_ADAPTER_WEIGHTS, *(_named(folder) or _pickled(folder))] if weights else []
    pointers = [name for name in (*_READ, *held) if _is_pointer(folder / name)]
    if pointers:
        more = f" and {len(pointers) - 1} more" if pointers[1:] else ""
        return ModelProblem(
            f"{model} has pointers of Git LFS in place of its files.",
            cause=f"Not fetched: {pointers[0]}{more}.",
            hint=f"cd {shlex.quote(str(folder))} && git lfs pull",
        )
    shut = [name for name in (*_READ, *held) if _has(folder, name)]
    shut = [name for name in shut if not os.access(folder / name, os.R_OK)]
    if shut:
        return ModelProblem(
            f"{model} can't be read.",
            cause=f"Permission denied: {shut[0]}.",
            hint=f"ls -l {shlex.quote(str(folder / shut[0]))}",
        )
    broken = [
        name
        for name in _READ
        if thorough and name.endswith(".json") and _has(folder, name)
        if _told(folder / name) is None
    ]
    if broken:
        return _is_damaged(model, f"{broken[0]} is cut, or no JSON.")
    base = lora_base(model, revision)
    if base is not None and weights:
        problem = _of_adapter(model, folder, base[0], thorough=thorough)
        if problem is not None:
            return problem
    if base is not None and base[0] != model:
        return _no_base(model, base[0]) or damage(*base, weights=weights, thorough=thorough)
    return _of_weights(model, revision) if weights and thorough else None


def is_whole(path: Path) -> bool:
    """Compare a safetensors file's length with what its header says.

    Format: https://huggingface.co/docs/safetensors - 8 bytes of header length, the header as JSON
    with the offsets of each tensor, the tensors.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return False
            header = json.loads(file.read(length))
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return False
    return bool(path.stat().st_size == 8 + length + max(ends, default=0))


def _folder(model: str, revision: str | None) -> Path | None:
    folder = _in_cache(model, revision) if on_the_hub(model) else Path(model)
    return folder if folder is not None and os.path.isdir(folder) else None


def _has(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name)  # pathlib raises where it may not look


def _in_cache(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError, HFValidationError):
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    return None


def _named(folder: Path) -> list[str]:
    """List the files that hold the model's weights, in the order in which transformers looks.

    Others may lie beside them: an adapter's, and those of the authors' own code.
    """
    if _has(folder, "model.safetensors"):
        return ["model.safetensors"]
    with suppress(KeyError, AttributeError, TypeError):
        return sorted(set((_told(folder / _INDEX) or {})["weight_map"].values()))
    others = (_ADAPTER_WEIGHTS, "consolidated")
    names = [path.name for path in folder.glob("*.safetensors")]
    return sorted(name for name in names if not name.startswith(others))


def _pickled(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("pytorch_model*.bin"))


def _is_pointer(file: Path) -> bool:
    """Whether a file is what Git has in place of one that Git LFS is still to fetch.

    Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER
    return False


def _told(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file, or nothing of the kind in it."""
    with suppress(OSError, ValueError, RecursionError):
        told = json.loads(file.read_bytes())
        return told if isinstance(told, dict) else None
    return None


def _no_folder(model: str, path: Path) -> ModelProblem:
    page = _PAGE.match(model)
    if page:
        return _elsewhere(f"{model} is the address of a page.", "A model has a name.", page[1])
    if not os.path.exists(path):
        cause = "There is nothing of that name."
    elif path.suffix == ".gguf":
        return _gguf(model)
    elif _has(path.parent, CONFIG):
        return _elsewhere(f"{model} is one file of a checkpoint.", "Its folder is.", path.parent)
    else:
        cause = "It is a file."
    return ModelProblem(f"There is no folder {model}.", cause=cause, hint=_OTHERS)


def _gguf(model: str) -> ModelProblem:
    return ModelProblem(
        f"{model} is in the GGUF format, which mvw does not read.",
        cause="It is llama.cpp's; mvw reads the safetensors that it was made from.",
        hint=_OTHERS,
    )


def _elsewhere(message: str, cause: str, model: Path | str) -> ModelProblem:
    hint = f"mvw infer IMAGE QUESTION --model {shlex.quote(str(model))}"
    return ModelProblem(message, cause=cause, hint=hint)


def _no_base(model: str, base: str) -> ModelProblem | None:
    if on_the_hub(base) or os.path.isdir(base):
        return not_a_checkpoint(base)
    return ModelProblem(
        f"The base model of the LoRA adapter {model} is not here.",
        cause=f"Its {ADAPTER} names the folder {base}.",
        hint=f"cat {shlex.quote(str(Path(model) / ADAPTER))}",
    )


def _is_damaged(model: str, cause: str) -> ModelProblem:
    again = f"{download(model)} --force-download" if on_the_hub(model) else _OTHERS
    return ModelProblem(f"{model} is damaged.", cause=cause, hint=again)


def _of_adapter(model: str, folder: Path, base: str, *, thorough: bool) -> ModelProblem | None:
    """Judge the weights of a LoRA adapter, and whether they can be loaded."""
    if find_spec("peft") is None:
        return ModelProblem(
            f"{model} is a LoRA adapter, and can't be loaded without peft.",
            cause=f"It holds changes to the weights of {base}.",
            hint='pip install "mvw[lora]"',
        )
    if not thorough:
        return None
    if not _has(folder, _ADAPTER_WEIGHTS):
        return _no_safetensors(model, pickled=_has(folder, "adapter_model.bin"))
    if is_whole(folder / _ADAPTER_WEIGHTS):
        return None
    return _is_damaged(model, f"{_ADAPTER_WEIGHTS} is cut, or no safetensors file.")


def _of_weights(model: str, revision: str | None) -> ModelProblem | None:
    held = locate_weights(model, revision)
    if held.folder is None:
        return None
    if held.missing:
        of = held.files + len(held.missing)
        cause = f"{len(held.missing)} of {of} files of weights missing: {held.missing[0]}."
        return ModelProblem(f"{model} is incomplete.", cause=cause, hint=download(model))
    if held.damaged:
        return _is_damaged(model, f"{held.damaged[0]} is cut, or no safetensors file.")
    if held.files:
        return None
    # Of a repository only the configuration has been fetched: what else it has is not known.
    return _no_safetensors(model, pickled=held.only_pickle or on_the_hub(model))


def _no_safetensors(model: str, *, pickled: bool) -> ModelProblem:
    on_request = "Pickled ones are read on request only: reading a pickle can run any code in it."
    return ModelProblem(
        f"{model} has no weights as safetensors.",
        cause=on_request if pickled else "Nor has it any others.",
        hint=WITH_PICKLE if pickled else _OTHERS,
    )


def download(model: str) -> str:
    """Write the command that fetches a model, where it is one of the hub's."""
    return f"hf download {shlex.quote(model)}" if on_the_hub(model) else _OTHERS
