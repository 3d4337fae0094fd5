"""vLLM's own server for a profile: the words that start it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, model_spec
from mvw_cli.vllm import start

_UNKNOWN = (
    *("prompt.system", "prompt.template", "prompt.special_tokens"),
    *("images.max_pixels", "images.max_decoded_pixels"),
    *("generation.seed", "generation.stop"),
)
"""Keys of a profile that vLLM's server has nothing for."""
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")


def server_command(
    resolved: Resolved,
    *,
    host: str,
    port: int,
    names: Sequence[str],
    slots: int | None,
    files: str | None,
    allow_pickle: bool,
    random_weights: bool,
) -> list[str]:
    """Write the command that serves a profile by vLLM, with mvw's plugin.

    Args:
        names: by which the model is asked for.
        files: the folder below which `file://` is read.

    Raises:
        UsageProblem: vLLM's server can't do what the profile says.
    """
    profile = resolved.profile
    start.check(profile, resolved.policy)
    given = {key for key, one in resolved.origins.items() if one.kind != "default"}
    if unknown := sorted(given & set(_UNKNOWN)):
        raise start.refused(f"vLLM's own server has nothing for {', '.join(unknown)}")
    spec = replace(model_spec(profile), allow_pickle=allow_pickle, random_weights=random_weights)
    args = {**load_adapter(profile.adapter).vllm_arguments(), **profile.engine_args.given}
    arguments = start.engine_arguments(spec, resolved.policy, slots=slots, engine_args=args)
    del arguments["model"], arguments["disable_log_stats"]  # its metrics are wanted here
    sampling = {name: getattr(profile.generation, name) for name in _SAMPLING}
    if "generation.max_new_tokens" not in given:
        del sampling["max_new_tokens"]  # for vLLM it is not what is usual, but the most
    arguments |= {
        "host": host,
        "port": port,
        "served_model_name": list(names),
        "override_generation_config": {k: one for k, one in sampling.items() if one is not None},
        # Without it vLLM fetches from anywhere: this name is nobody's (RFC 2606).
        "allowed_media_domains": ["nowhere.invalid"],
    }
    if files is not None:
        arguments["allowed_local_media_path"] = os.path.realpath(files)
    program = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(spec.model)]
    return [*program, *_words(arguments)]


def _words(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, list):
            yield f"--{option}"
            yield from map(str, value)
        elif value is not None:
            yield f"--{option}"
            yield json.dumps(value) if isinstance(value, dict) else str(value)
