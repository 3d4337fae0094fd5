"""What a measurement compares: arms, each the user's own profile with another withdrawal, and jobs.

One job is one cell of the report: all arms at one batch size, the baseline first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mvw_cli.bench.documents import BASELINE, Mode
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.resolution import Resolved, generation_settings, resolve
from mvw_cli.profiles.schema import Profile
from mvw_cli.profiles.withdrawal import withdrawal_policy

USUAL_M = 16
"""Where neither the user nor the profile names a withdrawal step."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One arm of a comparison."""

    name: str
    """As in `documents.Arm.name`."""
    profile: Profile

    @property
    def policy(self) -> WithdrawalPolicy:
        """The withdrawal policy of its profile."""
        return withdrawal_policy(self.profile)


def choose_arms(
    profile: str | None,
    flags: Mapping[str, object],
    *,
    moments: Sequence[int | str] = (),
    until: Sequence[str] = (),
    policies: Sequence[str] = (),
) -> list[ArmSpec]:
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
    found = resolve_arms(profile, flags, moments=moments, until=until, policies=policies)
    return [ArmSpec(name, resolved.profile) for name, resolved in found.items()]


def resolve_arms(
    profile: str | None,
    flags: Mapping[str, object],
    *,
    moments: Sequence[int | str] = (),
    until: Sequence[str] = (),
    policies: Sequence[str] = (),
) -> dict[str, Resolved]:
    """Name and resolve the arms, the baseline first; arguments and errors as of `choose_arms`."""

    def arm(**withdrawal: object) -> Resolved:
        changed = {f"withdrawal.{key}": value for key, value in withdrawal.items()}
        return resolve(profile, {**flags, **changed})

    arms = {BASELINE: arm(policy="none")}
    arms |= {f"m={m}": arm(policy="mvw", m=m) for m in moments if isinstance(m, int)}
    arms |= {f"until {tag}": arm(policy="mvw", until=tag) for tag in until}
    arms |= {name: arm(policy=name) for name in policies if name != "none"}
    if len(arms) == 1 and not moments:
        own = resolve(profile, flags)
        if own.profile.withdrawal.policy == "none":
            arms[f"m={USUAL_M}"] = arm(policy="mvw", m=USUAL_M)
        else:
            arms[withdrawal_policy(own.profile).describe()] = own
    return arms


@dataclass(frozen=True, slots=True)
class Job:
    """How one cell is measured."""

    profile: Profile
    """What the model was loaded with."""
    arms: tuple[ArmSpec, ...]
    items: tuple[ItemSpec, ...]
    batch: int = 1
    """Sequences that are admitted one after the other and then decode together."""
    mode: Mode = "fixed"
    new_tokens: int = 128
    """Of each answer, at least 2: the first comes out of the prefill. Natural: at most."""
    runs: int = 10
    """Pairs, at least; a pair is one run of each arm, next to each other in time."""
    min_time_s: float = 10.0
    """Pairs go on for this long, at least."""
    warm_up: int = 1
    """Runs of each arm before anything counts."""
    seed: int = 0
    """Of the sampling, where the profile samples."""

    def turn(self, number: int) -> list[ItemSpec]:
        """Return the items that the batch of a turn is made of: the same ones for every arm."""
        first = number * self.batch
        return [self.items[(first + place) % len(self.items)] for place in range(self.batch)]

    def settings(self) -> GenerationSettings:
        """Return how tokens are chosen: as the profile says, so that a step costs what it costs."""
        settings = generation_settings(self.profile)
        settings = replace(settings, max_new_tokens=self.new_tokens, seed=self.seed)
        return settings if self.mode == "natural" else replace(settings, ignore_eos=True, stop=())
