"""The gates of DyVTE: what they read, what they compute, and their file.

A gate is Linear(2 H → 2048, no bias), GELU, Linear(2048 → 2), its two outputs "keep" and "exit", as
in arXiv 2411.19628. It reads the mean of the text's hidden states after the image, without the
last, next to the last one. There is one for the output of each layer but the last, after which
nothing could be saved.

File: safetensors with the tensors of `_NAMES`, for each layer l = 0…L-2, and as metadata `mvw`, a
JSON document that says which model the gates were trained on, and how.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from mvw_cli.errors import ModelProblem
from mvw_cli.files import replacing
from mvw_cli.text import error_line

HIDDEN = 2048
"""Width of a gate's hidden layer."""
METADATA = "mvw"
"""Key of the document in the file's metadata."""
_NAMES = ("gates.{}.hidden.weight", "gates.{}.output.weight", "gates.{}.output.bias")

Gate = tuple[Tensor, Tensor, Tensor]
"""Weights of the hidden layer, weights and bias of the output.
# (2048, 2 H), (2, 2048), (2,)"""


def features(hidden: Tensor, text: Tensor, image_end: int) -> Tensor:
    """Make what a gate reads of a prompt's hidden states.

    Args:
        hidden: output of a layer.  # (P, H)
        text: places of the prompt that hold no vision token.  # (T,) long
        image_end: place after the last vision token; 0 where it is read by cross-attention.

    Where a single text token follows the image, its state stands for the mean as well.

    Returns:
        # (2 H,), of the hidden states' dtype; the mean is taken in float32.
    """
    after = text[text >= image_end]
    asked = (after if len(after) else text).to(hidden.device)
    states = hidden[asked]  # (A, H)
    before = states[:-1] if len(states) > 1 else states
    return torch.cat([before.float().mean(0).to(hidden.dtype), states[-1]])


def scores(gate: Gate, read: Tensor) -> Tensor:
    """Compute a gate's two outputs, "keep" and "exit".

    read: # (…, 2 H); returned: # (…, 2)
    """
    hidden, output, bias = gate
    return functional.linear(functional.gelu(functional.linear(read, hidden)), output, bias)


@dataclass(frozen=True, slots=True, eq=False)
class Gates:
    """The gates of one model."""

    path: str
    gates: tuple[Gate, ...]
    """Gate l reads the output of layer l."""
    about: Mapping[str, Any]
    """The metadata document; empty where the file has none."""
    _placed: dict[tuple[int, torch.device, torch.dtype], Gate] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Decoder layers of the model that they belong to."""
        return len(self.gates) + 1

    @property
    def hidden_size(self) -> int:
        """H of that model."""
        return int(self.gates[0][0].shape[1]) // 2

    def gate(self, layer: int, like: Tensor) -> Gate:
        """Return the gate that reads a layer's output, where and as that is held."""
        key = (layer, like.device, like.dtype)
        if key not in self._placed:
            hidden, output, bias = (one.to(like) for one in self.gates[layer])
            self._placed[key] = (hidden, output, bias)
        return self._placed[key]

    def check(self, layers: int, hidden_size: int) -> None:
        """Refuse a model that the gates can't belong to.

        Raises:
            ModelProblem: it has another number of layers, or another width.
        """
        if (layers, hidden_size) != (self.layers, self.hidden_size):
            trained = self.about.get("model")
            named = f" ({trained})" if isinstance(trained, str) else ""
            raise ModelProblem(
                f"The gates of {self.path} belong to another model{named}.",
                cause=f"They are for {self.layers} layers of width {self.hidden_size}; this model "
                f"has {layers} of width {hidden_size}.",
                hint="mvw calibrate dyvte --help",
            )


def read_gates(path: str) -> Gates:
    """Read a file of gates; one that has not changed since is read once.

    Raises:
        ModelProblem: it is missing, unreadable, or holds no gates.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ModelProblem(
            f"The gates {path} can't be read.",
            cause=f"{error.strerror or error}. DyVTE needs gates that were trained for the model.",
            hint="mvw calibrate dyvte --help",
        ) from None
    return _read(os.path.realpath(path), status.st_mtime_ns, status.st_size)


def write_gates(gates: Sequence[Gate], about: Mapping[str, Any], path: Path) -> None:
    """Write gates, as they are held, and what is to be known about them.

    Raises:
        OSError: the file can't be written.
    """
    tensors = {
        name.format(layer): tensor.detach().cpu().contiguous()
        for layer, gate in enumerate(gates)
        for name, tensor in zip(_NAMES, gate, strict=True)
    }
    document = json.dumps(about, ensure_ascii=False)
    with replacing(path) as file:
        file.write(save(tensors, metadata={METADATA: document}))


@lru_cache(maxsize=4)
def _read(path: str, changed_ns: int, size: int) -> Gates:
    """Read a file; the last two arguments tell its states apart."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata.get(METADATA, "{}"))
        return Gates(path, _gates(tensors), about if isinstance(about, dict) else {})
    except Exception as error:  # safetensors has an error class of its own, and raises OSError, too
        raise ModelProblem(
            f"{path} is no file of DyVTE gates.",
            cause=error_line(error),
            hint="mvw calibrate dyvte --help",
        ) from None


def _gates(tensors: Mapping[str, Tensor]) -> tuple[Gate, ...]:
    count, width = len(tensors) // len(_NAMES), tensors[_NAMES[0].format(0)].shape[-1]
    names = [[name.format(layer) for name in _NAMES] for layer in range(count)]
    shapes = ((HIDDEN, width), (2, HIDDEN), (2,))
    wanted = {name: shape for gate in names for name, shape in zip(gate, shapes, strict=True)}
    if width % 2 or {name: tuple(one.shape) for name, one in tensors.items()} != wanted:
        raise ValueError(f"its tensors do not have the shapes {shapes} for each gate")
    return tuple((tensors[one], tensors[two], tensors[three]) for one, two, three in names)
