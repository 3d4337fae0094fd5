"""Kimi-VL in plain PyTorch, from its published formulas, on a checkpoint's original names.

It shares no code with transformers or the adapter. Sources: Kimi-VL (arXiv 2504.07491, section 2.1)
for vision tower and projector, DeepSeek-V2 and -V3 (arXiv 2405.04434, section 2.1; 2412.19437,
section 2.1) for latent attention and the router.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class Reference:
    def __init__(self, state: State, config: dict[str, Any]) -> None:
        self.state = state
        self.text = config["text_config"]
        self.sight = config["vision_config"]
        self.image = config["media_placeholder_token_id"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, 1e-5)

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.state[f"{name}.weight"]

    # -- MoonViT ----------------------------------------------------------------------------

    def vision(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Encode one image.  patches: # (rows * columns, 3, p, p); returned: # (L, 4, D)"""
        kernel = self.state["vision_tower.patch_embed.proj.weight"]
        x = patches.flatten(1) @ kernel.flatten(1).T
        x = x + self.state["vision_tower.patch_embed.proj.bias"]
        grid = self.state["vision_tower.patch_embed.pos_emb.weight"]  # (64, 64, D)
        if grid.shape[:2] != (rows, columns):
            grid = F.interpolate(grid.permute(2, 0, 1)[None], size=(rows, columns), mode="bicubic")[
                0
            ].permute(1, 2, 0)
        x = x + grid.reshape(rows * columns, -1)
        turn = self._turns(rows, columns, x.shape[-1] // self.sight["num_attention_heads"])
        for number in range(self.sight["num_hidden_layers"]):
            x = self._vision_block(f"vision_tower.encoder.blocks.{number}", x, turn)
        x = self.layer_norm("vision_tower.encoder.final_layernorm", x)
        x = x.reshape(rows // 2, 2, columns // 2, 2, -1).transpose(1, 2)
        return x.reshape(rows * columns // 4, 4, -1)

    def _turns(self, rows: int, columns: int, width: int) -> Tensor:
        """Complex rotations of the pairs of a head, columns and rows in turn: # (N, width / 2)"""
        frequency = 10000.0 ** -(torch.arange(0, width, 4).float() / width)
        number = torch.arange(rows * columns)
        across = torch.outer((number % columns).float(), frequency)
        down = torch.outer((number // columns).float(), frequency)
        angle = torch.stack([across, down], -1).flatten(1)
        return torch.polar(torch.ones_like(angle), angle)

    def _vision_block(self, name: str, x: Tensor, turn: Tensor) -> Tensor:
        heads = self.sight["num_attention_heads"]
        fused = self.linear(f"{name}.wqkv", self.layer_norm(f"{name}.norm0", x))
        q, k, v = fused.view(len(x), 3, heads, -1).unbind(1)  # (N, heads, d)
        q, k = (rotate(states, turn[:, None]) for states in (q, k))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + self.linear(f"{name}.wo", attended)
        hidden = self.linear(f"{name}.mlp.fc0", self.layer_norm(f"{name}.norm1", x))
        return x + self.linear(f"{name}.mlp.fc1", F.gelu(hidden, approximate="tanh"))

    def project(self, merged: Tensor) -> Tensor:
        """Turn merged patches into vision tokens.  # (L, 4, D) -> (L, hidden)"""
        x = self.layer_norm("multi_modal_projector.pre_norm", merged).flatten(1)
        x = F.gelu(self.linear("multi_modal_projector.linear_1", x))
        return self.linear("multi_modal_projector.linear_2", x)

    # -- DeepSeek-V3 ------------------------------------------------------------------------

    def decoder_layer(self, number: int, x: Tensor) -> Tensor:
        """Run one layer over a sequence.  # (T, hidden)"""
        name, eps = f"language_model.model.layers.{number}", self.text["rms_norm_eps"]
        attended = self._attention(
            f"{name}.self_attn", self.rms_norm(f"{name}.input_layernorm", x, eps)
        )
        x = x + attended
        normed = self.rms_norm(f"{name}.post_attention_layernorm", x, eps)
        dense = number < self.text["first_k_dense_replace"]
        return x + (self._mlp if dense else self._experts)(f"{name}.mlp", normed)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        text, length = self.text, len(x)
        heads, rank = text["num_attention_heads"], text["kv_lora_rank"]
        nope, rope = text["qk_nope_head_dim"], text["qk_rope_head_dim"]
        angle = torch.outer(
            torch.arange(length).float(),
            text["rope_theta"] ** -(torch.arange(0, rope, 2).float() / rope),
        )
        turn = torch.polar(torch.ones_like(angle), angle)
        q = self.linear(f"{name}.q_proj", x).view(length, heads, nope + rope)
        down = self.linear(f"{name}.kv_a_proj_with_mqa", x)
        latent = self.rms_norm(f"{name}.kv_a_layernorm", down[:, :rank], 1e-6)
        up = self.linear(f"{name}.kv_b_proj", latent).view(length, heads, -1)
        shared = rotate(down[:, rank:], turn)  # one rotary key for all heads
        scores = torch.einsum("qhd,khd->hqk", q[..., :nope], up[..., :nope])
        scores = scores + torch.einsum("qhd,kd->hqk", rotate(q[..., nope:], turn[:, None]), shared)
        scores = scores / math.sqrt(nope + rope)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weights, up[..., nope:]).flatten(1)
        return self.linear(f"{name}.o_proj", attended)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        gate, up = (self.linear(f"{name}.{part}_proj", x) for part in ("gate", "up"))
        return self.linear(f"{name}.down_proj", F.silu(gate) * up)

    def _experts(self, name: str, x: Tensor) -> Tensor:
        scores = self.linear(f"{name}.gate", x).sigmoid()
        biased = scores + self.state[f"{name}.gate.e_score_correction_bias"]
        chosen = biased.topk(self.text["num_experts_per_tok"]).indices  # (T, k)
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True) * self.text["routed_scaling_factor"]
        outputs = [
            sum(
                weight * self._mlp(f"{name}.experts.{int(expert)}", token)
                for weight, expert in zip(row_weights, row, strict=True)
            )
            for token, row_weights, row in zip(x, weights, chosen, strict=True)
        ]
        return torch.stack(outputs) + self._mlp(f"{name}.shared_experts", x)

    def logits(self, ids: list[int], images: list[tuple[Tensor, int, int]]) -> Tensor:
        """Run the whole model over one prompt.  # (T, vocabulary)"""
        x = self.state["language_model.model.embed_tokens.weight"][torch.tensor(ids)].clone()
        if images:
            seen = torch.cat([self.project(self.vision(*image)) for image in images])
            x[torch.tensor(ids) == self.image] = seen
        for number in range(self.text["num_hidden_layers"]):
            x = self.decoder_layer(number, x)
        x = self.rms_norm("language_model.model.norm", x, self.text["rms_norm_eps"])
        return self.linear("language_model.lm_head", x)


def rotate(states: Tensor, turn: Tensor) -> Tensor:
    """Rotate neighbouring pairs as complex numbers.  states: # (…, d), turn: # (…, d / 2)"""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)
