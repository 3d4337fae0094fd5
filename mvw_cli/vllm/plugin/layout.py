"""Move entries of a paged KV cache, whatever the order is in which a backend keeps them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mvw_cli.vllm.plugin.plan import Move

_DIGIT = 128  # exact in bfloat16 and float16


def move_layers(runner: Any, move: Move) -> None:
    """Carry out one request's move in every layer's cache of a model runner (V1 or V2)."""
    group = runner.kv_cache_config.kv_cache_groups[0]
    context = runner.compilation_config.static_forward_context
    layouts = runner.__dict__.setdefault("_mvw_layouts", {})
    slots = move.slots(group.kv_cache_spec.block_size)
    source, target = (torch.from_numpy(one).to(runner.device) for one in slots)
    caches: set[int] = set()
    for name in group.layer_names:
        address = context[name].kv_cache.data_ptr()
        if address not in caches:  # layers may share one
            caches.add(address)
            _move_entries(context[name], source, target, layouts)


def _move_entries(layer: Any, source: Tensor, target: Tensor, layouts: dict[int, Tensor]) -> None:
    """Copy entries of one attention layer from slot to slot; all are read before any is written.

    Args:
        layer: vLLM's `Attention` or `MLAAttention`.
        source, target: # (n,), slots as its slot mapping counts them.
        layouts: by layer, what has been learned of packed caches; filled here.
    """
    cache = layer.kv_cache
    if cache.device.type != "cpu" or cache.dim() == 3:
        # Logically (blocks, heads, tokens, content) whatever the order in memory is, as
        # kv_cache_interface.py has it; MLA's lacks the heads.
        by_token = cache.movedim(-2, 1)
        size = by_token.shape[1]
        taken = by_token[source // size, source % size]
        by_token[target // size, target % size] = taken
        return
    layout = layouts.get(id(layer))
    if layout is None:
        layout = layouts[id(layer)] = _learn_layout(layer, cache)
    size, blocks = len(layout), cache.flatten(1)
    assert blocks.data_ptr() == cache.data_ptr(), "the cache's blocks are not contiguous"
    taken = blocks[(source // size)[:, None], layout[source % size]]
    blocks[(target // size)[:, None], layout[target % size]] = taken


def _learn_layout(layer: Any, cache: Tensor) -> Tensor:
    """Return where the elements of each token of a block lie: # (block_size, elements) int64.

    The CPU's backend packs blocks as its kernels like it (keys are transposed in groups of
    tokens), so it is asked: it writes numbered entries into a scratch block, digit by digit.
    """
    heads, head = layer.num_kv_heads, layer.head_size
    size = cache[0].numel() // (2 * heads * head)  # of a kernel's block, maybe less than the pool's
    count = 2 * size * heads * head
    numbers = torch.arange(count, device=cache.device).view(2, size, heads, head)
    slots = torch.arange(size, device=cache.device) + size  # block 0 stays unused
    found = torch.zeros(cache[0].numel(), dtype=torch.int64, device=cache.device)
    weight = 1
    while weight < count:
        scratch = torch.zeros((2, *cache.shape[1:]), dtype=cache.dtype, device=cache.device)
        key, value = (numbers // weight % _DIGIT).to(cache.dtype)
        layer.impl.do_kv_cache_update(layer, key, value, scratch, slots)
        found += scratch[1].flatten().to(torch.int64) * weight
        weight *= _DIGIT
    order = torch.arange(count, device=cache.device)
    where = torch.empty_like(found).scatter_(0, found, order)
    assert count == len(found) and torch.equal(found[where], order), "a layout that repeats entries"
    return where.view(2, size, heads * head).transpose(0, 1).reshape(size, -1)
