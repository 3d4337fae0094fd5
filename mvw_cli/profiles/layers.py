"""Layers: one source of values each - a file, the environment, the flags - already checked.

A layer holds values by dotted key, and the origin of each. Fields of withdrawal policies are
let through unchecked: only the final policies know them. This module does not know which layer
outranks which (`resolution.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.checking import SCHEMA_HINT, Origin, check_profile, shown, unknown_key
from mvw_cli.profiles.composition import in_one_form, listed_below
from mvw_cli.profiles.document import (
    MAX_BYTES,
    Document,
    DocumentError,
    Path,
    RawText,
    interpret,
    read,
)
from mvw_cli.profiles.schema import SECTIONS, Profile, fields
from mvw_cli.profiles.store import ProfileFile
from mvw_cli.text import did_you_mean

CONTROLS = (
    "MVW_DEBUG",
    "MVW_HOME",
    "MVW_LOAD_PLUGINS",
    "MVW_OFFLINE",
    "MVW_PROFILE",
    "MVW_STRICT_PLUGINS",
)
"""Variables that are no profile keys."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Values by dotted key, from one source; the withdrawal as `composition.py` leaves it."""

    values: Mapping[str, Any]
    origins: Mapping[str, Origin]
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

    def locate(path: Path) -> Origin:
        while path and path not in document.lines:
            path = path[:-1]
        return Origin(file.kind, where, document.lines.get(path))

    values, locate_in = listed_below(values, locate)
    profile = check_profile(values, locate_in)
    flat = _flatten(profile)
    extends = flat.pop("extends", None)
    origins = {key: locate_in(tuple(key.split(".", 1))) for key in flat}
    flat, origins = in_one_form(flat, origins, locate_in)
    return Layer(flat, origins, file.distribution, extends)


def environment_layer(env: Mapping[str, str]) -> Layer:
    """Read the `MVW_*` variables that name profile keys; an empty one counts as unset.

    Raises:
        UsageProblem: a variable that names no key, or a wrong value.
    """
    known = {"MVW_" + key.upper().replace(".", "_"): key for key in settable()}
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for name in sorted(env):
        if not name.startswith("MVW_") or name in CONTROLS or not env[name]:
            continue
        key = known.get(name)
        if key is None and name.startswith("MVW_WITHDRAWAL_"):
            key = "withdrawal." + name.removeprefix("MVW_WITHDRAWAL_").lower()
        if key is None:
            guess = did_you_mean(
                name, [*known, *CONTROLS], otherwise="the variables are named after profile keys"
            )
            raise UsageProblem(f"there is no variable {name}", cause=guess, hint=f"unset {name}")
        values[key] = RawText(env[name])
        origins[key] = Origin("environment", name)
    return _checked(values, origins)


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


def settable() -> list[str]:
    """List the dotted keys that flags and variables can give, without the policies' own."""
    return [key for key in fields() if key != "extends"]


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
        return read(text)
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
    infos = fields()
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, field = key.rpartition(".")
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
        if key in infos and key != "extends":
            value = interpret(value, infos[key].annotation)
        elif section != "withdrawal":
            raise unknown_key(origins[key], key, [*settable(), *SECTIONS])
        (nested.setdefault(section, {}) if section else nested)[field] = value

    def locate(path: Path) -> Origin:
        return origins[".".join(str(part) for part in path if isinstance(part, str))]

    flat = _flatten(check_profile(nested, locate))
    # Checking goes through JSON, which makes ordinary text of what is still to be read.
    raw = {k: v for k, v in values.items() if k not in infos}
    return Layer(*in_one_form({**flat, **raw}, origins, locate))


def _flatten(profile: Profile) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in profile.model_dump(exclude_unset=True).items():
        if name in SECTIONS:
            flat.update({f"{name}.{inner}": one for inner, one in value.items()})
        else:
            flat[name] = value
    return flat


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
