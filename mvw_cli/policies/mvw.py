"""M-step Vision Withdrawal: all vision tokens go after m generated tokens, or at a tag.

Source: "Reasoning with Fewer Eyes", NeurIPS 2025 workshop on efficient reasoning
(openreview 45xAEkI7Vm). The tag trigger is this project's own addition. This module does not
know how withdrawal is carried out.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from mvw_cli.policy import Decide, StepView, Withdraw, WithdrawalPolicy


@dataclass(frozen=True)
class Mvw(WithdrawalPolicy):
    """Withdraw once: after `m` tokens or when `until` has been written, whichever comes first.

    Tokens 1…m are generated with every vision token visible; the forward pass that reads token
    m, and every later one, sees none. `until` may span several tokens; the token that completes
    it counts as token m.

    Raises:
        ValueError: neither trigger is given, `m` is below 1, or `until` is empty.
    """

    name: ClassVar[str] = "mvw"
    triggers: ClassVar[tuple[str, ...]] = ("m", "until")

    m: int | None = field(
        default=None,
        metadata={"description": "Withdraw after this many generated tokens; 1 or more."},
    )
    until: str | None = field(
        default=None,
        metadata={"description": "Withdraw once this text, a tag for instance, has been written."},
    )

    def __post_init__(self) -> None:
        if self.m is None and self.until is None:
            raise ValueError("give m (a number of tokens), until (a tag), or both")
        if self.m is not None and self.m < 1:
            raise ValueError("m must be 1 or more: the first token comes out of the prefill")
        if self.until == "":
            raise ValueError("until must not be empty")

    def begin(self) -> Decide:
        done = False

        def decide(view: StepView) -> Withdraw | None:
            nonlocal done
            if done or not self._due(view):
                return None
            done = True
            return Withdraw()

        return decide

    def _due(self, view: StepView) -> bool:
        if self.m is not None and view.step >= self.m:
            return True
        return self.until is not None and self.until in view.text

    def describe(self) -> str:
        parts = []
        if self.m is not None:
            parts.append(f"after {self.m} tokens")
        if self.until is not None:
            parts.append(f"at {self.until}")
        return " or ".join(parts)
