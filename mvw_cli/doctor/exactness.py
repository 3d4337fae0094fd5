"""Engine against oracle on the adapter's tiny model, here, with the profile's attention kernel."""

from __future__ import annotations

from mvw_cli.adapter import Adapter
from mvw_cli.doctor.findings import Finding, again, refused
from mvw_cli.doctor.profile import check_device
from mvw_cli.doctor.vllm import check_vllm_exactness
from mvw_cli.engine.attention import choose_kernel
from mvw_cli.errors import MvwError
from mvw_cli.machine.facts import Facts
from mvw_cli.oracle.equivalence import Equivalence, equivalence, tiny_model
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved

CHECK = "equivalence"
FLASH_CHECK = "equivalence, flash"
"""A second comparison, where the engine chooses the kernel and would choose flash-attn."""

Compared = tuple[Finding, Equivalence | None]
"""One comparison; no figures where nothing could be compared."""


def check_exactness(resolved: Resolved, facts: Facts) -> list[Compared]:
    """Compare, and judge: the profile's kernel, and what else `auto` may choose."""
    profile = resolved.profile
    if profile.engine == "vllm":
        return [check_vllm_exactness(resolved, facts)]
    there = check_device(resolved, facts)
    if there.status != "ok":
        return [(Finding(CHECK, "warning", f"not run: {there.found}", there.advice), None)]
    device = facts.device if profile.device == "auto" else profile.device
    try:
        adapter = load_adapter(profile.adapter)
        if profile.attention == "flash":
            return [_flash(resolved, adapter, device, CHECK)]
        figures = equivalence(
            adapter,
            attention=profile.attention,
            device=device,
            cross_attention=profile.cross_attention,
        )
        compared: list[Compared] = [(_judged(resolved, figures, CHECK, "eager"), figures)]
        could = profile.dtype != "float32" and facts.flash_attn is not None
        if profile.attention == "auto" and could:
            tiny = tiny_model(adapter, device, _half(resolved))
            if choose_kernel(tiny.model, "auto") == "flash":
                compared.append(_flash(resolved, adapter, device, FLASH_CHECK))
        return compared
    except MvwError as error:
        return [(refused(CHECK, error), None)]


def _half(resolved: Resolved) -> str:
    """Choose the half precision to compare in: the sharper one unless the profile has the other."""
    return "bfloat16" if resolved.profile.dtype == "bfloat16" else "float16"


def _flash(resolved: Resolved, adapter: Adapter, device: str, check: str) -> Compared:
    way_out = again(resolved, {"attention": "sdpa"}, equivalence=True)
    try:
        figures = equivalence(
            adapter,
            attention="flash",
            device=device,
            dtype=_half(resolved),
            cross_attention=resolved.profile.cross_attention,
        )
    except MvwError as error:
        found = f"not run with flash: {error.cause or error.message}"
        return Finding(check, "warning", found, way_out), None
    except RuntimeError as error:  # a kernel that was not built for this GPU, and the like
        first = next(iter(str(error).strip().splitlines()), "")
        found = f"flash-attn fails here: {type(error).__name__}: {first}"
        return Finding(check, "problem", found, way_out), None
    return _judged(resolved, figures, check, "sdpa"), figures


def _judged(resolved: Resolved, figures: Equivalence, check: str, other: str) -> Finding:
    """Judge a comparison; `other` is the kernel to compare with next where it did not pass."""
    rounding, kernel = "", figures.attention
    if figures.rounding is not None:
        rounding = f"since rounding alone makes {figures.rounding:.1e}; "
        kernel = f"{figures.flash_calls} calls of flash-attn"
    found = (
        f"engine and oracle differ by {figures.difference:.1e} at most, over {figures.tokens} "
        f"tokens ({kernel} on {figures.device}, {figures.dtype}; {figures.tolerance:.1e} is "
        f"allowed, {rounding}withdrawal itself makes {figures.effect:.1e})"
    )
    if figures.passed:
        return Finding(check, "ok", found)
    way_out = again(resolved, {"attention": other}, equivalence=True)
    if figures.difference <= figures.tolerance:
        found += ": withdrawal changes too little for a mistake to show"
        return Finding(check, "warning", found, way_out)
    return Finding(check, "problem", found, way_out)
