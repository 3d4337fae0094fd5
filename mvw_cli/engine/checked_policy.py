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

from mvw_cli.errors import MvwError, PluginProblem
from mvw_cli.plugins import load_plugins
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


class CheckedPolicy:
    """A policy whose answers are checked; the methods are those of `WithdrawalPolicy`.

    Raises, in each of them and in the functions that they return:
        PluginProblem: the policy has raised, or its answer is none. A lack of memory passes as it
            is, and so does an MvwError, by which a policy tells the user something.
    """

    def __init__(self, policy: WithdrawalPolicy) -> None:
        self._policy = policy

    def begin(self) -> Decide:
        decide: Decide = self._function("begin", self._policy.begin, _decisions)
        return decide

    def after(self, before: Decide) -> Decide:
        decide: Decide = self._function("after", self._policy.after, _decisions, before)
        return decide

    def begin_prefill(self) -> Select | None:
        select: Select | None = self._function(
            "begin_prefill", self._policy.begin_prefill, _selection
        )
        return select

    def begin_attending(self) -> Attend | None:
        attend: Attend | None = self._function(
            "begin_attending", self._policy.begin_attending, _attention
        )
        return attend

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
        self, hook: str, make: Callable[..., Any], check: Callable[..., None], *arguments: Any
    ) -> Any:
        function = self._ask(hook, make, _needed if check is _decisions else _optional, *arguments)
        return None if function is None else partial(self._ask, hook, function, check)

    def _ask(
        self,
        hook: str,
        function: Callable[..., AnswerT],
        check: Callable[..., None],
        *arguments: Any,
    ) -> AnswerT:
        try:
            answer = function(*arguments)
            check(answer, *arguments)
        except _Wrong as wrong:
            said = f"returned {wrong.answer} {_moment(hook, arguments)}"
            cause = f"expected is {wrong.expected}; see {_place(function)}"
            raise policy_problem(self._policy.name, said, cause, _hint(hook)) from None
        except Exception as error:
            if _is_not_its_fault(error):
                raise
            said = f"raised {type(error).__name__} {_moment(hook, arguments)}"
            cause = f"{error_line(error)}; see {_place(function, error)}"
            raise policy_problem(self._policy.name, said, cause, _hint(hook)) from error
        return answer


def policy_problem(name: str, said: str, cause: str, hint: str = "mvw plugins") -> PluginProblem:
    """Make the error of a policy that is at fault, with the distribution that it comes from."""
    plugin = next((one.plugin for one in load_plugins().policies if one.info.name == name), None)
    whose = "" if plugin is None else f" ({plugin.distribution} {plugin.version})"
    return PluginProblem(f"policy `{name}`{whose} {said}", cause=cause, hint=hint)


def _hint(hook: str) -> str:
    # `mvw doctor` and `mvw show`, which ask no question, ask for these, too.
    alone = hook in ("describe", "withdrawal_step", "conflict")
    return "mvw plugins" if alone else "mvw infer IMAGE QUESTION --debug"


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
    line = code.co_firstlineno
    for frame in traceback.extract_tb(error and error.__traceback__):
        if frame.filename == code.co_filename:
            line = frame.lineno
    folder, file = os.path.split(code.co_filename)
    return f"{os.path.join(os.path.basename(folder), file)}, line {line}"


# -- what an answer may be ----------------------------------------------------------------------


class _Wrong(Exception):
    """What was returned, and what is expected."""

    def __init__(self, answer: str, expected: str) -> None:
        self.answer, self.expected = answer, expected


def _shown(answer: Any) -> str:
    """Write what was returned in a few words: of a tensor its form, of a list its length."""
    kind = type(answer).__name__
    if hasattr(answer, "dtype") and hasattr(answer, "shape"):
        kind = "tensor" if kind == "Tensor" else kind
        device = str(getattr(answer, "device", "cpu"))
        form = f"{str(answer.dtype).removeprefix('torch.')}, shape {tuple(answer.shape)}"
        return f"a {kind} of {form}" + ("" if device == "cpu" else f" on {device}")
    if isinstance(answer, list | tuple | dict | set):
        return f"a {kind} of {len(answer)}"
    if answer is None or isinstance(answer, str | int | float):
        return repr(answer)[:60]
    return f"the class {answer.__name__}" if isinstance(answer, type) else f"a {kind}"


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
        by_layer = isinstance(one.keep, Mapping)
        if not by_layer or not all(isinstance(layer, Integral) for layer in one.keep):
            told = f"Withdraw(keep={_shown(one.keep)})"
            raise _Wrong(told, "a mask for each layer, by its number: Withdraw(keep={8: mask})")
        for layer, mask in one.keep.items():
            try:
                _mask(mask, view.vision_tokens)
            except _Wrong as wrong:
                told = f"Withdraw(keep={{{layer}: {wrong.answer}}})"
                raise _Wrong(told, wrong.expected) from None


def _needed(found: Any, *_: Any) -> None:
    if not callable(found):
        raise _Wrong(_shown(found), "a function that takes a StepView")


def _optional(found: Any) -> None:
    if found is not None and not callable(found):
        raise _Wrong(_shown(found), "a function, or None")


def _signals(found: Any, layers: tuple[int, ...]) -> None:
    if not isinstance(found, Signals):
        raise _Wrong(_shown(found), "Signals(…)")
    for name in ("mass", "weights"):
        try:
            _numbers(getattr(found, name))
        except _Wrong as wrong:
            raise _Wrong(f"Signals({name}={wrong.answer})", wrong.expected) from None


def _numbers(found: Any, *_: Any) -> None:
    if not isinstance(found, Collection) or not all(isinstance(one, Integral) for one in found):
        raise _Wrong(_shown(found), "a tuple of numbers of layers")


def _holding(found: Any, layers: tuple[int, ...]) -> None:
    if found is not None and found not in layers:
        known = f"{layers[0]} to {layers[-1]}" if len(layers) > 3 else ", ".join(map(str, layers))
        raise _Wrong(_shown(found), f"a layer that holds vision ({known or 'none does'}), or None")


def _count(found: Any) -> None:
    if found is not None and not (isinstance(found, Integral) and int(found) >= 0):
        raise _Wrong(_shown(found), "a number of tokens, or None")


def _text(found: Any) -> None:
    if not isinstance(found, str):
        raise _Wrong(_shown(found), "a text on one line")


def _clause(found: Any, *_: Any) -> None:
    if found is not None:
        _text(found)
