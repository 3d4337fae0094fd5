"""Layers: one source of values each - a file, the environment, the flags - already checked.

Fields of withdrawal policies are let through unchecked: only the final policies know them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.checking import SCHEMA_HINT, Given, Locate, Origin, check_profile, unknown_key
from mvw_cli.profiles.document import MAX_BYTES, Document, DocumentError, Path, RawText, interpret
from mvw_cli.profiles.document import read as read_yaml
from mvw_cli.profiles.schema import SECTIONS, Profile, fields, flatten, nested
from mvw_cli.profiles.store import ProfileFile
from mvw_cli.profiles.withdrawal import POLICY, LayerWithdrawal, as_steps
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

    def locate(path: Path) -> Origin:
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
                cause=did_you_mean(
                    name, VARIABLES, otherwise="keys of a profile are set by --set KEY=VALUE"
                ),
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
    return _checked(values, {key: Origin("flag", _flag(key, values[key])) for key in values})


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


def shown(path: FilePath) -> str:
    """Write a path as a person would type it: relative where it lies below this folder."""
    try:
        return str(path.resolve().relative_to(FilePath.cwd().resolve()))
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
        if not _is_text(f"{key}{value}"):
            raise UsageProblem(
                f"{origins[key]}: not UTF-8 text",
                cause="it holds bytes that are no characters",
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

    def locate(path: Path) -> Origin:
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


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the command line that Python could not decode
        return False
    return True


def _flag(key: str, value: object) -> str:
    if isinstance(value, RawText):
        return f"--set {key}"
    return "--" + key.rpartition(".")[2].replace("_", "-")
