"""The withdrawal-policy contract: when vision tokens go, which of them, and at which layers.

A policy is one small frozen dataclass: its fields are its YAML keys and its `--set` names. It
decides; the engine acts.

Three points at which it may speak, each optional:

- `begin_prefill`: before each decoder layer of the prefill (VTW, DyVTE, FastV);
- `begin`: after each generated token (MVW);
- `begin_attending`: in each decode step, which vision tokens are looked at (VisionPulse).

Vision tokens are counted 0…N-1 in the order of the prompt, wherever a model holds them: in the
sequence, or in the caches of cross-attention layers.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What `mvw list policies` shows, and where the class is. Registering one imports nothing."""

    name: str
    target: str
    """`"package.module:Class"`, imported only when the policy is used."""
    summary: str


# -- what a policy sees -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signals:
    """What a policy wants to be told after each token. What nobody asks for is not computed."""

    entropy: bool = False
    """`StepView.entropy`."""
    mass: tuple[int, ...] = ()
    """Layers over which `StepView.mass` is the mean. Layers that hold no vision are left out."""
    weights: tuple[int, ...] = ()
    """Layers for which `StepView.weights` are wanted."""
    last: bool = False
    """Whether to be shown the last token as well, when there is nothing left to decide."""


@dataclass(frozen=True, slots=True)
class StepView:
    """What a policy may look at once a token has been generated."""

    step: int
    """Number of tokens generated so far; 1 after the token that comes out of the prefill."""
    token_ids: Sequence[int]
    """The generated tokens so far, the newest last."""
    text: str
    """The generated text so far."""
    vision_tokens: int = 0
    """N, with those that are gone."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers that held vision after the prefill."""
    images: tuple[int, ...] = ()
    """Vision tokens of each image, in order; they add up to N."""
    entropy: float | None = None
    """Of the model's distribution of the newest token, in nats, before any logits processor."""
    mass: float | None = None
    """Part of the newest query's attention that went to vision tokens, mean over the heads and the
    layers asked for; 0 where no vision is left. None if not asked for."""
    masses: Mapping[int, float] | None = None
    """By layer asked for, what `mass` is the mean of. At a cross-attention layer, where all of the
    attention goes to vision, it is ‖added‖ / (‖stream‖ + ‖added‖) of the newest token: how much
    the layer changes its hidden state."""
    weights: Mapping[int, Tensor] | None = None
    """By layer, the newest query's attention weight on each vision token, mean over the heads;
    0 for those that are gone.  # (N,) float32"""


@dataclass(frozen=True, slots=True)
class LayerView:
    """What a policy may look at in the prefill, before a decoder layer runs."""

    layer: int
    """Number of the layer that is about to run; 0 is the first."""
    num_layers: int
    """Number of decoder layers."""
    present: Tensor
    """Which vision tokens are still there.  # (N,) bool"""
    grids: tuple[tuple[int, int], ...] | None
    """Rows and columns of the vision tokens of each image, in order, where they form such grids."""
    hidden_states: Tensor
    """What the layer is about to read; rows of tokens that are gone hold nothing of use.
    # (P, D)"""
    text: Tensor
    """Places in the prompt that hold no vision token.  # (P - N,) long, or (P,) long where vision
    is read by cross-attention"""
    image_end: int
    """Place after the last vision token; 0 where vision is read by cross-attention."""
    weights: Tensor | None
    """The last prompt token's attention weight on each vision token in the layer before (with
    cross-attention: in the last such layer), mean over the heads. Where `prefill_weights` has
    asked for this layer, else None.  # (N,) float32"""
    images: tuple[int, ...] = ()
    """Vision tokens of each image, in order; they add up to N. Empty where they can't be told."""


@dataclass(frozen=True, slots=True)
class AttendView:
    """What a policy may look at within a decode step, at one layer: the newest query's scores.

    Scores are what the softmax takes: scaled products of query and key, by head, in float32.
    """

    vision: Tensor
    """On each vision token; -inf for those that are gone.  # (H, N) float32"""
    text: Tensor
    """On each other entry that the query may attend to; none with cross-attention, where the
    vision is all there is.  # (H, T) float32"""
    present: Tensor
    """Which vision tokens are still there.  # (N,) bool"""


# -- what a policy may say ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take vision tokens of the request out of the KV cache, now.

    "Now" is before the forward pass that reads the newest token.
    """

    keep: Mapping[int, Tensor] | None = None
    """By layer, which vision tokens stay; layers that are not named keep theirs. None: none stays,
    at any layer.  # (N,) bool"""
    offload: bool = False
    """Whether a copy stays in host memory, from where `Restore` takes it."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Bring what was offloaded back into the cache, before the pass that reads the newest token."""


Decision = Withdraw | Restore
Decide = Callable[[StepView], Decision | Sequence[Decision] | None]
"""Called after each generated token of one request; may keep state between calls. Several
decisions are carried out in order."""

Select = Callable[[LayerView], "Tensor | None"]
"""Called before each layer of one prefill, from the first; says which vision tokens stay from this
layer on: # (N,) bool, or None for all that are there. What is gone stays gone."""

Attend = Callable[[AttendView], "Tensor"]
"""Called in each decode step once the layer `attending_layer` has its scores; says which vision
tokens the layers after it attend: # (N,) bool, on the device of the scores."""


class WithdrawalPolicy(ABC):
    """Base of the policies. A subclass is a frozen dataclass."""

    name: ClassVar[str]
    triggers: ClassVar[tuple[str, ...]] = ()
    """Fields that each say when to withdraw. A profile layer or flag that gives one of them
    replaces those of the layers below, instead of adding to them."""
    modifies: ClassVar[bool] = False
    """Whether it changes what the policies before it say: `after` is overridden."""

    def begin(self) -> Decide:
        """Start a request: return the function that is asked after each of its tokens."""
        return lambda view: None

    def begin_prefill(self) -> Select | None:
        """Start a prefill: return the function that is asked before each layer, or None.

        Raises:
            ModelProblem: a file that the policy needs can't be used.
        """
        return None

    def begin_attending(self) -> Attend | None:
        """Start the decoding: return what is asked in each step, or None to attend to all."""
        return None

    def signals(self, layers: tuple[int, ...]) -> Signals:
        """Return what `begin`'s function wants to see.

        Args:
            layers: numbers of those that hold vision after the prefill; may be empty.
        """
        return Signals()

    def prefill_weights(self, num_layers: int) -> tuple[int, ...]:
        """Return before which layers `LayerView.weights` is wanted, of so many decoder layers."""
        return ()

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        """Return at which layer the scores for `begin_attending` are taken; None without it.

        Args:
            layers: as in `signals`.
        """
        return None

    def after(self, decide: Decide) -> Decide:
        """Compose with the policies before this one: both are asked, and both are heard.

        A modifier overrides it to change what they say.
        """
        own = self.begin()

        def both(view: StepView) -> list[Decision]:
            return [*decisions(decide(view)), *decisions(own(view))]

        return both

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        """Return why this policy makes no sense after those, as a clause; None where it does."""
        if any(other.name == self.name for other in before):
            return f"{self.name} is given twice"
        modifier = next((other.name for other in before if other.modifies), None)
        if modifier is not None and type(self).begin is not WithdrawalPolicy.begin:
            return f"{self.name} must come before {modifier}, which changes what it says"
        return None

    def withdrawal_step(self) -> int | None:
        """Return after how many tokens no vision is left for certain; None if that is not known.

        Memory is reckoned with it before anything has run.
        """
        return None

    def describe(self) -> str:
        """Describe in a few words what the policy does, as `m=16` or `at </CAPTION>`."""
        return repr(self)


def decisions(said: Decision | Sequence[Decision] | None) -> list[Decision]:
    """Write what a policy has said as a list."""
    if said is None:
        return []
    return [said] if isinstance(said, Withdraw | Restore) else list(said)


def require(holds: bool, otherwise: str) -> None:
    """Raise a ValueError where a field is out of its range."""
    if not holds:
        raise ValueError(otherwise)
