from dataclasses import dataclass
from typing import ClassVar

from mvw_cli import Withdraw, WithdrawalPolicy


@dataclass(frozen=True)
class Fraction(WithdrawalPolicy):
    """Withdraw once `share` of `budget` tokens has been written."""

    name: ClassVar[str] = "fraction"

    budget: int
    share: float = 0.5
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError("share must lie between 0 and 1")

    def begin(self):
        due = round(self.budget * self.share)
        return lambda view: Withdraw() if view.step == due else None
