"""Attention weights of one query a row, beside the kernel that does without them.

Exact for what the engine serves: grouped queries, latent attention absorbed or expanded, windows.
It makes weights for as many queries as it is given, and never a map of the whole prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_scores(
    query: Tensor, key: Tensor, visible: Tensor | None, scaling: float | None
) -> Tensor:
    """Compute what the softmax takes for each row's newest query.

    Args:
        query: # (n, H, T, D); the last of T counts.
        key: # (n, K, L, D), K dividing H.
        visible: True where attended, or added to the scores.  # (n, 1 or H, 1, L)
        scaling: of the scores; None for 1 / sqrt(D).

    Returns:
        # (n, H, L) float32; -inf where nothing is attended
    """
    rows, heads, groups = query.shape[0], query.shape[1], query.shape[1] // key.shape[1]
    newest = query[:, :, -1].reshape(rows, key.shape[1], groups, -1)  # (n, K, G, D)
    # Scaled before the product, which could overflow in half precision.
    newest = newest * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.matmul(newest, key.transpose(2, 3)).reshape(rows, heads, -1).float()
    if visible is not None and visible.dtype == torch.bool:
        scores = scores.masked_fill(~visible[:, :, 0], -torch.inf)
    elif visible is not None:
        scores = scores + visible[:, :, 0]
    return scores


def head_mean(scores: Tensor) -> Tensor:
    """Make attention weights of scores, mean over the heads: # (n, H, L) -> (n, L) float32."""
    return scores.softmax(-1).mean(1)


def share_added(before: Tensor, output: Tensor) -> Tensor:
    """Say by which part a layer changes one token's stream, 0 to 1.  before, output: # (D,)"""
    stream = before.to(output.device).float()
    added = (output.float() - stream).norm()
    share: Tensor = added / (stream.norm() + added)
    return share
