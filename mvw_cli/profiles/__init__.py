"""Profiles: named YAML files that say which model answers, and how.

Each key is taken from the highest layer that gives it:

1. **flag** — `--m 16`, `--set generation.top_p=0.9`;
2. **environment** — `MVW_` and the key in capitals, dots as underscores: `MVW_WITHDRAWAL_M=16`,
   `MVW_GENERATION_TEMPERATURE=0`. An empty variable counts as unset, a misspelled one is an error;
3. **profile** — a file named by its path: `--profile ./mine.yaml`;
4. **user** — a profile of this name in the user directory, `$MVW_HOME/profiles` or the platform's
   own place for it (`~/.config/mvw/profiles`);
5. **packaged** — the profile of this name that comes with mvw or with a plugin. Where the user
   directory has one of the same name, both count, key by key;
6. **default** — what the adapter and the engine do on their own.

`--profile` without a path looks a name up in 4 and 5; `MVW_PROFILE` names one where no flag does.
With neither, and no adapter or model named by flag or environment, the embedded `shapes` answers.
A profile may say `extends: NAME` or `extends: ./file.yaml`: the parent's keys lie below its own.
A key that is null has no value of its own and hides the lower layers' value.

Withdrawal has rules of its own. A layer that gives one of a policy's triggers (`m`, `until`)
replaces the triggers of the layers below, so that `--m 16` means 16 tokens and nothing else. A
layer that names policies replaces those below with all their fields, unless both name the same
single one. Fields that a layer gives without a policy go to the one policy that has them; over no
policy, or over `none`, they mean the policy `mvw`; below a layer that names others, those that its
policies do not have are dropped.

This package does not know how a model is loaded or run. Names resolve lazily: looking up
profile names, as completion does, needs neither yaml nor pydantic.
"""

from typing import TYPE_CHECKING, Any

_HOMES = {
    "Origin": "mvw_cli.profiles.origin",
    "Profile": "mvw_cli.profiles.schema",
    "RawText": "mvw_cli.profiles.raw",
    "Resolved": "mvw_cli.profiles.resolution",
    "generation_settings": "mvw_cli.profiles.convert",
    "json_schema": "mvw_cli.profiles.schema_export",
    "known_profiles": "mvw_cli.profiles.store",
    "model_spec": "mvw_cli.profiles.convert",
    "parse_set": "mvw_cli.profiles.layers",
    "resolve": "mvw_cli.profiles.resolution",
    "withdrawal_policy": "mvw_cli.profiles.convert",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from mvw_cli.profiles.convert import generation_settings as generation_settings
    from mvw_cli.profiles.convert import model_spec as model_spec
    from mvw_cli.profiles.convert import withdrawal_policy as withdrawal_policy
    from mvw_cli.profiles.layers import parse_set as parse_set
    from mvw_cli.profiles.origin import Origin as Origin
    from mvw_cli.profiles.raw import RawText as RawText
    from mvw_cli.profiles.resolution import Resolved as Resolved
    from mvw_cli.profiles.resolution import resolve as resolve
    from mvw_cli.profiles.schema import Profile as Profile
    from mvw_cli.profiles.schema_export import json_schema as json_schema
    from mvw_cli.profiles.store import known_profiles as known_profiles


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mvw_cli.profiles' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
