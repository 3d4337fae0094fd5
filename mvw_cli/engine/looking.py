"""What policies see of a decode step's attention, and what they let it see.

For each row whose policy asks: the newest token's weights on the vision tokens, computed beside the
kernel, and which vision tokens the layers after one of them attend to. What nobody asks for is not
computed.

It does not know policies' reasons, and it does not serve attention: `attention.py` calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mvw_cli.engine.rows import Entries, Part, Rows
from mvw_cli.engine.vision import Vision
from mvw_cli.engine.weights import attention_scores, head_mean, share_added
from mvw_cli.policy import Attend, AttendView


@dataclass(slots=True, eq=False)
class Looker:
    """What one sequence's policy wants to see, and what there was in the last step."""

    vision: Vision
    holding: frozenset[int]
    """Layers that hold vision."""
    layers: frozenset[int]
    """Whose weights are wanted, for the mass or by themselves."""
    attend: Attend | None = None
    attend_layer: int | None = None
    found: dict[int, Tensor] = field(default_factory=dict)
    """# (N,) float32"""
    added: dict[int, Tensor] = field(default_factory=dict)
    chosen: Tensor | None = None
    """Which vision tokens the layers after `attend_layer` attend to.  # (N,) bool, on the host"""
    error: Exception | None = None
    """What the policy's own function has raised: its request fails, its neighbours don't."""
    _columns: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        """Begin a step."""
        self.found, self.added, self.chosen = {}, {}, None

    def wants(self, number: int) -> bool:
        """Whether the scores of a layer are looked at."""
        return number in self.layers or number == self.attend_layer

    def limits(self, number: int) -> bool:
        """Whether a layer attends to what was chosen only."""
        after = self.attend_layer is not None and number > self.attend_layer
        return self.chosen is not None and after and number in self.holding

    def columns(self, number: int, entry: Entries, device: torch.device) -> tuple[Tensor, Tensor]:
        """Say in which places of a row the vision tokens lie, and which they are: # (K,) long."""
        known = self._columns.get(number)
        if known is None or known[0] is not entry.kept:
            of = self.vision.of(entry.kept)
            places = (of >= 0).nonzero()[:, 0]
            known = entry.kept, places.to(device), of[places].to(device)
            self._columns[number] = known
        _, columns, numbers = known
        return columns, numbers

    def take(self, number: int, scores: Tensor, columns: Tensor, numbers: Tensor) -> None:
        """Take in the scores of a row at a layer.

        scores: # (H, L) float32; columns, numbers: # (K,) long, as `columns` gives them.
        """
        if number in self.layers:
            weights = head_mean(scores[None])[0]
            found = torch.zeros(self.vision.tokens, device=weights.device)
            found[numbers] = weights[columns]
            self.found[number] = found
        if number != self.attend_layer or self.attend is None:
            return
        heads, device = scores.shape[0], scores.device
        present = torch.zeros(self.vision.tokens, dtype=torch.bool, device=device)
        present[numbers] = True
        vision = torch.full((heads, self.vision.tokens), -torch.inf, device=device)
        vision[:, numbers] = scores[:, columns]
        text = torch.ones(scores.shape[1], dtype=torch.bool, device=device)
        text[columns] = False
        try:
            chosen = self.attend(AttendView(vision, scores[:, text], present))
            self.chosen = _checked(chosen, present)
        except Exception as error:
            self.error = error

    def mass(self, layers: Sequence[int]) -> float:
        """Mean over layers: the weights' sum, or beside the sequence what the layers add."""
        if not layers:
            return 0.0
        if self.vision.cross_attention:
            return sum(float(self.added.get(layer, 0.0)) for layer in layers) / len(layers)
        sums = [float(self.found[layer].sum()) for layer in layers if layer in self.found]
        return sum(sums) / len(layers)

    def weights(self, layers: Sequence[int]) -> Mapping[int, Tensor]:
        """By layer: # (N,) float32."""
        nothing = torch.zeros(self.vision.tokens)
        return {layer: self.found.get(layer, nothing) for layer in layers}


def _checked(chosen: Tensor, present: Tensor) -> Tensor:
    """Bring a policy's choice to the host: # (N,) bool."""
    if chosen.shape != present.shape or chosen.dtype != torch.bool:
        raise ValueError(
            f"a policy chose among {len(present)} vision tokens by a tensor "
            f"{tuple(chosen.shape)} of {chosen.dtype}"
        )
    return (chosen & present).cpu()


class Narrowed:
    """Stands for the `Rows` of a part whose rows were gathered from some of their places."""

    def __init__(self, rows: Rows, places: Sequence[Tensor], visible: Tensor | None) -> None:
        self.places = places
        """By row, the places that were taken.  # (K,) long, on the host"""
        self.entries = rows.entries
        self._rows, self._visible = rows, visible

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> list[int]:
        return [len(one) for one in self.places]

    def attendable(self) -> Tensor | None:
        return self._visible

    def on_device(self, numbers: list[int]) -> Tensor:
        return self._rows.on_device(numbers)


class Look:
    """The rows of one decode step that anybody looks at.

    Args:
        lookers: by row of the batch; None for a row that nobody looks at.
    """

    def __init__(self, lookers: Sequence[Looker | None]) -> None:
        self._lookers = lookers
        self._places: dict[tuple[int, int, int], Tensor] = {}
        for looker in lookers:
            if looker is not None:
                looker.clear()

    def narrowed(self, number: int, part: Part) -> Part:
        """Gather what the rows of a part attend to at a layer, where a policy has chosen."""
        lookers = self._lookers[part.first : part.first + len(part.rows)]
        limited = [one is not None and one.limits(number) for one in lookers]
        if not any(limited):
            return part
        places = [
            self._attended(row + part.first, entry) if limit else torch.arange(entry.length)
            for row, (entry, limit) in enumerate(zip(part.rows.entries, limited, strict=True))
        ]
        longest = max(map(len, places))
        device = part.keys.device
        padded = torch.nn.utils.rnn.pad_sequence(places, batch_first=True).to(device)  # (n, K)
        keys, values = (
            one.gather(2, padded[:, None, :, None].expand(-1, one.shape[1], -1, one.shape[3]))
            for one in (part.keys, part.values)
        )
        visible = part.rows.attendable()
        if visible is not None:
            visible = visible.gather(3, padded[:, None, None])
        if min(map(len, places)) < longest:
            ends = part.rows.on_device([len(one) for one in places])[:, None]
            filled = (torch.arange(longest, device=device)[None] < ends)[:, None, None]
            visible = filled if visible is None else visible & filled
        narrow: Any = Narrowed(part.rows, places, visible)
        return Part(part.first, keys, values, narrow)

    def see(
        self,
        number: int,
        query: Tensor,
        part: Part,
        made: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Take in the attention of a part's rows at a layer.

        query: # (rows, H, 1, D); made: # (rows, H, 1, L), where the kernel has made the weights.
        """
        lookers = self._lookers[part.first : part.first + len(part.rows)]
        wanted = [
            (row, one) for row, one in enumerate(lookers) if one is not None and one.wants(number)
        ]
        if not wanted or not part.keys.shape[2]:
            return
        rows = [row for row, _ in wanted]
        if made is not None:
            # As good as scores: they differ by one number for each head.
            scores = made[rows][:, :, -1].float().log()
        else:
            visible = part.rows.attendable()
            scores = attention_scores(
                query[rows], part.keys[rows], None if visible is None else visible[rows], scaling
            )
        for (row, looker), line in zip(wanted, scores, strict=True):
            entry, length = part.rows.entries[row], part.rows.lengths[row]
            if not length:
                continue
            line = line[:, :length]
            columns, numbers = looker.columns(number, entry, line.device)
            if isinstance(part.rows, Narrowed):
                of = looker.vision.of(entry.indices(entry.length)[part.rows.places[row]])
                columns = (of >= 0).nonzero()[:, 0].to(line.device)
                numbers = of[of >= 0].to(line.device)
            looker.take(number, line, columns, numbers)

    def note(self, number: int, before: Tensor, output: Tensor) -> None:
        """Note what a cross-attention layer adds to each row.  before, output: # (n, 1, D)"""
        for row, looker in enumerate(self._lookers):
            if looker is not None and number in looker.layers:
                looker.added[number] = share_added(before[row, -1], output[row, -1])

    def _attended(self, row: int, entry: Entries) -> Tensor:
        """Places of a row's text and of the vision tokens that were chosen: # (K,) long."""
        key = (row, id(entry.kept), entry.length)
        if key not in self._places:
            looker = self._lookers[row]
            assert looker is not None and looker.chosen is not None
            of = looker.vision.of(entry.indices(entry.length))
            kept = of < 0
            kept[~kept] = looker.chosen[of[~kept]]
            self._places[key] = kept.nonzero()[:, 0]
        return self._places[key]
