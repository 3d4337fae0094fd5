"""A withdrawal policy: the vision tokens go after some sentences."""

import re
from dataclasses import dataclass, field
from typing import ClassVar

from mvw_cli import Decide, StepView, Withdraw, WithdrawalPolicy

_END = re.compile(r"[.!?]\s")  # the space tells the end of a sentence from the point in 3.14


@dataclass(frozen=True)
class Sentences(WithdrawalPolicy):
    """Withdraw once, when `count` sentences have been written."""

    name: ClassVar[str] = "sentences"
    triggers: ClassVar[tuple[str, ...]] = ("count",)

    count: int = field(
        default=1, metadata={"description": "Withdraw after this many sentences; 1 or more."}
    )

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be 1 or more")

    def begin(self) -> Decide:
        done = False

        def decide(view: StepView) -> Withdraw | None:
            nonlocal done
            if done or len(_END.findall(view.text)) < self.count:
                return None
            done = True
            return Withdraw()

        return decide

    def describe(self) -> str:
        return f"after {self.count} sentences"
