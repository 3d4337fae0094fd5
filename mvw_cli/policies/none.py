"""No withdrawal: the baseline that every claim is measured against."""

from dataclasses import dataclass
from typing import ClassVar

from mvw_cli.policy import WithdrawalPolicy


@dataclass(frozen=True)
class NoWithdrawal(WithdrawalPolicy):
    """Keep every vision token to the end of the output."""

    name: ClassVar[str] = "none"

    def describe(self) -> str:
        return "no withdrawal"
