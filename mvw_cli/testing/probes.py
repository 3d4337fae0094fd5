"""What the contracts find out by trying, without asking the adapter or the policy."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor
from transformers.cache_utils import Cache

from mvw_cli.adapter import Adapter, LoadedModel, Patch, VisionLayout
from mvw_cli.engine.cache import cache_argument
from mvw_cli.engine.layer_exits import decoder_layers, hidden_of
from mvw_cli.oracle.equivalence import noise

HEAVY = ("torch", "transformers", "PIL", "numpy", "rich", "yaml", "pydantic")

_PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""
_ABOUT = 0.6
"""A small tower of random weights mixes its patches: others may move about as much as the one that
was changed. In the models here the right one moved 0.75 of the most or more, a wrong one 0.25."""


def heavy_imports(module: str) -> list[str]:
    """List the heavy libraries that importing a module brings in.

    Raises:
        AssertionError: it can't be imported.
    """
    # The same search path: a plugin under test need not be installed yet.
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", path + _PROBE, module, *HEAVY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"`import {module}` fails:\n{done.stderr}"
    return done.stdout.split()


@contextmanager
def without_network() -> Iterator[None]:
    """Within it the hub's library stays off the network, and whoever else asks for it fails."""
    from huggingface_hub import constants

    connect = socket.socket.connect

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        # No `Exception`, so that nobody takes it for a network to be tried again.
        pytest.fail(f"the network is asked for {address}: the kit has to run without any")

    def local(self: socket.socket, address: Any) -> None:
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", local)
        yield


# -- where the vision lies ----------------------------------------------------------------------


def entry_changes(
    model: Any, first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, crossed: bool = False
) -> Tensor:
    """Measure how far what stands for each entry moves from one prompt to another: # (P,) float.

    Relative to its size. It is what the first decoder layer reads: nothing has been attended to
    yet, so an entry changes only with its own embedding.

    Args:
        crossed: look at the keys of the first cross-attention layer instead: # (V,) float.
    """
    found: list[Tensor] = []
    for inputs in (first, second):
        if crossed:
            keys = prefilled(model, inputs).layers[_cross_layers(model)[0]].keys
            found.append(keys[0].transpose(0, 1).flatten(1))
            continue

        def read(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # (P, …): Gemma 3n's states have several streams.
            found.append(hidden_of(args, kwargs).movedim(-2, 0).flatten(1).clone())

        hook = decoder_layers(model)[0].register_forward_pre_hook(read, with_kwargs=True)
        try:
            with torch.inference_mode():
                model(**inputs, use_cache=False)
        finally:
            hook.remove()
    one, other = found
    moved: Tensor = (one - other).norm(dim=1) / one.norm(dim=1)
    return moved.float().cpu()


def count_crossed(model: Any, inputs: Mapping[str, Tensor]) -> int:
    """Count the vision states that each cross-attention layer holds after the prefill."""
    layers = _cross_layers(model)
    return int(prefilled(model, inputs).layers[layers[0]].keys.shape[2]) if layers else 0


def vision_bytes(model: Any, inputs: Mapping[str, Tensor], layout: VisionLayout) -> int:
    """Count the bytes of the vision entries that the engine holds, from a cache of the model's own.

    A sliding layer has let go of the start of the prompt; a recurrent one has no entries, nor has
    one that shares those of another.
    """
    layers, prompt = _cross_layers(model), inputs["input_ids"].shape[1]
    total = 0
    for number, layer in enumerate(prefilled(model, inputs).layers):
        if getattr(layer, "keys", None) is None:
            continue
        entry = sum(
            states.shape[1] * states.shape[3] * states.element_size()
            for states in (layer.keys, layer.values)
        )
        if number in layers:
            assert layout.cross_entries is not None
            total += int(layout.cross_entries.sum()) * entry
        else:
            total += int(layout.entries[prompt - layer.keys.shape[2] :].sum()) * entry
    return total


@torch.inference_mode()
def prefilled(model: Any, inputs: Mapping[str, Tensor]) -> Cache:
    """Read a prompt; return the cache that transformers makes for the model."""
    output = model(**inputs, use_cache=True, return_dict=True)
    cache: Cache = getattr(output, cache_argument(model))
    return cache


def _cross_layers(model: Any) -> list[int]:
    return list(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


def misplaced(
    adapter: Adapter, loaded: LoadedModel, sizes: Sequence[tuple[int, int]]
) -> str | None:
    """Change a patch of one picture at a time: the vision token made from it must change most, or
    about as much.

    Args:
        sizes: of the pictures of one request, in pixels.

    Returns:
        What is wrong, or None.

    Raises:
        LookupError: the adapter does not tell where its vision tokens lie.
    """
    images = [noise(*size, seed=number) for number, size in enumerate(sizes)]
    inputs = adapter.encode(loaded, images, "How many?")
    layout = adapter.vision(loaded, inputs)
    patches = adapter.patches(loaded, inputs, images)
    if patches is None:
        raise LookupError("the adapter does not tell where its vision tokens lie")
    if len(patches) != layout.vision_tokens:
        count = layout.vision_tokens
        return f"patches() tells of {len(patches)} vision tokens, vision() of {count}"
    crossed = layout.cross_entries is not None
    vision = (layout.entries if layout.cross_entries is None else layout.cross_entries).cpu()
    told = [(one, patch) for one, patch in enumerate(patches) if patch is not None]
    for number, image in enumerate(images):
        own = [(one, patch) for one, patch in told if patch.image == number]
        largest = max((_pixels(patch, image) for _, patch in own), default=0.0)
        # One that lies half in the padding shows too little of a change.
        own = [one for one in own if _pixels(one[1], image) > 0.9 * largest]
        if not own:
            return f"no vision token has a place in image {number}"
        # The second one tells rows from columns, in a square as well.
        chosen = dict((own[0], own[1 % len(own)], own[len(own) // 3], own[-1]))
        for token, patch in chosen.items():
            edges = (patch.left, patch.top, patch.right, patch.bottom)
            if not (0 <= edges[0] < edges[2] <= 1 and 0 <= edges[1] < edges[3] <= 1):
                return f"{patch} is no part of a picture"
            changed = [*images[:number], _inverted(image, patch), *images[number + 1 :]]
            other = adapter.encode(loaded, changed, "How many?")
            moved = entry_changes(loaded.model, inputs, other, crossed=crossed)[vision]
            most = int(moved.argmax())
            if not moved[token] > _ABOUT * moved[most]:
                return (
                    f"a change at {patch} moves vision token {most} most, not {token}, which "
                    "patches() says lies there"
                )
    return None


def _pixels(patch: Patch, image: Image) -> float:
    width, height = image.size
    return (patch.right - patch.left) * width * (patch.bottom - patch.top) * height


def _inverted(image: Image, patch: Patch) -> Image:
    """Turn the colours of a patch into their opposites."""
    (width, height), changed = image.size, image.copy()
    corners = patch.left * width, patch.top * height, patch.right * width, patch.bottom * height
    left, top, right, bottom = map(round, corners)
    box = left, top, max(right, left + 1), max(bottom, top + 1)
    changed.paste(ImageOps.invert(image.crop(box)), box)
    return changed
