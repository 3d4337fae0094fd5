"""OpenAI's chat completions as this server has them: what a request may say, and what it gets.

Whatever changes an answer and can't be had here is refused with a sentence, never left out without
a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mvw_cli.adapter import Answer
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.vllm.plugin.settings import request_policy

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": ("medium",),
    "reasoning_effort": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
    "moderation": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Parameters of OpenAI's that this server has not, with what changes nothing beside null."""


class Refused(Exception):
    """A request that is not served: a status, and a sentence for whoever sent it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """Write it in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


_STATUS = {"BadImage": 400, "UsageProblem": 400, "OutOfMemory": 503, "": 503}


def named(kind: str, message: str, cause: str | None) -> Refused:
    """Refuse for an error of which the class, the message and the cause are known."""
    return Refused(_STATUS.get(kind, 500), f"{message}: {cause}" if cause else message)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Text(_Model):
    type: Literal["text"]
    text: str


class _Url(_Model):
    url: str
    detail: str | None = None
    """How closely to look: here the model's processor decides."""


class _Image(_Model):
    type: Literal["image_url"]
    image_url: _Url


class Message(_Model):
    """One turn of a conversation."""

    role: str
    content: str | list[Annotated[_Text | _Image, Field(discriminator="type")]] | None = None
    name: str | None = None

    def texts(self) -> list[str]:
        """List what it says, part by part."""
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or () if isinstance(part, _Text)]


class _StreamOptions(_Model):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(_Model):
    """The body of `/v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    mvw: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None
    # Of no consequence for an answer: who asks, and what would make it faster.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_neutral(cls, sent: Any) -> Any:
        for name in _NEUTRAL.keys() & sent.keys() if isinstance(sent, dict) else ():
            value, neutral = sent.pop(name), _NEUTRAL[name]
            if value is not None and value not in neutral:
                only = " or ".join(json.dumps(one) for one in (None, *neutral))
                raise Refused(400, f"{name}: this server takes only {only}", param=name)
        return sent

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are no part of it."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def policy(self, default: WithdrawalPolicy) -> WithdrawalPolicy:
        """Return when the vision goes: as the request says, else as the server does.

        Raises:
            Refused: it says something that there is not.
        """
        if self.mvw and self.vllm_xargs:
            what = "mvw and vllm_xargs both say when the vision goes: give one of them"
            raise Refused(400, what, param="vllm_xargs")
        asked = {**({"mvw": self.mvw} if self.mvw else {}), **(self.vllm_xargs or {})}
        other = [key for key in asked if not key.startswith("mvw")]
        if other:
            raise Refused(400, f"vllm_xargs: there is no {other[0]} here", param="vllm_xargs")
        if not asked:
            return default
        try:
            return request_policy(asked, None) or NoWithdrawal()
        except ValueError as error:
            raise Refused(400, str(error), param="mvw") from None

    def settings(self, base: GenerationSettings, seed: int) -> GenerationSettings:
        """Return how tokens are chosen: as the request says, else as the profile does.

        Args:
            seed: for a request without one.
        """
        most = self.max_completion_tokens or self.max_tokens
        named = ("temperature", "top_p", "top_k", "repetition_penalty")
        given = {name: one for name in named if (one := getattr(self, name)) is not None}
        return replace(
            base,
            **given,
            max_new_tokens=most or base.max_new_tokens,
            seed=seed if self.seed is None else self.seed,
            stop=base.stop + self.stops,
            ignore_eos=self.ignore_eos,
        )

    def asked(self) -> Asked:
        """Take the messages apart.

        Raises:
            Refused: a model's prompt can't hold them.
        """
        *before, last = self.messages
        system = [one for one in before if one.role in ("system", "developer")]
        if last.role != "user" or len(system) < len(before) or len(system) > 1:
            roles = ", ".join(one.role for one in self.messages)
            raise Refused(
                400,
                "a prompt here holds one message of the user, and before it one of the system at "
                f"most; these are of: {roles[:200]}",
                param="messages",
            )
        parts = last.content if isinstance(last.content, list) else []
        images = [part.image_url.url for part in parts if isinstance(part, _Image)]
        first_text = next((i for i, one in enumerate(parts) if isinstance(one, _Text)), len(parts))
        moved = any(isinstance(one, _Image) for one in parts[first_text:])
        question = "\n".join(last.texts())
        if not question.strip():
            raise Refused(400, "the question is empty", param="messages")
        return Asked(
            question,
            "\n".join(system[0].texts()) if system else None,
            images,
            ["In the prompt the images come first, and all of the text after them."] * moved,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a conversation asks."""

    question: str
    system: str | None
    images: Sequence[str]
    """Their URLs."""
    remarks: list[str]


def read_request(body: bytes) -> ChatRequest:
    """Read the body of a request.

    Raises:
        Refused: with what is wrong, and where.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        # Of what is wrong with one value that may be of several kinds, the innermost says most.
        first = max(
            error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"])
        )
        param = ".".join(map(str, first["loc"]))
        said = first["msg"]
        if first["type"] == "extra_forbidden":
            said = "this server has no such parameter"
        raise Refused(400, f"{param}: {said}" if param else said, param=param or None) from None


# -- what a request gets -------------------------------------------------------------------------

_HALF_TAG = re.compile(r"[<(◁][^>)▷]{0,40}\Z")
"""What may be the beginning of a tag of any model."""


class Parts:
    """A text as it grows, as what is new of its reasoning and of its answer.

    What has been sent can't be taken back. Where the text turns out to be something else, as with
    a stage that a model writes twice, its final form follows on a line of its own.

    Args:
        parse: takes a text apart.
        stops: texts at the first of which it ends.
    """

    def __init__(self, parse: Callable[[str], Answer], stops: Sequence[str]) -> None:
        self._parse, self._stops = parse, stops
        self._text = ""
        self._sent = {"reasoning_content": "", "content": ""}

    def add(self, piece: str, *, final: bool = False) -> dict[str, str]:
        """Take more text in; return what can be sent."""
        self._text += piece
        text = self._text
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            text = text[: min(ends)]
        elif not final:
            text = _HALF_TAG.sub("", text[: len(text) - self._half_stop(text)])
        answer, delta = self._parse(text), {}
        for key, whole in (("reasoning_content", answer.reasoning), ("content", answer.answer)):
            sent = self._sent[key]
            if whole.startswith(sent):
                new = whole[len(sent) :]
            elif final:
                new = f"\n{whole}"
            else:
                continue
            if new:
                delta[key], self._sent[key] = new, sent + new
        return delta

    def _half_stop(self, text: str) -> int:
        """Count the last characters that may be the beginning of a stop."""
        most = max(map(len, self._stops), default=0)
        lengths = range(min(most - 1, len(text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._stops)), 0)
