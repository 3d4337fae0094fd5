"""A plugin with a policy that is wrong in one way, and with an import that talks to stdout."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mvw_cli import (
    Attend,
    AttendView,
    Decide,
    LayerView,
    PolicyInfo,
    Select,
    Signals,
    StepView,
    Withdraw,
    WithdrawalPolicy,
    hookimpl,
)

os.write(1, b"faulty: from the descriptor\n")
sys.stdout.write("faulty: printed\n")

BEGUN: list[int] = []
"""An entry for each request that was begun in this process."""
AT = 2
"""Layer before which, and token after which, the functions are wrong."""


def _raise(*_: object) -> Any:
    raise ZeroDivisionError("by nothing")


def _nan(view: LayerView) -> Any:
    return view.present / 0


def _keeping(make: Any) -> Any:
    return lambda view: Withdraw(keep={view.layers[0]: make(view.vision_tokens)})


def _ones(tokens: int, kind: str) -> Any:
    import torch

    return torch.ones(tokens, dtype=getattr(torch, kind))


def _meta(view: LayerView) -> Any:
    return view.present.to("meta")


PREFILL: dict[str, Any] = {
    "list": lambda view: [True] * len(view.present),
    "number": lambda view: 7,
    "nan": _nan,
    "short": lambda view: view.present[1:],
    "meta": _meta,
    "raises": _raise,
}
"""What the function of `begin_prefill` returns."""
STEP: dict[str, Any] = {
    "true": lambda view: True,
    "text": lambda view: "withdraw",
    "class": lambda view: Withdraw,
    "listed": lambda view: [Withdraw(), 3],
    "mask": lambda view: Withdraw(keep=_ones(view.vision_tokens, "bool")),
    "keep-list": _keeping(lambda tokens: [True] * tokens),
    "keep-float": _keeping(lambda tokens: _ones(tokens, "float32")),
    "keep-short": _keeping(lambda tokens: _ones(tokens - 1, "bool")),
    "raises": _raise,
}
"""What the function of `begin` returns."""
ATTEND: dict[str, Any] = {
    "none": lambda view: None,
    "scores": lambda view: view.vision.mean(0),
    "short": lambda view: view.present[1:],
    "raises": _raise,
}
"""What the function of `begin_attending` returns."""
HOOKS: dict[str, Any] = {
    "begin": lambda: None,
    "begin_prefill": lambda: "select",
    "begin_attending": lambda: True,
    "signals": lambda layers: None,
    "signals mass": lambda layers: Signals(mass=8),  # type: ignore[arg-type]
    "prefill_weights": lambda num_layers: 3,
    "attending_layer": lambda layers: 99,
}
"""What hooks that are asked while a model runs return."""


@dataclass(frozen=True)
class Faulty(WithdrawalPolicy):
    """Wrong in one way, from some token on."""

    name: ClassVar[str] = "faulty"

    hook: str = field(default="", metadata={"description": "Which hook is wrong."})
    how: str = field(default="", metadata={"description": "How."})
    tokens: int = field(default=AT, metadata={"description": "Tokens before it is."})

    def __post_init__(self) -> None:
        for hook in ("begin", "begin_prefill", "begin_attending", "signals", "prefill_weights"):
            if self.hook == hook and not self.how:
                object.__setattr__(self, hook, HOOKS[hook])
        if self.hook == "signals mass":
            object.__setattr__(self, "signals", HOOKS[self.hook])
        if self.hook in ("describe", "withdrawal_step", "conflict") and self.how == "raises":
            object.__setattr__(self, self.hook, _raise)
        if self.hook == "made":
            _raise()

    def begin(self) -> Decide:
        BEGUN.append(1)
        wrong = STEP.get(self.how) if self.hook == "step" else None
        if self.hook == "late" and len(BEGUN) > AT:
            return lambda view: "late"  # type: ignore[return-value]

        def decide(view: StepView) -> Any:
            return wrong(view) if wrong and view.step >= self.tokens else None

        return decide

    def begin_prefill(self) -> Select | None:
        wrong = PREFILL.get(self.how) if self.hook == "prefill" else None

        def select(view: LayerView) -> Any:
            return wrong(view) if wrong and view.layer == AT else None

        return select if wrong else None

    def begin_attending(self) -> Attend | None:
        wrong = ATTEND.get(self.how) if self.hook == "attend" else None

        def attend(view: AttendView) -> Any:
            assert wrong is not None
            return wrong(view)

        return attend if wrong else (lambda view: view.present) if self._attends else None

    @property
    def _attends(self) -> bool:
        return self.hook == "attending_layer"

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        if self._attends:
            return 99
        return layers[0] if self.hook == "attend" else None

    def describe(self) -> str:
        return f"wrong in {self.hook or 'no way'}"


@hookimpl
def mvw_register_policies(register: Any) -> None:
    register(PolicyInfo(name="faulty", target="faulty:Faulty", summary="wrong in one way"))
