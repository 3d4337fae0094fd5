"""What is missing from records that were merged: shards, and items of shards.

Known by numbers alone: each run notes how many items its part of the work has, and an item's id
says which shard it belongs to. Which items they are is known to whoever lists them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mvw_cli.batch.store.index import unclean
from mvw_cli.batch.store.sidecar import Part
from mvw_cli.batch.store.worklist import shard_of


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that should be there."""

    shard: tuple[int, int] | None
    """`(i, n)` with 0 ≤ i < n; None where the work was not divided."""
    listed: int | None
    """Items that it has; None where no log of this shard was given."""
    found: int
    """Records of it."""


class Coverage:
    """Counts records by shard, for each number of shards that the work was divided into."""

    def __init__(self, parts: Iterable[Part]) -> None:
        """Take in what there should be.

        Args:
            parts: of one list of items, divided or not, or of several undivided ones.
        """
        self.parts = _joined(parts)
        divided = {part.shard[1] for part in self.parts if part.shard is not None}
        self._found = {n: [0] * n for n in sorted(divided)}
        self._total = 0

    def see(self, id: str) -> None:
        """Count the record of an item."""
        self._total += 1
        for n, found in self._found.items():
            found[shard_of(unclean(id), n)] += 1

    def gaps(self) -> list[Gap]:
        """List what is missing, whole shards included."""
        undivided = sum(part.listed for part in self.parts if part.shard is None)
        gaps = [Gap(None, undivided, self._total)] if self._total < undivided else []
        listed = {part.shard: part.listed for part in self.parts}
        for n, found in self._found.items():
            for i, count in enumerate(found):
                wanted = listed.get((i, n))
                if wanted is None or count < wanted:
                    gaps.append(Gap((i, n), wanted, count))
        return gaps


def _joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Each shard once; a folder may have grown between two runs of it."""
    undivided = []
    listed: dict[tuple[int, int], int] = {}
    for part in parts:
        if part.shard is None:
            undivided.append(part)
        else:
            listed[part.shard] = max(part.listed, listed.get(part.shard, 0))
    divided = sorted(listed.items(), key=lambda one: (one[0][1], one[0][0]))
    return (*undivided, *(Part(shard, count) for shard, count in divided))
