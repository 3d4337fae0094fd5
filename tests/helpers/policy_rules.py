"""The policies' documented rules, written down once more, over the oracle's own figures.

Nothing here asks a policy or the engine: a rule says which vision tokens are hidden from which rows
at which layers, and takes scores, weights and entropies from the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor
from random import Random as Generator

import torch
from policy_subjects import Masks, Served
from torch import Tensor

Gone = Mapping[int, Tensor]
"""By layer, the vision tokens that a row does not see: # (N,) bool."""
InPrefill = Callable[[Served, Masks], None]
"""Hides tokens from all rows, at layers from some layer on."""
Stepwise = Callable[[Served], Callable[[int, Masks], Gone]]
"""Says, after token t, what the row that reads token t does not see."""
InStep = Callable[[Served, Masks, Sequence[int]], None]
"""Hides tokens from the rows that read the tokens of some steps, each row for itself."""


def masks_of(
    served: Served,
    prefill: Sequence[InPrefill] = (),
    stepwise: Stepwise | None = None,
    in_step: InStep | None = None,
) -> Masks:
    """Put rules together: those of the prefill in the order of their layers."""
    masks = served.nothing()
    for rule in prefill:
        rule(served, masks)
    steps = range(1, len(served.ids))
    if stepwise is not None:
        asks = stepwise(served)
        for step in steps:
            for layer, gone in asks(step, masks).items():
                masks[layer][served.prompt + step - 1] |= gone
            if in_step is not None:  # what a row does not attend to, the next decision does not see
                in_step(served, masks, [step])
    elif in_step is not None:
        in_step(served, masks, steps)
    return masks


def everything(served: Served) -> Gone:
    return dict.fromkeys(served.subject.vision_layers, torch.ones(served.tokens, dtype=torch.bool))


def holding(served: Served, masks: Masks) -> tuple[int, ...]:
    """Layers that hold vision after the prefill."""
    own = served.subject.vision_layers
    return tuple(layer for layer in own if not masks[layer][served.prompt - 1].all())


def rounded(count: int, keep: float) -> int:
    return min(count, max(1, floor(count * keep + 0.5)))


# -- in the prefill -------------------------------------------------------------------------------


def from_layer(first: int, choose: Callable[[Served, Masks], Tensor]) -> InPrefill:
    """Keep what is chosen of what is there, from a layer on.  choose: # (N,) bool"""

    def rule(served: Served, masks: Masks) -> None:
        kept = choose(served, masks)
        for layer in masks:
            if layer >= first:
                masks[layer] |= ~kept

    return rule


def vtw(layer: int) -> InPrefill:
    return from_layer(layer, lambda served, masks: torch.zeros(served.tokens, dtype=torch.bool))


def fastv(layer: int, keep: float) -> InPrefill:
    def choose(served: Served, masks: Masks) -> Tensor:
        before = max(one for one in masks if one < layer)
        there = ~masks[before][served.prompt - 1]
        weights = served.weights(masks, [before], 1)[before]
        ranked = sorted(there.nonzero()[:, 0].tolist(), key=lambda n: -float(weights[n]))
        kept = torch.zeros(served.tokens, dtype=torch.bool)
        kept[ranked[: rounded(served.tokens, keep)]] = True
        return kept

    return from_layer(layer, choose)


def random(layer: int, keep: float, seed: int) -> InPrefill:
    """Token n bears the n-th number of Python's generator; those with the lowest numbers stay."""

    def choose(served: Served, masks: Masks) -> Tensor:
        generator = Generator(seed)
        numbers = torch.tensor(
            [generator.random() for _ in range(served.tokens)], dtype=torch.float64
        )
        numbers[masks[max(layer, min(masks))][served.prompt - 1]] = torch.inf  # gone before
        highest = numbers.sort().values[rounded(served.tokens, keep) - 1]
        kept = (numbers <= highest) & numbers.isfinite()
        assert 0 < int(kept.sum()) < served.tokens
        return kept

    return from_layer(layer, choose)


def downsample(layer: int, keep: float) -> InPrefill:
    def choose(served: Served, masks: Masks) -> Tensor:
        layout = served.request.layout
        if layout.grids is None:
            counts = layout.images or (served.tokens,)
            return torch.cat([middles(count, rounded(count, keep)) for count in counts])
        return torch.cat([coarse(rows, columns, keep) for rows, columns in layout.grids])

    return from_layer(layer, choose)


def middles(length: int, count: int) -> Tensor:
    marks = torch.zeros(length, dtype=torch.bool)
    for stretch in range(count):
        marks[floor((stretch + 0.5) * length / count)] = True
    return marks


def coarse(rows: int, columns: int, keep: float) -> Tensor:
    """Of all grids, the nearest in size to `keep` of the whole; of those the nearest in shape."""
    whole = rows * columns
    best = min(
        (abs(r * c - keep * whole), abs(r / rows - c / columns), r, c)
        for r in range(1, rows + 1)
        for c in range(1, columns + 1)
    )
    return (middles(rows, best[2])[:, None] & middles(columns, best[3])).flatten()


# -- after a token --------------------------------------------------------------------------------


def after(m: int) -> Stepwise:
    return lambda served: lambda step, masks: everything(served) if step >= m else {}


def at_tags(tags: Sequence[str], m: int) -> Stepwise:
    """Each image at the first occurrence of its own tag; what is left after m tokens."""

    def begin(served: Served) -> Callable[[int, Masks], Gone]:
        images = served.request.layout.images
        assert images is not None

        def gone(step: int, masks: Masks) -> Gone:
            if step >= m:
                return everything(served)
            parts = [
                torch.full((count,), number < len(tags) and tags[number] in served.texts[step - 1])
                for number, count in enumerate(images)
            ]
            return dict.fromkeys(served.subject.vision_layers, torch.cat(parts))

        return gone

    return begin


def averages(served: Served, masks: Masks, layers: Sequence[int], smoothing: float) -> list[float]:
    """The moving average of the vision mass after each token, if nothing is ever withdrawn."""
    found: list[float] = []
    for step in range(1, len(served.ids)):
        mass = served.mass(masks, layers, step)
        before = found[-1] if found else mass
        found.append(smoothing * mass + (1 - smoothing) * before)
    return found


def mass_step(average: Sequence[float], threshold: float, patience: int) -> int | None:
    """The step after which the vision goes, of averages after each token."""
    under = 0
    for step, one in enumerate(average, start=1):
        under = under + 1 if one < threshold else 0
        if under >= patience:
            return step
    return None


def left(served: Served, step: int, place: float, start: int, end: int, every: int) -> int:
    """How many tokens annealing leaves after `step` at a layer, `place` being depth times l."""
    if step >= end:
        return 0
    thinned = max(step - start, 0) // every * every
    share = max(0.0, 1 - thinned / ((end - start) * (1 - place)))
    return ceil(share * served.tokens - 1e-6)


def anneal(start: int, end: int, every: int, depth: float) -> Stepwise:
    """Those with the most attention at the moment of the thinning stay, layer by layer."""

    def begin(served: Served) -> Callable[[int, Masks], Gone]:
        gone: dict[int, Tensor] = {}

        def thin(step: int, masks: Masks) -> Gone:
            if step >= end:
                return everything(served)
            layers = holding(served, masks)
            for place, layer in enumerate(layers):
                deep = depth * place / max(len(layers) - 1, 1)
                count = left(served, step, deep, start, end, every)
                there = ~masks[layer][served.prompt - 1] & ~gone.get(layer, torch.tensor(False))
                if count >= int(there.sum()):
                    continue
                weights = served.weights(masks, [layer], step)[layer]
                ranked = sorted(there.nonzero()[:, 0].tolist(), key=lambda n: -float(weights[n]))
                gone[layer] = torch.ones(served.tokens, dtype=torch.bool)
                gone[layer][ranked[:count]] = False
            return gone

        return thin

    return begin


def evenly(end: int, every: int, depth: float = 0.5) -> Stepwise:
    """Those stay that come first when their numbers' bits are read backwards."""

    def begin(served: Served) -> Callable[[int, Masks], Gone]:
        bits = (served.tokens - 1).bit_length()
        order = sorted(range(served.tokens), key=lambda n: f"{n:0{bits}b}"[::-1])

        def thin(step: int, masks: Masks) -> Gone:
            layers, gone = holding(served, masks), {}
            for place, layer in enumerate(layers):
                deep = depth * place / max(len(layers) - 1, 1)
                gone[layer] = torch.ones(served.tokens, dtype=torch.bool)
                gone[layer][order[: left(served, step, deep, 0, end, every)]] = False
            return gone

        return thin

    return begin


def look_back(
    inner: Stepwise, fires: Callable[[Served, int, Masks], bool], steps: int | None
) -> Stepwise:
    """What `inner` withdraws is seen for some tokens again whenever a trigger fires."""

    def begin(served: Served) -> Callable[[int, Masks], Gone]:
        asks = inner(served)
        back: list[int] = []

        def gone(step: int, masks: Masks) -> Gone:
            offloaded = asks(step, masks)
            fired = fires(served, step, masks)
            if back and (steps is None or step < back[-1] + steps):
                return {}
            if fired and any(bool(one.any()) for one in offloaded.values()):
                back.append(step)
                return {}
            back.clear()
            return offloaded

        return gone

    return begin


def hesitates(entropy: float) -> Callable[[Served, int, Masks], bool]:
    return lambda served, step, masks: served.entropy(masks, step) >= entropy


def writes(tag: str) -> Callable[[Served, int, Masks], bool]:
    """Whether the newest token has completed the tag."""

    def fires(served: Served, step: int, masks: Masks) -> bool:
        text = served.texts[step - 1]
        before = served.texts[step - 2] if step > 1 else ""
        return text.count(tag) > before.count(tag)

    return fires


# -- in each step ---------------------------------------------------------------------------------


def pulse(layer: int, tau: float, least: float, most: float) -> InStep:
    """After `layer` only the tokens of the highest scores, as many as the sharpened mass says."""

    def rule(served: Served, masks: Masks, steps: Sequence[int]) -> None:
        layout = served.request.layout
        entries = layout.entries if layout.cross_entries is None else layout.cross_entries
        columns = entries.nonzero()[:, 0]
        scores = served.scores(masks, layer).double()  # (H, T, columns)
        shares = (scores / tau).softmax(dim=-1)[..., columns].sum(dim=-1).amax(dim=0)  # (T,)
        for step in steps:
            row = served.prompt + step - 1
            there = ~masks[layer][row]
            if not there.any():
                continue
            share = min(max(float(shares[step - 1]), least), most)
            count = max(1, int(share * int(there.sum())))
            mean = scores[:, step - 1, columns].mean(dim=0)
            if bool(mean.isneginf().all()):
                continue  # all the vision lies behind the window of the layer that chooses
            ranked = sorted(there.nonzero()[:, 0].tolist(), key=lambda n: -float(mean[n]))
            unseen = torch.ones(served.tokens, dtype=torch.bool)
            unseen[ranked[:count]] = False
            for later in masks:
                if later > layer:
                    masks[later][row] |= unseen

    return rule
