"""What a profile may say: its keys, their types and ranges, each with a description.

The names here are the YAML keys, the `--set` keys and the JSON keys. The fields of a withdrawal
policy are checked once it is known (`withdrawal.py`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.document import KeyPath
from mvw_cli.text import closest

_SPEC: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(ModelSpec)}
_SETTINGS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(GenerationSettings)}
_DEVICE = r"auto|cpu|mps|cuda(:\d+)?"


def _device(value: str) -> str:
    if re.fullmatch(_DEVICE, value) is None:
        raise ValueError("must be auto, cpu, mps, cuda or cuda:N")
    return value


def _template(value: str) -> str:
    if "{question}" not in value:
        raise ValueError("must contain {question}, where the question goes")
    return value


def _text_too(schema: dict[str, Any]) -> None:
    array = {"type": schema.pop("type"), "items": schema.pop("items")}
    schema["anyOf"] = [{"type": "string", "minLength": 1}, array]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Section(BaseModel):
    """A group of keys. Strict: text is not taken for a number, nor a misspelled key for none."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class PolicyStep(Section):
    """One of several policies. The further keys are its fields."""

    model_config = ConfigDict(extra="allow")

    policy: str = Field(min_length=1, description="Name of the withdrawal policy.")


class Withdrawal(Section):
    """When the vision tokens go. The further keys are the fields of the policy."""

    model_config = ConfigDict(extra="allow")

    policy: (
        Annotated[str, Field(min_length=1)] | Annotated[list[PolicyStep], Field(min_length=1)]
    ) = Field(
        default="none",
        description="Withdrawal policy; `mvw list policies` shows them. Several act in order: "
        "vtw:layer=12+mvw:m=16 on one line, or a list in YAML. Without it: mvw where one of its "
        "fields is given, else none.",
    )

    @property
    def steps(self) -> list[tuple[str, dict[str, Any]]]:
        """The policies in order, each with its fields."""
        if isinstance(self.policy, str):
            return [(self.policy, dict(self.model_extra or {}))]
        return [(step.policy, dict(step.model_extra or {})) for step in self.policy]


class Prompt(Section):
    """What is sent with the image."""

    system: str | None = Field(
        default=_SPEC["system"], description="System prompt; null takes the model's own."
    )
    template: Annotated[str, AfterValidator(_template)] = Field(
        default=_SPEC["template"],
        description="Text sent with the images; {question} stands for the question.",
        json_schema_extra={"pattern": r"\{question\}"},
    )
    question: str | None = Field(
        default=None,
        min_length=1,
        description="What `mvw batch` asks of each image where nothing else says it.",
    )


class Images(Section):
    """How images are prepared."""

    max_pixels: int | None = Field(
        default=_SPEC["max_pixels"],
        ge=1,
        description="Larger images are scaled down to at most this many pixels; null: never.",
    )
    min_pixels: int | None = Field(
        default=None,
        ge=1,
        description="Where memory runs out, `mvw batch` may scale an image down to no fewer pixels "
        "than this, and records it; null: never.",
    )


class Generation(Section):
    """How tokens are chosen and when to stop."""

    max_new_tokens: int = Field(
        default=_SETTINGS["max_new_tokens"], ge=1, description="Generate at most this many tokens."
    )
    temperature: float | None = Field(
        default=_SETTINGS["temperature"],
        ge=0,
        description="0 is greedy; null takes the model's generation config.",
    )
    top_p: float | None = Field(
        default=_SETTINGS["top_p"],
        gt=0,
        le=1,
        description="Sample from the likeliest tokens that have this probability together; null: "
        "as the model says.",
    )
    top_k: int | None = Field(
        default=_SETTINGS["top_k"],
        ge=0,
        description="Sample from this many likeliest tokens; 0: from all; null: as the model says.",
    )
    repetition_penalty: float | None = Field(
        default=_SETTINGS["repetition_penalty"],
        gt=0,
        description="Above 1 makes repeated tokens less likely; null: as the model says.",
    )
    seed: int = Field(
        default=_SETTINGS["seed"],
        ge=0,
        lt=2**63,
        description="Seed of the sampling, for each image.",
    )
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_one_or_many)] = (
        Field(
            default=list(_SETTINGS["stop"]),
            description="Stop once one of these has been written; it stays in the text.",
            json_schema_extra=_text_too,
        )
    )


class Profile(Section):
    """Which model answers, and how."""

    model_config = ConfigDict(title="mvw profile")

    extends: str | None = Field(
        default=None,
        min_length=1,
        description="Profile (name, or path relative to this file) whose keys lie below these.",
    )
    adapter: str = Field(
        default="hf",
        min_length=1,
        description="Model family; `mvw list adapters` shows them. Without it: hf where a model "
        "is named, else shapes.",
    )
    model: str | None = Field(
        default=_SPEC["model"],
        min_length=1,
        description="Hub id or folder of the weights; null takes the adapter's first checkpoint.",
    )
    revision: str | None = Field(
        default=_SPEC["revision"], min_length=1, description="Branch, tag or commit of the weights."
    )
    description: str | None = Field(default=None, description="One line for `mvw list profiles`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default=_SPEC["dtype"], description="Type of the weights; auto takes the checkpoint's own."
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        default=_SPEC["device"],
        description="auto, cpu, mps, cuda or cuda:N; auto takes an accelerator where there is one.",
        json_schema_extra={"pattern": f"^({_DEVICE})$"},
    )
    device_map: Literal["auto"] | None = Field(
        default=_SPEC["device_map"],
        description="auto spreads the layers over all GPUs (needs mvw[multi-gpu]); null: one "
        "device.",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=_SPEC["quantization"],
        description="8bit or 4bit holds the weights of linear layers in so many bits, on CUDA "
        "devices (needs mvw[quantization]); null: all in dtype.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash"] = Field(
        default="auto",
        description="Attention kernel; auto takes flash where installed and able, else sdpa.",
    )
    cross_attention: Literal["skip", "mlp"] = Field(
        default="skip",
        description="What a withdrawal leaves of a cross-attention layer: nothing (skip, as for a "
        "prompt without an image) or its gated MLP (mlp).",
    )
    prompt: Prompt = Field(default_factory=Prompt, description=Prompt.__doc__)
    images: Images = Field(default_factory=Images, description=Images.__doc__)
    withdrawal: Withdrawal = Field(default_factory=Withdrawal, description=Withdrawal.__doc__)
    generation: Generation = Field(default_factory=Generation, description=Generation.__doc__)


SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in Profile.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}


def fields() -> dict[str, FieldInfo]:
    """List every key that has a value, by its dotted name, without the policies' own."""
    found: dict[str, FieldInfo] = {}
    for name, info in Profile.model_fields.items():
        if name in SECTIONS:
            for inner, inner_info in SECTIONS[name].model_fields.items():
                found[f"{name}.{inner}"] = inner_info
        else:
            found[name] = info
    return found


def flatten(profile: Profile, *, given_only: bool = False) -> dict[str, Any]:
    """List the values of a profile by dotted key, in the order of the schema."""
    flat: dict[str, Any] = {}
    for name, value in profile.model_dump(exclude_unset=given_only).items():
        if name in SECTIONS:
            flat.update({f"{name}.{inner}": one for inner, one in value.items()})
        else:
            flat[name] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Put values by dotted key back into their groups."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, field = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[field] = value
    return values


OriginKind = Literal["flag", "environment", "profile", "user", "packaged", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The layer and the place that gave a value."""

    kind: OriginKind
    where: str
    """A file, a variable, a flag, or what the default belongs to."""
    line: int | None = None

    def __str__(self) -> str:
        return self.where if self.line is None else f"{self.where}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as one layer gives it, and where."""

    value: Any
    origin: Origin


SCHEMA_HINT = "mvw show --schema"
Locate = Callable[[KeyPath], Origin]
_SHOULD = re.compile(r"^\w+ should |(, got| after validation).*")
ModelT = TypeVar("ModelT", bound=BaseModel)


def check_profile(values: Mapping[str, Any], locate: Locate) -> Profile:
    """Check one layer's keys.

    Raises:
        UsageProblem: an unknown key, a wrong type or a wrong range, with its file and line.
    """
    step = {"withdrawal.policy.policy": PolicyStep.model_fields["policy"]}
    return check(Profile, values, locate, (), fields() | step)


def check(
    model: type[ModelT],
    values: Mapping[str, Any],
    locate: Locate,
    prefix: KeyPath,
    describe: Mapping[str, FieldInfo],
) -> ModelT:
    """Check values against a model; `prefix` is where they stand in the profile."""
    try:
        # JSON's strictness is the right one for YAML: a list may become a tuple, text no number.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        found: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            path = (*prefix, *_place(values, detail["loc"]))
            found.setdefault(path, []).append(detail)
        # Of what is wrong with one value, the innermost says most.
        inner = [p for p in found if not any(q[: len(p)] == p for q in found if q != p)]
        path = min(inner, key=lambda path: locate(path).line or 0)
        raise _problem(locate(path), found[path], path, describe) from None


def unknown_key(origin: Origin, key: str, known: Iterable[str]) -> UsageProblem:
    """Complain about a dotted key that there is not, naming the one that was probably meant."""
    known = list(known)
    section, _, last = key.rpartition(".")
    beside = [one for one in known if one.rpartition(".")[0] == section]
    near = closest(last, (one.rpartition(".")[2] for one in beside))
    meant = f"{section}.{near}".lstrip(".") if near else None
    if meant is None:  # perhaps the right word in the wrong place
        elsewhere = {one.rpartition(".")[2]: one for one in known}
        meant = elsewhere.get(closest(last, elsewhere) or "")
    listing = ", ".join(one.rpartition(".")[2] for one in beside) or ", ".join(known)
    cause = f"did you mean `{meant}`?" if meant else f"known here: {listing}"
    return UsageProblem(f"{origin}: unknown key `{key}`", cause=cause, hint=SCHEMA_HINT)


def _place(values: Any, location: KeyPath) -> KeyPath:
    """Leave out of pydantic's location what names an alternative of a type."""
    path: list[str | int] = []
    for part in location:
        if isinstance(values, Mapping) and isinstance(part, str):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _problem(
    origin: Origin,
    details: Sequence[ErrorDetails],
    path: KeyPath,
    describe: Mapping[str, FieldInfo],
) -> UsageProblem:
    """Word what is wrong with the value at a path; `details` has one for each type it may have."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        return unknown_key(origin, key, [*describe, *SECTIONS])
    words = ".".join(part for part in path if isinstance(part, str))
    info, cause = describe.get(words), None
    if info is not None:
        cause = info.description
    elif words in SECTIONS:
        cause = f"its keys: {', '.join(SECTIONS[words].model_fields)}"
    given = json.dumps(detail["input"], ensure_ascii=False, default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    if detail["type"] == "missing":
        what = "is missing"
    elif detail["type"] == "value_error":  # of a validator above
        what = f"{detail['ctx']['error']}, not {given}"
    else:
        # Pydantic says "Input should be a valid list".
        kinds = dict.fromkeys(_SHOULD.sub("", one["msg"]) for one in details)
        expected = " or ".join(kinds).replace(" or be ", " or ").replace("'", "")
        what = f"must {expected}, not {given}"
    return UsageProblem(f"{origin}: `{key}` {what}", cause=cause, hint=SCHEMA_HINT)
