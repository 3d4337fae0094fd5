"""Hand a resolved profile on: to the adapter, to the engine, to the withdrawal policy.

The only place that knows which profile key becomes which field of their settings.
"""

from __future__ import annotations

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.errors import UsageProblem
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.origin import Origin
from mvw_cli.profiles.policy_fields import build, combined, describe
from mvw_cli.profiles.schema import Profile


def model_spec(profile: Profile) -> ModelSpec:
    """Say which weights to load, and how.

    Raises:
        UsageProblem: no model is named and the adapter has none of its own, or two keys contradict
            each other.
    """
    if profile.model is None:
        raise UsageProblem(
            "no model is named",
            cause=f"adapter `{profile.adapter}` has none of its own: give one with --model or "
            "as `model:` in a profile",
            hint="mvw list profiles",
        )
    if profile.device_map is not None and profile.device not in ("auto", "cuda"):
        raise UsageProblem(
            f"device: {profile.device} and device_map: {profile.device_map} contradict each other",
            cause="a device map spreads the model over all GPUs",
            hint="mvw infer IMAGE QUESTION --device-map auto --device auto",
        )
    if profile.quantization is not None and profile.device in ("cpu", "mps"):
        raise UsageProblem(
            f"device: {profile.device} and quantization: {profile.quantization} contradict each "
            "other",
            cause="bitsandbytes is used on CUDA devices only",
            hint="mvw infer IMAGE QUESTION --quantization 4bit --device auto",
        )
    return ModelSpec(
        model=profile.model,
        revision=profile.revision,
        dtype=profile.dtype,
        device=profile.device,
        device_map=profile.device_map,
        quantization=profile.quantization,
        system=profile.prompt.system,
        template=profile.prompt.template,
        max_pixels=profile.images.max_pixels,
    )


def generation_settings(profile: Profile) -> GenerationSettings:
    """Say how tokens are chosen and when to stop."""
    generation = profile.generation.model_dump()
    return GenerationSettings(**{**generation, "stop": tuple(generation["stop"])})


def withdrawal_policy(profile: Profile) -> WithdrawalPolicy:
    """Make the withdrawal policy of a resolved profile: several become one that asks each.

    Raises:
        UsageProblem: a field that is wrong, or a combination that makes no sense.
        PluginProblem: a policy can't be used.
    """
    origin = Origin("profile", "the profile")
    steps = profile.withdrawal.steps
    built = []
    for number, (name, fields) in enumerate(steps):
        path = ("withdrawal",) if len(steps) == 1 else ("withdrawal", "policy", number)
        built.append(build(describe(name), fields, lambda _: origin, path))
    return combined([name for name, _ in steps], built)
