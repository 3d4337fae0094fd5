"""Which policies a measurement compares: `baseline` first, then what the user names.

Each arm is the user's own profile with another withdrawal, resolved like any other. It does not
know how arms are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_cli.bench.documents import BASELINE

if TYPE_CHECKING:
    from mvw_cli.profiles.schema import Profile

USUAL_M = 16
"""Where neither the user nor the profile names a moment."""


@dataclass(frozen=True, slots=True)
class NamedArm:
    """One arm of a comparison."""

    name: str
    profile: Profile


def choose_arms(
    profile: str | None,
    flags: Mapping[str, object],
    *,
    moments: Sequence[int | str] = (),
    until: Sequence[str] = (),
    policies: Sequence[str] = (),
) -> list[NamedArm]:
    """Name and resolve the arms.

    Args:
        profile, flags: as in `resolve`; `flags` without any withdrawal.
        moments: tokens after which to withdraw; `never` may be among them.
        until: tags at which to withdraw.
        policies: policies as `--policy` has them, each a composition: `vtw:layer=12+mvw:m=16`.

    Raises:
        UsageProblem: a profile, key or value that is wrong.
        PluginProblem: an adapter or policy can't be used.
    """
    from mvw_cli.profiles.resolution import resolve
    from mvw_cli.profiles.withdrawal import withdrawal_policy

    def arm(name: str, **withdrawal: object) -> NamedArm:
        changed = {f"withdrawal.{key}": value for key, value in withdrawal.items()}
        return NamedArm(name, resolve(profile, {**flags, **changed}).profile)

    arms = [arm(BASELINE, policy="none")]
    arms += [arm(f"m={m}", policy="mvw", m=m) for m in moments if isinstance(m, int)]
    arms += [arm(f"until {tag}", policy="mvw", until=tag) for tag in until]
    arms += [arm(name, policy=name) for name in policies if name != "none"]
    if len(arms) == 1 and not moments:
        own = resolve(profile, flags).profile
        if own.withdrawal.policy == "none":
            arms.append(arm(f"m={USUAL_M}", policy="mvw", m=USUAL_M))
        else:
            arms.append(NamedArm(withdrawal_policy(own).describe(), own))
    return arms
