"""Cache entries that wait in host memory, to come back.

A copy of what a withdrawal takes out of one layer, pinned where there is a CUDA device, so that it
comes back by a direct transfer. It does not know when.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mvw_cli.engine.rows import Entries


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """Entries of one row at one layer."""

    keys: Tensor
    """# (H, K, D), on the host"""
    values: Tensor
    indices: Tensor
    """Index in the sequence of each.  # (K,) long, on the host"""

    @property
    def bytes(self) -> int:
        """Bytes of keys and values."""
        return int(self.keys.nbytes + self.values.nbytes)

    def with_more(self, other: Parked) -> Parked:
        """Add entries that were parked later."""
        if not len(self.indices) or not len(other.indices):
            return self if len(self.indices) else other
        return Parked(
            torch.cat([self.keys, other.keys], dim=1),
            torch.cat([self.values, other.values], dim=1),
            torch.cat([self.indices, other.indices]),
        )


def parked(keys: Tensor, values: Tensor, entry: Entries, places: Tensor) -> Parked:
    """Copy some places of a row to the host.

    keys, values: # (H, T, D); places: # (K,) long, on the host
    """
    indices = entry.indices(entry.length)[places]
    return Parked(_on_host(keys, places), _on_host(values, places), indices)


def _on_host(states: Tensor, places: Tensor) -> Tensor:
    taken = states[:, places.to(states.device)]
    if states.device.type != "cuda":
        return taken.to("cpu")
    host = torch.empty(taken.shape, dtype=taken.dtype, pin_memory=True)
    return host.copy_(taken)
