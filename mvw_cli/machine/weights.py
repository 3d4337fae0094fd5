"""Where a model's weights lie on this machine, and whether they are all there.

Looks at file names, sizes and headers; it reads no weights and asks no network.
"""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Weights:
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
    return model.count("/") == 1 and model[0] not in "./~" and not Path(model).exists()


def locate_weights(model: str, revision: str | None = None) -> Weights:
    """Look for the weights of a model: a folder, or a hub id in the hub's cache."""
    folder = _in_cache(model, revision) if on_the_hub(model) else Path(model).expanduser()
    if folder is None or not folder.is_dir():
        return Weights(None)
    named = _named(folder)
    present = [folder / name for name in named if (folder / name).is_file()]
    pickled = not named and any(folder.glob("*.bin"))
    return Weights(
        folder=folder,
        files=len(present),
        size_bytes=sum(path.stat().st_size for path in present),
        missing=tuple(name for name in named if not (folder / name).is_file()),
        damaged=tuple(path.name for path in present if not is_whole(path)),
        only_pickle=pickled,
    )


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


def _in_cache(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError, HFValidationError):
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    return None


def _named(folder: Path) -> list[str]:
    """List the files that hold weights: those of the index, or what there is without one."""
    index = folder / "model.safetensors.index.json"
    with suppress(OSError, ValueError, KeyError, AttributeError):
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    return sorted(path.name for path in folder.glob("*.safetensors"))
