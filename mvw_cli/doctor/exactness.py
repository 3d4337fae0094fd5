"""Engine against oracle on the adapter's tiny model, here, with the profile's attention kernel.

The comparison itself is `mvw_cli/equivalence.py`; this judges what it came to.
"""

from __future__ import annotations

from mvw_cli.doctor.advice import again, refused
from mvw_cli.doctor.facts import Facts
from mvw_cli.doctor.findings import Finding
from mvw_cli.doctor.model import check_device
from mvw_cli.equivalence import Equivalence, equivalence
from mvw_cli.errors import MvwError
from mvw_cli.profiles import Resolved


def check_exactness(resolved: Resolved, facts: Facts) -> tuple[Finding, Equivalence | None]:
    """Compare, and judge; the figures are None where nothing could be compared."""
    from mvw_cli.plugins import load_adapter

    profile = resolved.profile
    there = check_device(resolved, facts)
    if there.status != "ok":
        return Finding("equivalence", "warning", f"not run: {there.found}", there.advice), None
    device = facts.device if profile.device == "auto" else profile.device
    try:
        figures = equivalence(
            load_adapter(profile.adapter),
            attention=profile.attention,
            device=device,
            cross_attention=profile.cross_attention,
        )
    except MvwError as error:
        if profile.attention != "flash":
            return refused("equivalence", error), None
        # Tiny models are float32, so that the comparison is sharp, and flash-attn is not.
        way_out = again(resolved, {"attention": "sdpa"}, equivalence=True)
        found = f"not run: {error.cause or error.message}"
        return Finding("equivalence", "warning", found, way_out), None
    return _judged(resolved, figures), figures


def _judged(resolved: Resolved, figures: Equivalence) -> Finding:
    found = (
        f"engine and oracle differ by {figures.difference:.1e} at most, over "
        f"{figures.tokens} tokens ({figures.attention} on {figures.device}, {figures.dtype}; "
        f"{figures.tolerance:.0e} is allowed, withdrawal itself makes {figures.effect:.1e})"
    )
    if figures.passed:
        return Finding("equivalence", "ok", found)
    way_out = again(resolved, {"attention": "eager"}, equivalence=True)
    if figures.difference <= figures.tolerance:
        found += ": withdrawal changes too little for a mistake to show"
        return Finding("equivalence", "warning", found, way_out)
    return Finding("equivalence", "problem", found, way_out)
