"""Checks of vLLM: whether it is here, as it was tested, with the plugin, and for a profile's model.

As for the machine, what is seen (`look`) and what is made of it (`check_vllm`) are apart: the one
imports vLLM, which takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from mvw_cli.doctor.findings import Finding, again
from mvw_cli.environment import vllm_version
from mvw_cli.errors import MvwError
from mvw_cli.machine.facts import Facts
from mvw_cli.oracle.equivalence import Equivalence
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, model_spec
from mvw_cli.profiles.withdrawal import withdrawal_policy
from mvw_cli.vllm import start

EQUIVALENCE = "equivalence"
_GROUP = "vllm.general_plugins"
_WIDTH = 128
"""Of the heads of most models, where no profile names one."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What vLLM is like here; None where it could not be found out."""

    version: str
    tested_versions: tuple[str, ...] = ()
    problem: str | None = None
    """Why it can't be imported."""
    plugin: str | None = None
    """Why the plugin is not loaded."""
    changed: tuple[str, ...] = ()
    """Interfaces that are not as in the tested versions."""
    platform: str | None = None
    """cpu, cuda, …"""
    device_name: str = ""
    backend: str | None = None
    tested_backends: tuple[str, ...] = ()


def look(engine_args: Mapping[str, Any], config: Any, dtype: str) -> Seen:
    """Import vLLM and the plugin, as vLLM's own processes do.

    Args:
        engine_args: of the profile; the attention backend may be among them.
        config: of the model that is meant; None for the usual one.
        dtype: what it would compute in.
    """
    version = vllm_version() or "of unknown version"
    with start.silenced():
        try:
            from vllm.platforms import current_platform
            from vllm.plugins import load_general_plugins

            load_general_plugins()
        except Exception as error:  # broken installations fail in any way
            return Seen(version, problem=f"{type(error).__name__}: {str(error)[:200]}")
        platform = str(current_platform.device_type) or None
        name = "" if platform is None else str(current_platform.get_device_name())
        seen = Seen(version, platform=platform, device_name=name)
        if not entry_points(group=_GROUP, name="mvw"):
            return replace(seen, plugin="mvw is not installed beside this vLLM")
        allowed = os.environ.get("VLLM_PLUGINS")
        if allowed is not None and "mvw" not in allowed.split(","):
            return replace(seen, plugin=f"VLLM_PLUGINS={allowed} leaves it out")
        try:
            from mvw_cli.vllm.plugin import touchpoints

            changed = tuple(touchpoints.changed_interfaces())
        except Exception as error:
            return replace(seen, plugin=f"{type(error).__name__}: {str(error)[:200]}")
        return replace(
            seen,
            tested_versions=touchpoints.TESTED_VERSIONS,
            changed=changed,
            backend=_backend(engine_args, config, dtype),
            tested_backends=touchpoints.TESTED_BACKENDS,
        )


def _backend(engine_args: Mapping[str, Any], config: Any, dtype: str) -> str | None:
    """Ask vLLM which attention backend it would choose; None where it does not tell."""
    named = engine_args.get("attention_backend")
    if named is not None:
        return str(named)
    width, latent = _WIDTH, None
    if config is not None:
        text = config.get_text_config()
        latent = getattr(text, "kv_lora_rank", None)
        usual = text.hidden_size // text.num_attention_heads
        width = getattr(text, "head_dim", None) or usual
        width = width if latent is None else latent + text.qk_rope_head_dim
    try:
        import torch
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.v1.attention.selector import get_attn_backend

        with set_current_vllm_config(VllmConfig()):
            kind = get_attn_backend(width, getattr(torch, dtype), None, use_mla=latent is not None)
        return str(kind.get_name())
    except Exception:  # of an interface that vLLM calls private
        return None


def check_vllm(resolved: Resolved, facts: Facts, *, with_model: bool) -> Iterator[Finding]:
    """Judge vLLM for a profile whose engine may be vLLM.

    Args:
        with_model: whether the profile's model was asked about, too.
    """
    profile = resolved.profile
    if not start.installed():
        if profile.engine == "auto":
            yield Finding("vLLM", "ok", "not installed: engine auto takes mvw's own")
        else:
            yield Finding("vLLM", "problem", "not installed", start.INSTALL)
        return
    config = reason = None
    if with_model:
        try:
            config = load_adapter(profile.adapter).shape(model_spec(profile))
        except MvwError as error:
            reason = f"{error.message} {error.cause or ''}".strip()
    seen = look(profile.engine_args.given, config, computes_in(resolved, facts))
    yield from judge(seen, resolved, facts)
    if not with_model or seen.problem is not None:
        return
    reason = start.why_not(profile, withdrawal_policy(profile)) or reason
    reason = reason or start.unsupported(config)
    own = again(resolved, {"engine": "mvw"})
    if profile.engine == "auto":
        chosen = "vllm" if reason is None else f"mvw: {reason}"
        yield Finding("engine", "ok", f"auto takes {chosen}")
    elif reason is not None:
        yield Finding("engine", "problem", f"vLLM can't serve this profile: {reason}", own)
    else:
        yield Finding("engine", "ok", "vLLM has the model and can be exact")


def computes_in(resolved: Resolved, facts: Facts) -> str:
    """Return the precision in which vLLM would compute here."""
    if resolved.profile.dtype != "auto":
        return resolved.profile.dtype
    return "float32" if facts.kind(resolved.profile.device) == "cpu" else "bfloat16"


def judge(seen: Seen, resolved: Resolved, facts: Facts) -> Iterator[Finding]:
    """Judge what was seen of vLLM, the profile's model apart."""
    prove = again(resolved, {}, equivalence=True)
    if seen.problem is not None:
        found = f"{seen.version} can't be imported: {seen.problem}"
        yield Finding("vLLM", "problem", found, f"{start.INSTALL} --force-reinstall")
        return
    tested = ", ".join(seen.tested_versions)
    known = any(seen.version.startswith(f"{one}.") for one in seen.tested_versions)
    if known or not tested:
        yield Finding("vLLM", "ok", seen.version)
    else:
        found = f"{seen.version} was not tested; {tested} was"
        yield Finding("vLLM", "problem", found, start.INSTALL)
    if seen.plugin is not None:
        way_out = "unset VLLM_PLUGINS" if "VLLM_PLUGINS" in seen.plugin else start.INSTALL
        yield Finding("vLLM plugin", "problem", f"not loaded: {seen.plugin}", way_out)
    elif seen.changed:
        found = f"interfaces of vLLM are not as tested: {'; '.join(seen.changed)}"
        yield Finding("vLLM plugin", "problem", found, start.INSTALL)
    else:
        yield Finding("vLLM plugin", "ok", "loaded; vLLM's interfaces are as tested")
    kind = facts.kind(resolved.profile.device)
    if seen.platform is None:
        found = "vLLM finds no device that it was built for"
        yield Finding("vLLM platform", "problem", found, "mvw doctor")
    elif seen.platform != kind:
        found = f"this vLLM is built for {seen.platform}, the profile's device is {kind}"
        way_out = again(resolved, {"device": "auto" if kind != facts.device else seen.platform})
        yield Finding("vLLM platform", "problem", found, way_out)
    else:
        named = f"{seen.platform} ({seen.device_name})" if seen.device_name else seen.platform
        yield Finding("vLLM platform", "ok", named)
    if seen.backend is None:
        return
    if seen.backend in seen.tested_backends:
        yield Finding("vLLM attention", "ok", f"{seen.backend}, held against the oracle")
    else:
        tested = ", ".join(seen.tested_backends)
        found = f"{seen.backend} is refused: it was never held against the oracle ({tested} were)"
        yield Finding("vLLM attention", "warning", found, prove)


def check_vllm_exactness(resolved: Resolved, facts: Facts) -> tuple[Finding, Equivalence | None]:
    """Run vLLM against the oracle, and judge; no figures where nothing could be compared."""
    if not start.installed():
        found = "not run: vLLM is not installed"
        return Finding(EQUIVALENCE, "problem", found, start.INSTALL), None
    from mvw_cli.vllm.equivalence import vllm_equivalence

    profile = resolved.profile
    try:
        figures = vllm_equivalence(
            profile.device, computes_in(resolved, facts), profile.engine_args.given
        )
    except MvwError as error:
        found = f"not run: {error.message}: {error.cause}"
        return Finding(EQUIVALENCE, "problem", found, again(resolved, {})), None
    return judge_exactness(figures, resolved), figures


def judge_exactness(figures: Equivalence, resolved: Resolved) -> Finding:
    """Judge a comparison of vLLM with the oracle."""
    found = (
        f"vLLM and oracle differ by {figures.difference:.1e} at most, over {figures.tokens} tokens "
        f"({figures.attention} on {figures.device}, {figures.dtype}; {figures.tolerance:.1e} is "
        f"allowed, withdrawal itself makes {figures.effect:.1e})"
    )
    if figures.passed:
        return Finding(EQUIVALENCE, "ok", found)
    own = again(resolved, {"engine": "mvw"}, equivalence=True)
    if figures.difference <= figures.tolerance:
        found += ": withdrawal changes too little for a mistake to show"
        return Finding(EQUIVALENCE, "warning", found, own)
    return Finding(EQUIVALENCE, "problem", found, own)
