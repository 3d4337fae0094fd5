"""M-step Vision Withdrawal: all vision tokens go after m generated tokens, or at a tag.

Source: "Reasoning with Fewer Eyes", NeurIPS 2025 workshop on efficient reasoning
(openreview 45xAEkI7Vm). The tags, one for each image if wanted, and the bounds are this project's
own addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.adapter import spellings
from mvw_cli.policy import Decide, StepView, Withdraw, WithdrawalPolicy, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mvw(WithdrawalPolicy):
    """Withdraw after `m` tokens or when `until` has been written, whichever comes first.

    Tokens 1…m are generated with every vision token visible; the forward pass that reads token
    m, and every later one, sees none. `until` may span several tokens; the token that completes
    it counts as token m.

    With a list, each image goes at its own tag, and `m` or `max` takes all that are left. A tag
    that the list has twice means its first occurrence, then its second. An image for which the list
    has no tag goes with `m` or `max`; a tag for which the request has no image counts for nothing.

    Raises:
        ValueError: neither trigger is given, a number is below 1, `m` is not between `min` and
            `max`, or a tag is empty.
    """

    name: ClassVar[str] = "mvw"
    triggers: ClassVar[tuple[str, ...]] = ("m", "until")

    m: int | None = field(
        default=None,
        metadata={"description": "Withdraw after this many generated tokens; 1 or more."},
    )
    until: str | Sequence[str] | None = field(
        default=None,
        metadata={
            "description": "Withdraw once this text, a tag for instance, has been written. "
            "A list has one for each image, which goes at its own."
        },
    )
    min: int | None = field(
        default=None,
        metadata={"description": "Never withdraw before this many tokens, whatever is written."},
    )
    max: int | None = field(
        default=None,
        metadata={"description": "Withdraw after this many tokens at the latest."},
    )

    def __post_init__(self) -> None:
        if self.until is not None and not isinstance(self.until, str):
            object.__setattr__(self, "until", tuple(self.until))
        given = self.m is not None or self.until is not None
        require(given, "give m (a number of tokens), until (a tag), or both")
        require(self.until not in ("", ()) and "" not in self._tags, "until must not be empty")
        bounds = {"min": self.min, "m": self.m, "max": self.max}
        known = {key: bound for key, bound in bounds.items() if bound is not None}
        for key, bound in known.items():
            first = "the first token comes out of the prefill"
            require(bound >= 1, f"{key} must be 1 or more: {first}")
        shown = ", ".join(f"{key} = {bound}" for key, bound in known.items())
        ascending = [*known.values()] == sorted(known.values())
        require(ascending, f"m must be between min and max: {shown}")

    @property
    def _tags(self) -> tuple[str, ...]:
        """The tag of each image, where they are given one by one."""
        return () if self.until is None or isinstance(self.until, str) else tuple(self.until)

    def begin(self) -> Decide:
        done = False
        gone: set[int] = set()

        def decide(view: StepView) -> Withdraw | None:
            nonlocal done
            if done:
                return None
            leaving = self._images_due(view) - gone
            gone.update(leaving)
            done = self._due(view) or (bool(leaving) and len(gone) == len(_images(view)))
            if done:
                return Withdraw()
            if not leaving or not view.layers:
                return None
            return Withdraw(keep=dict.fromkeys(view.layers, _without(view, gone)))

        return decide

    def _due(self, view: StepView) -> bool:
        """Whether everything goes now."""
        if self.max is not None and view.step >= self.max:
            return True
        if self.min is not None and view.step < self.min:
            return False
        if self.m is not None and view.step >= self.m:
            return True
        tags = spellings(self.until) if isinstance(self.until, str) else ()
        return any(tag in view.text for tag in tags)

    def _images_due(self, view: StepView) -> set[int]:
        """Return the images whose own tag has been written."""
        tags = self._tags
        if self.min is not None and view.step < self.min:
            return set()
        return {
            number
            for number in range(min(len(tags), len(_images(view))))
            if sum(map(view.text.count, spellings(tags[number])))
            >= tags[: number + 1].count(tags[number])
        }

    def withdrawal_step(self) -> int | None:
        return self.max if self.m is None else self.m

    def describe(self) -> str:
        parts = [] if self.m is None else [f"after {self.m} tokens"]
        if isinstance(self.until, str):
            parts.append(f"at {self.until}")
        elif self._tags:
            each = (f"image {number} at {tag}" for number, tag in enumerate(self._tags, start=1))
            parts.append(", ".join(each))
        bounds = [] if self.min is None else [f"not before {self.min} tokens"]
        if self.max is not None:
            bounds.append(f"after {self.max} tokens at the latest")
        return ", ".join([" or ".join(parts), *bounds])


def _images(view: StepView) -> tuple[int, ...]:
    """Vision tokens of each image; all of them are one image where nobody has told."""
    return view.images or (view.vision_tokens,)


def _without(view: StepView, gone: set[int]) -> Tensor:
    """Mark the vision tokens that stay once some images are gone: # (N,) bool."""
    import torch

    parts = [torch.full((n,), i not in gone) for i, n in enumerate(_images(view))]
    return torch.cat(parts)
