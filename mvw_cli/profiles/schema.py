"""What a profile may say: its keys, their types and ranges, each with a description.

The names here are the YAML keys, the `--set` keys and the JSON keys. The fields of a withdrawal
policy are checked once it is known (`withdrawal.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.profiles.document import KeyPath
from mvw_cli.text import closest

_SPEC: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(ModelSpec)}
_SETTINGS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(GenerationSettings)}
_NonEmpty = Annotated[str, Field(min_length=1)]


def _as_list(value: object) -> object:
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

    policy: _NonEmpty | Annotated[list[PolicyStep], Field(min_length=1)] = Field(
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
    template: str = Field(
        default=_SPEC["template"],
        pattern=r"\{question\}",
        description="Text sent with the images; {question} stands for the question.",
    )
    question: str | None = Field(
        default=None,
        min_length=1,
        description="What `mvw batch` asks of each image where nothing else says it.",
    )
    special_tokens: bool = Field(
        default=_SPEC["special_tokens"],
        description="Whether control tokens in these texts and in questions, as <|im_end|>, are "
        "such; else they are plain text.",
    )


class Images(Section):
    """How images are prepared."""

    max_pixels: int | None = Field(
        default=_SPEC["max_pixels"],
        ge=1,
        description="Larger images are scaled down to at most this many pixels; null: never.",
    )
    max_decoded_pixels: int = Field(
        default=_SPEC["max_decoded_pixels"],
        ge=1,
        description="An image that would decode to more pixels than this is refused. A large JPEG "
        "that max_pixels scales down decodes to a half, a quarter or an eighth of its sides.",
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
    stop: Annotated[_NonEmpty | list[_NonEmpty], AfterValidator(_as_list)] = Field(
        default=list(_SETTINGS["stop"]),
        description="Stop once one of these has been written; it stays in the text.",
    )


class EngineArgs(Section):
    """Arguments of vLLM's engine under its own names, as `tensor_parallel_size`."""

    model_config = ConfigDict(extra="allow")

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name."""
        return dict(self.model_extra or {})


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
    model: Annotated[_NonEmpty, AfterValidator(os.path.expanduser)] | None = Field(
        default=_SPEC["model"],
        description="Hub id or folder of the weights; null takes the adapter's first checkpoint.",
    )
    revision: str | None = Field(
        default=_SPEC["revision"], min_length=1, description="Branch, tag or commit of the weights."
    )
    description: str | None = Field(default=None, description="One line for `mvw list profiles`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default=_SPEC["dtype"], description="Type of the weights; auto takes the checkpoint's own."
    )
    device: str = Field(
        default=_SPEC["device"],
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="auto, cpu, mps, cuda or cuda:N; auto takes an accelerator where there is one.",
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
    engine: Literal["mvw", "vllm", "auto"] = Field(
        default="mvw",
        description="What runs the model: mvw's own engine, or vLLM (needs mvw[vllm]); auto takes "
        "vLLM where it is installed, has the model and can be exact.",
    )
    engine_args: EngineArgs = Field(default_factory=EngineArgs, description=EngineArgs.__doc__)
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


@contextmanager
def named_at(origin: Origin) -> Iterator[None]:
    """Begin the message of an error about a name with where the name comes from."""
    try:
        yield
    except MvwError as error:
        what = f"{origin}: {error.message}"
        raise type(error)(what, cause=error.cause, hint=error.hint) from error


SCHEMA_HINT = "mvw show --schema"
Locate = Callable[[KeyPath], Origin]
ModelT = TypeVar("ModelT", bound=Section)


def check(
    model: type[ModelT], values: Mapping[str, Any], locate: Locate, prefix: KeyPath = ()
) -> ModelT:
    """Check values against a model; `prefix` is where they stand in the profile.

    Raises:
        UsageProblem: an unknown key, a wrong type or a wrong range, with its file and line.
    """
    try:
        # JSON's strictness is the right one for YAML: a list may become a tuple, text no number.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        wrong = [
            ((*prefix, *_place(values, one["loc"])), one) for one in error.errors(include_url=False)
        ]

    def first(one: tuple[KeyPath, ErrorDetails]) -> tuple[int, int]:
        # Of what is wrong with one value that may be of several types, the innermost says most.
        return locate(one[0][: len(prefix) + 2]).line or 0, -len(one[0])

    path, detail = min(wrong, key=first)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    if detail["type"] == "extra_forbidden":
        raise unknown_key(locate(path), key)
    said = "; ".join(dict.fromkeys(one["msg"] for place, one in wrong if place == path))
    if detail["type"] != "missing":
        said += f", not {json.dumps(detail['input'], ensure_ascii=False, default=str)[:60]}"
    fields_here, info = model.model_fields, None
    for part in map(str, path[len(prefix) :]):
        info = fields_here.get(part, info)
        fields_here = SECTIONS[part].model_fields if part in SECTIONS else fields_here
    raise UsageProblem(
        f"{locate(path)}: `{key}`: {said}",
        cause=info.description if info else "a profile holds text, numbers, lists and mappings",
        hint=SCHEMA_HINT,
    )


def unknown_key(origin: Origin, key: str) -> UsageProblem:
    """Complain about a dotted key that there is not, naming the one that was probably meant."""
    section, _, last = key.rpartition(".")
    group = SECTIONS.get(key) or SECTIONS.get(section) or Profile
    known = ", ".join(one for one in group.model_fields if one != key)
    cause = f"known here: {known}" if known else group.__doc__
    if key not in (*SECTIONS, "extends"):  # these have another place than the one asked for
        near = closest(last, group.model_fields)
        elsewhere = {one.rpartition(".")[2]: one for one in fields()}
        meant = (
            f"{section}.{near}".lstrip(".")
            if near
            else elsewhere.get(closest(last, elsewhere) or "")
        )
        cause = f"did you mean `{meant}`?" if meant else cause
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


def json_schema() -> dict[str, Any]:
    """Make the JSON Schema of a profile, by which editors complete and check the YAML.

    What stands below `withdrawal` is left open: each policy has fields of its own.
    """
    schema = Profile.model_json_schema()
    for name, section in SECTIONS.items():
        # A group whose keys are all commented out reads as null, and is none.
        schema["properties"][name] = {
            "description": section.__doc__,
            "anyOf": [{"$ref": f"#/$defs/{section.__name__}"}, {"type": "null"}],
        }
    several = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/PolicyStep"}}
    schema["properties"]["withdrawal"]["anyOf"].append(several)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
