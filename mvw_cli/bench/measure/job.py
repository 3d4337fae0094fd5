"""What is to be measured, as plain data: it goes to another process, and through JSON.

One job is one cell of the report: all arms at one batch size. It does not know how a run is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mvw_cli.bench.documents import Mode

if TYPE_CHECKING:
    from mvw_cli.engine.types import GenerationSettings
    from mvw_cli.policy import WithdrawalPolicy
    from mvw_cli.profiles.schema import Profile


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """One question about one or more image files."""

    images: tuple[str, ...]
    """Paths."""
    question: str
    reference: str | None = None
    """The right answer, where the user has it; no measurement of speed looks at it."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One policy."""

    name: str
    """As in `report.Arm.name`."""
    withdrawal: dict[str, Any]
    """The `withdrawal` section of a resolved profile."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a process needs to know to measure one cell.

    Raises:
        ValueError: no arms or no items, two arms of one name, or a count below its least.
    """

    profile: dict[str, Any]
    """A resolved profile, as `Resolved.to_dict()["values"]`; arms replace its withdrawal."""
    arms: tuple[ArmSpec, ...]
    items: tuple[ItemSpec, ...]
    source: Literal["given", "folder", "generated"] = "given"
    batch: int = 1
    """Sequences that are admitted one after the other and then decode together."""
    mode: Mode = "fixed"
    new_tokens: int = 128
    """Of each answer; at most so many in the natural mode."""
    runs: int = 10
    """Pairs, at least; a pair is one run of each arm, next to each other in time."""
    min_time_s: float = 10.0
    """Pairs go on for this long, at least."""
    warm_up: int = 1
    """Runs of each arm before anything counts."""
    seed: int = 0
    """Of the sampling, where the profile samples."""
    random_weights: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or not self.items:
            raise ValueError("a job has arms and items")
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have one name: {names}")
        if self.batch < 1 or self.runs < 1 or self.warm_up < 0 or self.min_time_s < 0:
            raise ValueError("batch and runs are 1 or more, warm_up and min_time_s 0 or more")
        if self.new_tokens < 2:
            raise ValueError("new_tokens is 2 or more: the first one comes out of the prefill")

    def turn(self, number: int) -> list[ItemSpec]:
        """Say which items the batch of a turn is made of: the same ones for every arm."""
        first = number * self.batch
        return [self.items[(first + place) % len(self.items)] for place in range(self.batch)]


def to_json(job: Job) -> str:
    """Write a job as JSON."""
    from pydantic import TypeAdapter

    return TypeAdapter(Job).dump_json(job).decode()


def from_json(text: str) -> Job:
    """Read a job.

    Raises:
        ValueError: it is none.
    """
    from pydantic import TypeAdapter

    return TypeAdapter(Job).validate_json(text)


def profile_of(job: Job) -> Profile:
    """Make the profile that the model is loaded with.

    Raises:
        ValueError: it is none.
    """
    from mvw_cli.profiles.schema import Profile

    return Profile.model_validate(job.profile)


def policy_of(job: Job, arm: ArmSpec) -> WithdrawalPolicy:
    """Make the policy of an arm.

    Raises:
        PluginProblem: the policy can't be used.
        ValueError: its fields don't suit it.
    """
    from mvw_cli.profiles.schema import Profile
    from mvw_cli.profiles.withdrawal import withdrawal_policy

    profile = Profile.model_validate({**job.profile, "withdrawal": arm.withdrawal})
    return withdrawal_policy(profile)


def settings_of(job: Job) -> GenerationSettings:
    """Say how tokens are chosen and when a run ends.

    Tokens are chosen as the profile says, so that a step costs what it costs the user. Fixed: the
    end token is suppressed and stop words count for nothing. Natural: the profile's own ends, at
    the job's `new_tokens` at the latest.
    """
    from dataclasses import replace

    from mvw_cli.profiles.resolution import generation_settings

    settings = generation_settings(profile_of(job))
    settings = replace(settings, max_new_tokens=job.new_tokens, seed=job.seed)
    if job.mode == "fixed":
        settings = replace(settings, ignore_eos=True, stop=())
    return settings
