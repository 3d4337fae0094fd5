"""A policy as the engine asks it: what it raises, or returns amiss, is one error with its name.

Kind, shape, dtype and device of an answer are looked at, never its values: no step waits for that.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

from mvw_cli.errors import MvwError
from mvw_cli.plugins import faulty
from mvw_cli.policy import (
    Attend,
    AttendView,
    Decide,
    LayerView,
    Restore,
    Select,
    Signals,
    StepView,
    Withdraw,
    WithdrawalPolicy,
)
from mvw_cli.text import error_line

AnswerT = TypeVar("AnswerT")
Check = Callable[..., None]
"""Takes an answer and what was asked; raises `_Wrong`."""


class CheckedPolicy:
    """A policy whose answers are checked; the methods are those of `WithdrawalPolicy`.

    Raises, in each of them and in the functions that they return:
        PluginProblem: the policy has raised, or its answer is none. A lack of memory passes as it
            is, and so does an MvwError, by which a policy tells the user something.
    """

    def __init__(self, policy: WithdrawalPolicy) -> None:
        self._policy = policy

    def begin(self) -> Decide:
        return self._function("begin", self._policy.begin, _decisions)

    def after(self, decide: Decide) -> Decide:
        if type(self._policy).after is WithdrawalPolicy.after:
            return WithdrawalPolicy.after(self, decide)  # type: ignore[arg-type]  # of `begin`
        return self._function("after", self._policy.after, _decisions, decide)

    def begin_prefill(self) -> Select | None:
        return self._function("begin_prefill", self._policy.begin_prefill, _selection)

    def begin_attending(self) -> Attend | None:
        return self._function("begin_attending", self._policy.begin_attending, _attention)

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return self._ask("signals", self._policy.signals, _signals, layers)

    def prefill_weights(self, num_layers: int) -> tuple[int, ...]:
        return self._ask("prefill_weights", self._policy.prefill_weights, _numbers, num_layers)

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        return self._ask("attending_layer", self._policy.attending_layer, _holding, layers)

    def withdrawal_step(self) -> int | None:
        return self._ask("withdrawal_step", self._policy.withdrawal_step, _count)

    def describe(self) -> str:
        return self._ask("describe", self._policy.describe, _text)

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        return self._ask("conflict", self._policy.conflict, _clause, before)

    def _function(
        self, hook: str, make: Callable[..., AnswerT], check: Check, *arguments: Any
    ) -> AnswerT:
        """Ask for a function, each of whose own answers is checked."""
        needed = _callable if check is _decisions else _optional
        found: Any = self._ask(hook, make, needed, *arguments)
        checked: Any = found and partial(self._ask, hook, found, check)
        return checked  # type: ignore[no-any-return]

    def _ask(
        self, hook: str, function: Callable[..., AnswerT], check: Check, *arguments: Any
    ) -> AnswerT:
        try:
            answer = function(*arguments)
            check(answer, *arguments)
        except _Wrong as wrong:
            said = f"returned {wrong.answer} {_moment(hook, arguments)}"
            cause = f"expected is {wrong.expected}; see {_place(function)}"
            raise faulty("policy", self._policy.name, said, cause, _hint(hook)) from None
        except Exception as error:
            if _is_not_its_fault(error):
                raise
            said = f"raised {type(error).__name__} {_moment(hook, arguments)}"
            cause = f"{error_line(error)}; see {_place(function, error)}"
            raise faulty("policy", self._policy.name, said, cause, _hint(hook)) from error
        return answer


def _hint(hook: str) -> str | None:
    # These are asked for by `mvw doctor` and `mvw show`, too, which ask no question.
    alone = hook in ("describe", "withdrawal_step", "conflict")
    return None if alone else "mvw infer IMAGE QUESTION --debug"


def _is_not_its_fault(error: Exception) -> bool:
    from mvw_cli.engine.memory import lost_device, ran_out  # imports torch

    return isinstance(error, MvwError) or ran_out(error) or lost_device(error)


def _moment(hook: str, arguments: tuple[Any, ...]) -> str:
    match arguments:
        case (LayerView() as view,):
            return f"before layer {view.layer} of the prefill"
        case (StepView() as view,):
            return f"after token {view.step}"
        case (AttendView(),):
            return "in a decode step"
    return f"from {hook}()"


def _place(function: Any, error: Exception | None = None) -> str:
    """Tell where a function stands, or the line of its file that has raised."""
    code = getattr(function, "__code__", None)
    if code is None:
        return f"class {type(function).__name__}"
    frames = traceback.extract_tb(None if error is None else error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == code.co_filename]
    file = os.path.join(*code.co_filename.split(os.sep)[-2:])
    return f"{file}, line {[code.co_firstlineno, *lines][-1]}"


# -- what an answer may be ----------------------------------------------------------------------


class _Wrong(Exception):
    """What was returned, and what is expected."""

    def __init__(self, answer: str, expected: str) -> None:
        self.answer, self.expected = answer, expected


def _shown(answer: Any) -> str:
    """Write what was returned in a few words: of a tensor its form, of a list its length."""
    kind = type(answer).__name__
    if hasattr(answer, "dtype") and hasattr(answer, "shape"):
        device = str(getattr(answer, "device", "cpu"))
        form = f"{str(answer.dtype).removeprefix('torch.')}, shape {tuple(answer.shape)}"
        return f"a {kind.lower()} of {form}" + ("" if device == "cpu" else f" on {device}")
    if isinstance(answer, list | tuple | dict):
        return f"a {kind} of {len(answer)}"
    if answer is None or isinstance(answer, str | int | float):
        return repr(answer)[:60]
    return f"the class {answer.__name__}" if isinstance(answer, type) else f"a {kind}"


def _that(holds: Callable[[Any], bool], expected: str) -> Check:
    """Make a check of an answer by itself."""

    def check(answer: Any, *asked: Any) -> None:
        if not holds(answer):
            raise _Wrong(_shown(answer), expected)

    return check


def _are_integers(answer: Any) -> bool:
    return isinstance(answer, Collection) and all(isinstance(one, Integral) for one in answer)


_callable = _that(callable, "a function that takes a StepView")
_optional = _that(lambda answer: answer is None or callable(answer), "a function, or None")
_text = _that(lambda answer: isinstance(answer, str), "a text on one line")
_clause = _that(lambda answer: isinstance(answer, str | None), "a clause, or None")
_count = _that(lambda answer: isinstance(answer, Integral | None), "a number of tokens, or None")
_numbers = _that(_are_integers, "a tuple of numbers of layers")


def _holding(answer: Any, layers: tuple[int, ...]) -> None:
    if answer is not None and answer not in layers:
        raise _Wrong(_shown(answer), "None or one of `layers`, which hold vision")


def _signals(answer: Any, layers: tuple[int, ...]) -> None:
    if not isinstance(answer, Signals):
        raise _Wrong(_shown(answer), "Signals(…)")
    for name in ("mass", "weights"):
        if not _are_integers(layers := getattr(answer, name)):
            raise _Wrong(f"Signals({name}={_shown(layers)})", "a tuple of numbers of layers")


def _mask(mask: Any, tokens: int, more: str = "", device: Any = None) -> None:
    import torch

    right = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.shape == (tokens,)
    if not right or (mask.is_meta if device is None else mask.device != device):
        where = "" if device is None else f" on {device}"
        raise _Wrong(_shown(mask), f"a bool tensor of shape ({tokens},){where}{more}")


def _selection(chosen: Any, view: LayerView) -> None:
    if chosen is not None:
        _mask(chosen, len(view.present), ", or None")


def _attention(chosen: Any, view: AttendView) -> None:
    _mask(chosen, len(view.present), device=view.vision.device)


def _decisions(said: Any, view: StepView) -> None:
    if said is None:
        return
    for one in said if isinstance(said, list | tuple) else (said,):
        if not isinstance(one, Withdraw | Restore):
            within = "" if one is said else f" with {_shown(one)} in it"
            raise _Wrong(_shown(said) + within, "Withdraw(…), Restore(), a list of them, or None")
        if isinstance(one, Restore) or one.keep is None:
            continue
        if not isinstance(one.keep, Mapping) or not _are_integers(one.keep):
            told = f"Withdraw(keep={_shown(one.keep)})"
            raise _Wrong(told, "a mask for each layer, by its number: Withdraw(keep={8: mask})")
        for layer, mask in one.keep.items():
            try:
                _mask(mask, view.vision_tokens)
            except _Wrong as wrong:
                told = f"Withdraw(keep={{{layer}: {wrong.answer}}})"
                raise _Wrong(told, wrong.expected) from None
