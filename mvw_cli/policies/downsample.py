"""Down-sampling: from one decoder layer on, only the vision tokens on a coarser grid. A control.

VTC-Bench (arXiv 2510.07143) finds that a smaller image beats many ways of choosing tokens. This is
the same after the vision encoder: whole rows and columns of tokens go, and nothing is averaged. How
an image's tokens lie is the adapter's knowledge; without it they are pruned evenly in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policies.layers import KeepPart, kept_count
from mvw_cli.policy import LayerView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Downsample(KeepPart):
    """From `layer` on only some rows and columns of each image, evenly spread.

    Raises:
        ValueError: `layer` is below 0, or `keep` not above 0 and at most 1.
    """

    name: ClassVar[str] = "downsample"
    needs_all: ClassVar[bool] = True

    def choose(self, view: LayerView) -> Tensor:
        import torch

        if view.grids is not None:
            return torch.cat([self._of_grid(*grid) for grid in view.grids])
        images = view.images or (len(view.present),)
        return torch.cat([_marked(tokens, kept_count(tokens, self.keep)) for tokens in images])

    def _of_grid(self, rows: int, columns: int) -> Tensor:
        """Mark the tokens of an image that stay: # (rows * columns,) bool."""
        fewer_rows, fewer_columns = coarser(rows, columns, self.keep)
        down, across = _marked(rows, fewer_rows), _marked(columns, fewer_columns)
        return (down[:, None] & across[None]).flatten()

    def describe(self) -> str:
        return f"vision down-sampled to {self.keep:.4g} from layer {self.layer}"


def coarser(rows: int, columns: int, keep: float) -> tuple[int, int]:
    """Choose rows and columns of a smaller grid, of about the same shape.

    Of the grids with one side within 1 of `sqrt(keep)` times the whole one, and the other within 1
    of what that leaves, take the one whose size is nearest to `keep` times the whole; of equal ones
    the one nearest in shape, then the one with fewer rows, then with fewer columns.
    """
    whole, scale = rows * columns, sqrt(keep)
    grids = {
        (down, across)
        for down in _around(rows * scale, rows)
        for across in _around(whole * keep / down, columns)
    } | {
        (down, across)
        for across in _around(columns * scale, columns)
        for down in _around(whole * keep / across, rows)
    }

    def worse(grid: tuple[int, int]) -> tuple[float, int, int, int]:
        down, across = grid
        return abs(down * across - whole * keep), abs(down * columns - across * rows), down, across

    return min(grids, key=worse)


def _around(length: float, most: int) -> set[int]:
    return {min(most, max(1, near)) for near in (floor(length), ceil(length))}


def _marked(length: int, count: int) -> Tensor:
    """Mark the middle of each of `count` equal stretches: # (length,) bool."""
    import torch

    marks = torch.zeros(length, dtype=torch.bool)
    marks[[(2 * stretch + 1) * length // (2 * count) for stretch in range(count)]] = True
    return marks
