"""Put the layers of a profile together, and remember where each value came from.

What comes out says which model to load, how tokens are chosen, and when the vision tokens go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.errors import UsageProblem
from mvw_cli.plugins import find_adapter
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.document import DocumentError, KeyPath, RawText, interpret
from mvw_cli.profiles.document import read as read_yaml
from mvw_cli.profiles.schema import (
    SCHEMA_HINT,
    SECTIONS,
    Given,
    Locate,
    Origin,
    Profile,
    check,
    fields,
    flatten,
    named_at,
    nested,
    unknown_key,
)
from mvw_cli.profiles.store import DEFAULT, ProfileFile, find, is_path
from mvw_cli.profiles.withdrawal import Step, as_steps, merge
from mvw_cli.text import is_unicode

VARIABLES = (
    "MVW_API_KEY",
    "MVW_DEBUG",
    "MVW_HOME",
    "MVW_LOAD_PLUGINS",
    "MVW_MODEL",
    "MVW_OFFLINE",
    "MVW_PROFILE",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source gives."""

    values: Mapping[str, Given]
    """By dotted key, without the withdrawal."""
    withdrawal: tuple[Step, ...]
    extends: Given | None = None
    path: Path | None = None
    """The file that it is from."""


def file_layer(file: ProfileFile) -> Layer:
    """Read and check one profile file.

    Raises:
        UsageProblem: unreadable, bad YAML, or a key that is wrong; with file and line.
    """
    where = shown(file.path)
    text = ""
    try:
        text = file.path.read_text(encoding="utf-8-sig")
        document = read_yaml(text)
    except OSError as error:
        cause = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):
            cause += f"; a profile that is not a file is named without its ending: {file.path.stem}"
        what = f"can't read profile {where}"
        raise UsageProblem(what, cause=cause, hint="mvw list profiles") from error
    except UnicodeDecodeError as error:
        what = f"{where}: not UTF-8 text"
        raise UsageProblem(what, cause=error.reason, hint="mvw list profiles") from error
    except DocumentError as error:
        cause, place = "a profile is YAML: text, numbers, lists and mappings", where
        if error.line is not None:
            place += f", line {error.line}"
            cause = f"the line reads: {[*text.splitlines(), ''][error.line - 1].strip()[:80]}"
        raise UsageProblem(f"{place}: {error.message}", cause=cause, hint=SCHEMA_HINT) from error
    values = {} if document.value is None else document.value
    if not isinstance(values, dict):
        raise UsageProblem(
            f"{where}: not a mapping of keys to values",
            cause="a profile has lines like `model: ORG/NAME`",
            hint=SCHEMA_HINT,
        )

    def locate(path: KeyPath) -> Origin:
        while path and path not in document.lines:
            path = path[:-1]
        return Origin(file.kind, where, document.lines.get(path))

    # A group whose keys are all commented out reads as null.
    given = {key: one for key, one in values.items() if not (key in SECTIONS and one is None)}
    return replace(_layer(given, locate), path=file.path)


def environment_layer(env: Mapping[str, str]) -> Layer:
    """Take the model from `MVW_MODEL`; an empty variable counts as unset.

    Raises:
        UsageProblem: there is a variable `MVW_*` that means nothing.
    """
    for name in sorted(env):
        if name.startswith("MVW_") and env[name] and name not in VARIABLES:
            raise UsageProblem(
                f"there is no variable {name}",
                cause=f"there are {', '.join(VARIABLES)}; keys are set by --set KEY=VALUE",
                hint=f"unset {name}",
            )
    model, origin = env.get("MVW_MODEL"), Origin("environment", "MVW_MODEL")
    _check_text(model, origin)
    return _layer({"model": model} if model else {}, lambda _: origin)


def flag_layer(flags: Mapping[str, object]) -> Layer:
    """Take the values of the command line by dotted key; None is a flag that was not given.

    Raises:
        UsageProblem: a key that there is not, or a wrong value.
    """
    known = {key: info.annotation for key, info in fields().items() if key != "extends"}
    found: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for key, value in flags.items():
        if value is None:
            continue
        option = "--" + key.rpartition(".")[2].replace("_", "-")
        origins[key] = Origin("flag", f"--set {key}" if isinstance(value, RawText) else option)
        _check_text(value, origins[key])
        section = key.rpartition(".")[0]
        if key not in known and section not in ("withdrawal", "engine_args"):
            raise unknown_key(origins[key], key)
        is_list = key == "withdrawal.policy" and str(value).lstrip().startswith("[")
        found[key] = value  # of a policy's field the type is known later
        if is_list or key in known or section == "engine_args":
            found[key] = interpret(value, list if is_list else known.get(key, Any))

    def locate(path: KeyPath) -> Origin:
        names = (".".join(map(str, path[:2])), *map(str, path[:1]))
        return next((origins[one] for one in names if one in origins), Origin("flag", "--set"))

    return _layer(nested(found), locate)


def _check_text(value: object, origin: Origin) -> None:
    """Refuse a text of a command line or variable that holds bytes which are no characters."""
    if isinstance(value, str) and not is_unicode(value):
        raise UsageProblem(
            f"{origin}: the value is not UTF-8",
            cause="a profile holds text; a folder of another name can be reached by a link to it",
            hint=SCHEMA_HINT,
        )


def _layer(given: dict[str, Any], locate: Locate) -> Layer:
    """Check one layer's keys, and make steps of its withdrawal."""
    steps = as_steps(given.pop("withdrawal", {}), locate)
    flat = flatten(check(Profile, given, locate), given_only=True)
    values = {key: Given(value, locate(tuple(key.split(".")))) for key, value in flat.items()}
    return Layer(values, steps, values.pop("extends", None))


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


@dataclass(frozen=True, slots=True)
class Resolved:
    """A profile with every key filled in, and the origin of each value by its dotted key.

    Several policies are one value, a list of mappings; its origin is what names them, or a flag
    that changes one of their fields.
    """

    name: str | None
    """Name or path of the profile; None where flags alone say what runs."""
    profile: Profile
    policy: WithdrawalPolicy
    origins: Mapping[str, Origin]
    is_default: bool = False
    """No profile, adapter or model was named: the embedded model answers."""
    files: tuple[Path, ...] = ()
    """The profile's own and those of all that it extends."""

    def values(self) -> dict[str, Any]:
        """List the values by dotted key, in the order of the schema."""
        return {key: one for key, one in flatten(self.profile).items() if key != "extends"}

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """List key, value and origin for people."""
        return ((key, value, self.origins[key]) for key, value in self.values().items())

    def by_flag(self) -> dict[str, Any]:
        """List what flags gave, wholly or in part, by the keys that `--set` takes."""
        return {key: value for key, value, origin in self.rows() if origin.kind == "flag"}

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
    is_default = name is None and not any(
        key in layer.values for layer in above for key in ("adapter", "model")
    )
    name = DEFAULT if is_default else name
    files = [] if name is None else find(name, env)
    layers = [*reversed(chain(files, env)), *above]
    default = Origin("default", "mvw")
    given = {
        key: Given(info.get_default(call_default_factory=True), default)
        for key, info in fields().items()
        if key != "extends" and not key.startswith("withdrawal.")
    }
    for layer in layers:
        given |= layer.values
    given |= _adapter(given)
    policy, withdrawal = merge([layer.withdrawal for layer in layers])
    given |= withdrawal
    profile = Profile.model_validate(nested({key: one.value for key, one in given.items()}))
    origins = {key: one.origin for key, one in given.items()}
    paths = tuple(layer.path for layer in layers if layer.path is not None)
    return Resolved(name, profile, policy, origins, is_default, paths)


def chain(files: list[ProfileFile], env: Mapping[str, str]) -> list[Layer]:
    """Read the files of one profile and all that it extends, the highest layer first.

    Raises:
        UsageProblem: as `resolve`, or the profile extends itself.
    """
    layers: list[Layer] = []
    visited: list[Path] = []
    while files:
        circle = [file.path for file in files if file.path.resolve() in visited]
        visited += [file.path.resolve() for file in files]
        if circle:
            raise UsageProblem(
                f"profile `{circle[0].stem}` extends itself",
                cause=f"the chain is {' -> '.join(path.stem for path in visited)}",
                hint="mvw list profiles",
            )
        own = [file_layer(file) for file in files]
        layers += own
        child = next((pair for pair in zip(files, own, strict=True) if pair[1].extends), None)
        files = [] if child is None else _parent(*child, env)
    return layers


def _parent(child: ProfileFile, layer: Layer, env: Mapping[str, str]) -> list[ProfileFile]:
    """Find the files that a profile extends."""
    if layer.extends is None:
        return []
    name = layer.extends.value
    if name is None or (child.kind == "user" and name == child.name):
        return []  # its packaged namesake lies below it anyway
    if is_path(name):
        return [ProfileFile(name, child.path.parent / os.path.expanduser(name), "profile")]
    with named_at(layer.extends.origin):
        return find(name, env)


def _adapter(given: Mapping[str, Given]) -> dict[str, Given]:
    """Settle the adapter, and the model that it takes where none is named."""
    name, origin, model = given["adapter"].value, given["adapter"].origin, given["model"]
    if origin.kind == "default":
        name = "shapes" if model.value is None else "hf"
    with named_at(origin):
        checkpoints = find_adapter(name).info.checkpoints
    if model.value is None and checkpoints:
        model = Given(checkpoints[0], Origin("default", f"adapter {name}"))
    return {"adapter": Given(name, origin), "model": model}


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
        special_tokens=profile.prompt.special_tokens,
        **profile.images.model_dump(include={"max_pixels", "max_decoded_pixels"}),
    )


def generation_settings(profile: Profile) -> GenerationSettings:
    """Make what the engine is told: how tokens are chosen and when to stop."""
    generation = profile.generation.model_dump()
    return GenerationSettings(**{**generation, "stop": tuple(generation["stop"])})
