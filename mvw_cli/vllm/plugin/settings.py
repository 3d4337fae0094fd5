"""What a server and a request ask for: when vision tokens go. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvw_cli.policies.mvw import Mvw

KEY = "mvw"
"""The key in `--additional-config`; without it the plugin changes nothing."""
_FIELDS = {"m": int, "min": int, "max": int, "until": str}
LEADER = "mvw_vllm_leader"
"""Environment variable between processes: that of mvw that has started the engine, if one has."""
ALLOW_UNTESTED = "allow_untested"
"""The server's setting that lets pass what has not been held against the oracle."""


def server_settings(additional_config: Any) -> Mapping[str, Any] | None:
    """Return what stands under `mvw` in a server's `--additional-config`, or None."""
    found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(
            f'additional_config.mvw has to be an object, as {{"m": 16}}, not {found!r}'
        )
    return found


def server_default(settings: Mapping[str, Any]) -> Mvw | None:
    """Read when requests withdraw that say nothing of it; None for never.

    Raises:
        ValueError: with a sentence about what is wrong.
    """
    asked = {key: value for key, value in settings.items() if key != ALLOW_UNTESTED}
    return _policy({f"mvw.{key}": (key, value) for key, value in asked.items()})


def asks(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether a request says something of withdrawal."""
    return any(key == KEY or key.startswith("mvw_") for key in extra_args or ())


def request_policy(extra_args: Mapping[str, Any] | None, default: Mvw | None) -> Mvw | None:
    """Read when a request withdraws: as it asks, else as the server does; None for never.

    Args:
        extra_args: of its sampling parameters: `mvw_m`, `mvw_until`, `mvw_min`, `mvw_max`, as
            `vllm_xargs` can't nest; else also `{"mvw": {"m": 16}}`. `mvw_m: -1` opts out.

    Raises:
        ValueError: with a sentence about what is wrong.
    """
    if not asks(extra_args):
        return default
    assert extra_args is not None
    nested = extra_args.get(KEY)
    if nested is not None and not isinstance(nested, Mapping):
        raise ValueError(f'mvw has to be an object, as {{"m": 16}}, not {nested!r}')
    asked = {f"mvw.{key}": (key, value) for key, value in (nested or {}).items()}
    flat = {key: value for key, value in extra_args.items() if key.startswith("mvw_")}
    if asked and flat:
        raise ValueError(f"when the vision goes is said twice: by {', '.join([*asked, *flat])}")
    asked |= {key: (key.removeprefix("mvw_"), value) for key, value in flat.items()}
    if [value for key, value in asked.values() if key == "m"] == [-1]:
        return None
    return _policy(asked)


def _policy(asked: Mapping[str, tuple[str, Any]]) -> Mvw | None:
    """Make the policy of fields, each under the name by which the user knows it."""
    for name, (key, value) in asked.items():
        kind = _FIELDS.get(key)
        if kind is None:
            raise ValueError(f"{name} is no setting of withdrawal: there are {', '.join(_FIELDS)}")
        if type(value) is not kind:
            wanted = "a whole number" if kind is int else "one text"
            raise ValueError(f"{name} has to be {wanted}, not {value!r}")
    if not asked:
        return None
    try:
        return Mvw(**{key: value for key, value in asked.values()})
    except ValueError as error:
        raise ValueError(f"{', '.join(asked)}: {error}") from None
