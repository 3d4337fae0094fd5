"""MLA without expanding its cache: the decode step of latent attention in absorbed form.

transformers caches DeepSeek-V3's latents compressed, and at every step expands all of them to keys
and values of all heads (`DeepseekV3Attention.expand_kv`). For one new token it is cheaper to fold
the key half of `kv_b_proj` into the query and the value half behind the attention (DeepSeek-V2,
arXiv 2405.04434, section 2.1.2): the cache is then attended to as one key head, as it is. The
engine's slots come in through the attention function that is registered, as for any other model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_interleave,
    eager_attention_forward,
)


@contextmanager
def absorbed(model: Any) -> Iterator[None]:
    """Let the steps of one token go without expanding the cache; restore the model at the end."""
    with ExitStack() as stack:
        for module in model.get_decoder().modules():
            if isinstance(module, DeepseekV3Attention) and _can_fold(module):
                plain = module.forward
                module.forward = partial(_forward, module, plain)
                stack.callback(vars(module).pop, "forward")
        yield


def _can_fold(module: Any) -> bool:
    """Whether the weights to be folded can be read outside of their own layer.

    Those that are quantised, or sent to the GPU when their layer runs, can't.
    """
    up = module.kv_b_proj
    readable = type(up) is torch.nn.Linear and up.weight.device.type != "meta"
    return readable and "forward" not in vars(module)


def _forward(
    module: Any,
    plain: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    past_key_values: Any = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend from one token a row; a prefill goes the plain way.

    hidden_states: # (B, T, hidden)
    """
    if past_key_values is None or hidden_states.shape[1] != 1:
        output: tuple[Tensor, Tensor | None] = plain(
            hidden_states=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **options,
        )
        return output
    nope, query_rotary, latent, key_rotary = _projected(module, hidden_states, position_embeddings)
    latent, key_rotary = past_key_values.update(latent, key_rotary, module.layer_idx)
    up = module.kv_b_proj.weight.view(module.num_heads, -1, module.kv_lora_rank)
    key_half, value_half = up.split([module.qk_nope_head_dim, module.v_head_dim], dim=1)
    folded = torch.einsum("bhtd,hdr->bhtr", nope, key_half)
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    with _one_key_head(module):
        attended, weights = attention(
            module,
            torch.cat((folded, query_rotary), dim=-1),
            torch.cat((latent, key_rotary), dim=-1),
            latent,
            attention_mask,
            dropout=0.0,
            scaling=module.scaling,
            **options,
        )  # (B, 1, H, rank)
    values = torch.einsum("bthr,hdr->bthd", attended, value_half)
    return module.o_proj(values.flatten(2)), weights


def _projected(
    module: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make queries of all heads, and the latent and rotary key that all heads share.

    # (B, H, T, nope), (B, H, T, rope), (B, 1, T, rank), (B, 1, T, rope)
    """
    rows, length, _ = hidden_states.shape
    if module.q_lora_rank is None:
        queries = module.q_proj(hidden_states)
    else:
        queries = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(hidden_states)))
    queries = queries.view(rows, length, module.num_heads, module.qk_head_dim).transpose(1, 2)
    nope, rotary = queries.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    down = module.kv_a_proj_with_mqa(hidden_states)[:, None]  # (B, 1, T, rank + rope)
    latent, key_rotary = down.split([module.kv_lora_rank, module.qk_rope_head_dim], dim=-1)
    turn = (
        apply_rotary_pos_emb_interleave if module.config.rope_interleave else apply_rotary_pos_emb
    )
    rotary, key_rotary = turn(rotary, key_rotary, *position_embeddings)
    return nope, rotary, module.kv_a_layernorm(latent), key_rotary


@contextmanager
def _one_key_head(module: Any) -> Iterator[None]:
    """Let all query heads read one key head while the attention function runs."""
    groups = module.num_key_value_groups
    module.num_key_value_groups = module.num_heads
    try:
        yield
    finally:
        module.num_key_value_groups = groups
