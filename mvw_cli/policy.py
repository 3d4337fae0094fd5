"""The withdrawal-policy contract: when vision tokens go.

A policy is one small frozen dataclass: its fields are its YAML keys and its `--set` names. It
decides; the engine acts. It does not know the cache, the model or the tokenizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mvw_cli.adapter import API_VERSION


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What `mvw list policies` shows, and where the class is. Registering one imports nothing."""

    name: str
    target: str
    """`"package.module:Class"`, imported only when the policy is used."""
    summary: str
    api: int = API_VERSION


@dataclass(frozen=True, slots=True)
class StepView:
    """What a policy may look at once a token has been generated."""

    step: int
    """Number of tokens generated so far; 1 after the token that comes out of the prefill."""
    token_ids: Sequence[int]
    """The generated tokens so far, the newest last."""
    text: str
    """The generated text so far."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take every vision token of the request out of the KV cache, at every layer, now.

    "Now" is before the forward pass that reads the newest token.
    """


Decide = Callable[[StepView], Withdraw | None]
"""Called after each generated token of one request; may keep state between calls."""


class WithdrawalPolicy(ABC):
    """Base of the policies. A subclass is a frozen dataclass."""

    name: ClassVar[str]
    triggers: ClassVar[tuple[str, ...]] = ()
    """Fields that each say when to withdraw. A profile layer or flag that gives one of them
    replaces those of the layers below, instead of adding to them."""

    @abstractmethod
    def begin(self) -> Decide:
        """Start a request: return the function that is asked after each of its tokens."""

    def describe(self) -> str:
        """Say in a few words what the policy does, as `m=16` or `at </CAPTION>`."""
        return repr(self)
