"""Put the layers of a profile together, and remember where each value came from.

What comes out says which model to load, how tokens are chosen, and when the vision tokens go.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.errors import PluginProblem, UsageProblem
from mvw_cli.plugins import OWN, canonical, find_adapter
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.document import (
    MAX_BYTES,
    Document,
    DocumentError,
    KeyPath,
    RawText,
    interpret,
)
from mvw_cli.profiles.document import read as read_yaml
from mvw_cli.profiles.schema import (
    SCHEMA_HINT,
    SECTIONS,
    Given,
    Locate,
    Origin,
    Profile,
    check_profile,
    fields,
    flatten,
    nested,
    unknown_key,
)
from mvw_cli.profiles.store import DEFAULT, ProfileFile, default_files, find, is_path
from mvw_cli.profiles.withdrawal import POLICY, LayerWithdrawal, as_steps, field_key, merge
from mvw_cli.text import did_you_mean

VARIABLES = (
    "MVW_DEBUG",
    "MVW_HOME",
    "MVW_LOAD_PLUGINS",
    "MVW_MODEL",
    "MVW_OFFLINE",
    "MVW_PROFILE",
    "MVW_STRICT_PLUGINS",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source gives."""

    values: Mapping[str, Given]
    """By dotted key, without the withdrawal."""
    withdrawal: LayerWithdrawal
    distribution: str | None = None
    """Whose packaged profile this is; its names of adapters and policies mean its own."""
    extends: str | None = None


def file_layer(file: ProfileFile) -> Layer:
    """Read and check one profile file.

    Raises:
        UsageProblem: unreadable, bad YAML, or a key that is wrong; with file and line.
    """
    where = shown(file.path)
    document = _read(file, where)
    values = document.value if document.value is not None else {}
    if not isinstance(values, dict):
        raise UsageProblem(
            f"{where}: not a mapping of keys to values",
            cause="a profile has lines like `model: ORG/NAME`",
            hint=SCHEMA_HINT,
        )
    # A group whose keys are all commented out reads as null.
    values = {k: v for k, v in values.items() if not (k in SECTIONS and v is None)}
    lines = document.lines
    if isinstance(values.get("withdrawal"), list):
        values["withdrawal"] = {"policy": values["withdrawal"]}
        lines = {
            (path[0], "policy", *path[1:]) if path[:1] == ("withdrawal",) else path: line
            for path, line in lines.items()
        }

    def locate(path: KeyPath) -> Origin:
        while path and path not in lines:
            path = path[:-1]
        return Origin(file.kind, where, lines.get(path))

    return _layer(check_profile(values, locate), {}, locate, file.distribution)


def environment_layer(env: Mapping[str, str]) -> Layer:
    """Take the model from `MVW_MODEL`; an empty variable counts as unset.

    Raises:
        UsageProblem: there is a variable `MVW_*` that means nothing.
    """
    for name in sorted(env):
        if name.startswith("MVW_") and env[name] and name not in VARIABLES:
            raise UsageProblem(
                f"there is no variable {name}",
                cause=_instead_of(name, env[name]),
                hint=f"unset {name}",
            )
    model = env.get("MVW_MODEL")
    return _checked(
        {"model": model} if model else {}, {"model": Origin("environment", "MVW_MODEL")}
    )


def flag_layer(flags: Mapping[str, object]) -> Layer:
    """Take the values of the command line by dotted key; None is a flag that was not given.

    Raises:
        UsageProblem: a key that there is not, or a wrong value.
    """
    values = {key: value for key, value in flags.items() if value is not None}
    origins = {}
    for key, value in values.items():
        option = "--" + key.rpartition(".")[2].replace("_", "-")
        origins[key] = Origin("flag", f"--set {key}" if isinstance(value, RawText) else option)
    return _checked(values, origins)


def _instead_of(variable: str, value: str) -> str:
    """Name what sets a profile's key, where that is what a variable reads like."""
    word = variable.removeprefix("MVW_").lower()
    keys = {key.replace(".", "_"): key for key in fields()}
    key = keys.get(word) or re.sub("^withdrawal_", "withdrawal.", word)
    if key in fields() or key.startswith("withdrawal."):
        return f"a key of a profile is set by --set {shlex.quote(f'{key}={value}')}"
    otherwise = "keys of a profile are set by --set KEY=VALUE"
    return did_you_mean(variable, VARIABLES, otherwise=otherwise)


def parse_set(pairs: Sequence[str]) -> dict[str, RawText]:
    """Take `key.path=value` apart, as given to `--set`.

    Raises:
        UsageProblem: one of them has no `=`.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageProblem(
                f"--set {pair}: not KEY=VALUE",
                cause="for instance: --set generation.temperature=0.6",
                hint=SCHEMA_HINT,
            )
        values[key.strip()] = RawText(text)
    return values


def shown(path: Path) -> str:
    """Write a path as a person would type it: relative where it lies below this folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except (ValueError, OSError):
        return str(path)


def _read(file: ProfileFile, where: str) -> Document:
    text = ""
    try:
        with file.path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageProblem(
                f"{where}: too large for a profile",
                cause=f"a profile has at most {MAX_BYTES // 1024} KiB",
                hint="mvw list profiles",
            )
        text = data.decode("utf-8-sig")
        return read_yaml(text)
    except OSError as error:
        cause = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):
            cause += f"; a profile that is not a file is named without its ending: {file.path.stem}"
        raise UsageProblem(
            f"can't read profile {where}", cause=cause, hint="mvw list profiles"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageProblem(
            f"{where}, line {line}: not UTF-8 text", cause=error.reason, hint="mvw list profiles"
        ) from error
    except DocumentError as error:
        place = where if error.line is None else f"{where}, line {error.line}"
        lines = text.splitlines()
        cause = None
        if error.line is not None and error.line <= len(lines):
            cause = f"the line reads: {lines[error.line - 1].strip()[:80]}"
        raise UsageProblem(f"{place}: {error.message}", cause=cause, hint=SCHEMA_HINT) from error


def _checked(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> Layer:
    """Check values by dotted key; texts are read as YAML where their key wants no text."""
    infos = {key: info for key, info in fields().items() if key != "extends"}
    found: dict[str, Any] = {}
    policy_fields: dict[str, Any] = {}
    for key, value in values.items():
        if any("\ud800" <= character <= "\udfff" for character in f"{key}{value}"):
            raise UsageProblem(
                f"{origins[key]}: not UTF-8 text",
                cause="it holds bytes that are no characters",  # Python lets them through as such
                hint=SCHEMA_HINT,
            )
        if key in SECTIONS:
            raise UsageProblem(
                f"{origins[key]}: `{key}` is a group of keys",
                cause=f"its keys: {', '.join(f'{key}.{k}' for k in SECTIONS[key].model_fields)}",
                hint=SCHEMA_HINT,
            )
        if key == POLICY and str(value).lstrip().startswith("["):
            found[key] = interpret(value, list)
        elif key in infos:
            found[key] = interpret(value, infos[key].annotation)
        elif key.startswith("withdrawal.") and key.count(".") == 1:
            policy_fields[key.removeprefix("withdrawal.")] = value
        else:
            raise unknown_key(origins[key], key, [*infos, *SECTIONS])

    def locate(path: KeyPath) -> Origin:
        words = [part for part in path if isinstance(part, str)]
        return origins.get(".".join(words[:2])) or origins[words[0]]

    return _layer(check_profile(nested(found), locate), policy_fields, locate)


def _layer(
    profile: Profile,
    policy_fields: dict[str, Any],
    locate: Locate,
    distribution: str | None = None,
) -> Layer:
    flat = flatten(profile, given_only=True)
    withdrawal = nested(flat).get("withdrawal", {}) | policy_fields
    return Layer(
        {
            key: Given(value, locate(tuple(key.split("."))))
            for key, value in flat.items()
            if key != "extends" and not key.startswith("withdrawal.")
        },
        as_steps(withdrawal, locate, distribution),
        distribution,
        flat.get("extends"),
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """A profile with every key filled in, and the origin of each value by its dotted key.

    Several policies are one value, a list of mappings; their fields have origins of their own,
    under `withdrawal.policy[0].layer` and so on.
    """

    name: str | None
    """Name or path of the profile; None where flags alone say what runs."""
    profile: Profile
    policy: WithdrawalPolicy
    origins: Mapping[str, Origin]
    is_default: bool = False
    """No profile, adapter or model was named: the embedded model answers."""

    def values(self) -> dict[str, Any]:
        """List the values by dotted key, in the order of the schema."""
        return {key: one for key, one in flatten(self.profile).items() if key != "extends"}

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """List key, value and origin for people; of several policies each field once more."""
        for key, value in self.values().items():
            yield key, value, self.origins[key]
            if key == POLICY and isinstance(value, list):
                for number, step in enumerate(value):
                    for name, one in step.items():
                        inner = field_key(number, name)
                        yield inner, one, self.origins[inner]

    def by_flag(self) -> dict[str, Any]:
        """List what flags gave, wholly or in part, by the keys that `--set` takes."""
        values = self.values()
        given = [key for key, origin in self.origins.items() if origin.kind == "flag"]
        keys = {key if key in values else POLICY for key in given}
        return {key: value for key, value in values.items() if key in keys}

    def to_dict(self) -> dict[str, Any]:
        """Serialise: the name, the values as a profile, and the origins by dotted key."""
        return {
            "name": self.name,
            "values": self.profile.model_dump(exclude={"extends"}),
            "origins": {key: asdict(origin) for key, _, origin in self.rows()},
        }


def resolve(
    name: str | None,
    flags: Mapping[str, object],
    env: Mapping[str, str] = os.environ,
) -> Resolved:
    """Resolve a profile, named or by path, under the environment and the flags.

    `flags` holds values by dotted key; None counts as not given, and `parse_set` makes entries
    of `--set`. Without a name `MVW_PROFILE` counts; without that, and with no adapter or model
    in flags or environment, the embedded `shapes`.

    Raises:
        UsageProblem: a profile, key or value that is wrong.
        PluginProblem: the adapter or policy can't be used.
    """
    above = [environment_layer(env), flag_layer(flags)]
    name = name or env.get("MVW_PROFILE") or None
    is_default = False
    files: list[ProfileFile] = []
    if name is not None:
        files = find(name, env)
    elif not any(key in layer.values for layer in above for key in ("adapter", "model")):
        name, files, is_default = DEFAULT, default_files(env), True
    layers = [*reversed(chain(files, env)), *above]
    values, origins = _merge(layers)
    _adapter(values, origins, layers)
    policy, withdrawal, where = merge([layer.withdrawal for layer in layers])
    profile = Profile.model_validate(nested(values | withdrawal))
    return Resolved(name, profile, policy, origins | where, is_default)


def chain(files: list[ProfileFile], env: Mapping[str, str]) -> list[Layer]:
    """Read the files of one profile and all that it extends, the highest layer first.

    Raises:
        UsageProblem: as `resolve`, or the profile extends itself.
    """
    layers: list[Layer] = []
    visited: list[Path] = []
    while files:
        own = [file_layer(file) for file in files]
        layers += own
        visited += [file.path.resolve() for file in files]
        child = next((i for i, layer in enumerate(own) if layer.extends is not None), None)
        if child is None:
            break
        files = _parent(files, child, own[child].extends or "", env)
        circle = [file.path for file in files if file.path.resolve() in visited]
        if circle:
            path = " -> ".join(p.stem for p in [*visited, circle[0]])
            raise UsageProblem(
                f"profile `{circle[0].stem}` extends itself",
                cause=f"the chain is {path}",
                hint="mvw list profiles",
            )
    return layers


def _parent(
    files: list[ProfileFile], child: int, name: str, env: Mapping[str, str]
) -> list[ProfileFile]:
    if is_path(name):
        path = files[child].path.parent / os.path.expanduser(name)
        return [ProfileFile(name, path, "profile")]
    if files[child].kind == "user" and name == files[child].name:
        return []  # its packaged namesake lies below it anyway
    try:
        return find(name, env)
    except UsageProblem as error:
        what = f"{files[child].path.name} extends a profile that can't be found: {error.message}"
        raise UsageProblem(what, cause=error.cause, hint=error.hint) from error


def _merge(layers: list[Layer]) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Take each key but those of the withdrawal from the highest layer that gives it."""
    default = Origin("default", "mvw")
    given = {
        key: Given(info.get_default(call_default_factory=True), default)
        for key, info in fields().items()
        if key != "extends" and not key.startswith("withdrawal.")
    }
    for layer in layers:
        given |= layer.values
    values = {key: one.value for key, one in given.items()}
    return values, {key: one.origin for key, one in given.items()}


def _adapter(values: dict[str, Any], origins: dict[str, Origin], layers: list[Layer]) -> None:
    """Settle the adapter, and the model that it takes where none is named."""
    speaker: str | None = OWN
    if origins["adapter"].kind == "default":
        values["adapter"] = "shapes" if values["model"] is None else "hf"
    else:
        speaker = next(x.distribution for x in reversed(layers) if "adapter" in x.values)
    values["adapter"] = canonical("adapter", values["adapter"], speaker)
    try:
        info = find_adapter(values["adapter"])
    except PluginProblem as error:
        what = f"{origins['adapter']}: {error.message}"
        raise PluginProblem(what, cause=error.cause, hint=error.hint) from error
    if values["model"] is None and info.checkpoints:
        values["model"] = info.checkpoints[0]
        origins["model"] = Origin("default", f"adapter {values['adapter']}")


def model_spec(profile: Profile) -> ModelSpec:
    """Make what an adapter is told: which weights to load, and how.

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
    device, cause = profile.device, None
    if profile.device_map is not None and device not in ("auto", "cuda"):
        what, cause = "device_map", "a device map spreads the model over all GPUs"
    elif profile.quantization is not None and device in ("cpu", "mps"):
        what, cause = "quantization", "bitsandbytes is used on CUDA devices only"
    if cause is not None:
        raise UsageProblem(
            f"device: {device} and {what}: {getattr(profile, what)} contradict each other",
            cause=cause,
            hint="mvw infer IMAGE QUESTION --device auto",
        )
    weights = {"model", "revision", "dtype", "device", "device_map", "quantization"}
    return ModelSpec(
        **profile.model_dump(include=weights),
        system=profile.prompt.system,
        template=profile.prompt.template,
        max_pixels=profile.images.max_pixels,
    )


def generation_settings(profile: Profile) -> GenerationSettings:
    """Make what the engine is told: how tokens are chosen and when to stop."""
    generation = profile.generation.model_dump()
    return GenerationSettings(**{**generation, "stop": tuple(generation["stop"])})
