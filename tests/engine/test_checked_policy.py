"""A policy that is at fault is named, with what it did: in the engine, alone and in a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty import ATTEND, PREFILL, STEP, Faulty
from plugin_path import plugin_path
from policy_subjects import Subject, asked, subject

from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.engine.engine import Engine
from mvw_cli.errors import ExitCode, PluginProblem, UsageProblem
from mvw_cli.oracle.equivalence import writing_text_only
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.stack import Stack, stacked
from mvw_cli.policy import WithdrawalPolicy

WHO = "policy `faulty` (mvw-faulty 1.0) "


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plugin_path(tmp_path, "faulty")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield


@pytest.fixture
def llava() -> Subject:
    torch.set_num_threads(1)
    return subject("llava")


def at_fault(chosen: Subject, *policies: WithdrawalPolicy) -> PluginProblem:
    with writing_text_only(chosen.loaded.model), pytest.raises(PluginProblem) as caught:
        list(Engine(chosen.loaded).run([asked(chosen, stacked(policies), 0)]))
    assert caught.value.exit_code == ExitCode.PLUGIN
    return caught.value


MASK = "expected is a bool tensor of shape (16,)"
SAID = {
    ("prefill", "list"): ("returned a list of 16 before layer 2 of the prefill", MASK),
    ("prefill", "number"): ("returned 7 before layer 2 of the prefill", MASK),
    ("prefill", "nan"): (
        "returned a tensor of float32, shape (16,) before layer 2 of the prefill",
        f"{MASK}, or None",
    ),
    ("prefill", "short"): (
        "returned a tensor of bool, shape (15,) before layer 2 of the prefill",
        MASK,
    ),
    ("prefill", "meta"): (
        "returned a tensor of bool, shape (16,) on meta before layer 2 of the prefill",
        MASK,
    ),
    ("prefill", "raises"): (
        "raised ZeroDivisionError before layer 2 of the prefill",
        "ZeroDivisionError: by nothing",
    ),
    ("step", "true"): ("returned True after token 2", "expected is Withdraw(…), Restore()"),
    ("step", "text"): ("returned 'withdraw' after token 2", "expected is Withdraw(…)"),
    ("step", "class"): ("returned the class Withdraw after token 2", "expected is Withdraw(…)"),
    ("step", "listed"): ("returned a list of 2 with 3 in it after token 2", "Withdraw(…)"),
    ("step", "mask"): (
        "returned Withdraw(keep=a tensor of bool, shape (16,)) after token 2",
        "expected is a mask for each layer, by its number: Withdraw(keep={8: mask})",
    ),
    ("step", "keep-list"): ("returned Withdraw(keep={0: a list of 16}) after token 2", MASK),
    ("step", "keep-float"): (
        "returned Withdraw(keep={0: a tensor of float32, shape (16,)}) after token 2",
        MASK,
    ),
    ("step", "keep-short"): (
        "returned Withdraw(keep={0: a tensor of bool, shape (15,)}) after token 2",
        MASK,
    ),
    ("step", "raises"): ("raised ZeroDivisionError after token 2", "by nothing"),
    ("attend", "none"): ("returned None in a decode step", f"{MASK} on cpu"),
    ("attend", "scores"): (
        "returned a tensor of float32, shape (16,) in a decode step",
        f"{MASK} on cpu",
    ),
    ("attend", "short"): ("returned a tensor of bool, shape (15,) in a decode step", MASK),
    ("attend", "raises"): ("raised ZeroDivisionError in a decode step", "by nothing"),
    ("begin", ""): ("returned None from begin()", "a function that takes a StepView"),
    ("begin_prefill", ""): ("returned 'select' from begin_prefill()", "a function, or None"),
    ("begin_attending", ""): ("returned True from begin_attending()", "a function, or None"),
    ("signals", ""): ("returned None from signals()", "expected is Signals(…)"),
    ("signals mass", ""): (
        "returned Signals(mass=8) from signals()",
        "expected is a tuple of numbers of layers",
    ),
    ("prefill_weights", ""): ("returned 3 from prefill_weights()", "a tuple of numbers of layers"),
    ("attending_layer", ""): (
        "returned 99 from attending_layer()",
        "expected is None or one of `layers`, which hold vision",
    ),
}


def test_each_fault_is_tried() -> None:
    for hook, kinds in (("prefill", PREFILL), ("step", STEP), ("attend", ATTEND)):
        assert {how for one, how in SAID if one == hook} == set(kinds)


@pytest.mark.parametrize(("hook", "how"), SAID)
def test_a_fault_is_told_with_the_policy(llava: Subject, hook: str, how: str) -> None:
    said, expected = SAID[hook, how]
    error = at_fault(llava, Faulty(hook, how))
    assert error.message == WHO + said
    assert error.cause is not None and expected in error.cause
    assert "; see helpers/faulty.py, line " in error.cause


@pytest.mark.parametrize(("hook", "how"), SAID)
def test_the_policy_at_fault_is_named_among_others(llava: Subject, hook: str, how: str) -> None:
    """Before it, after it, and where a modifier hears what it says."""
    faulty = Faulty(hook, how)
    rows: list[list[WithdrawalPolicy]] = [[FastV(layer=1, keep=0.5), faulty, Mvw(m=9)]]
    rows += [[faulty, LookBack(entropy=99.0)]] if hook == "step" else [[Mvw(m=9), faulty]]
    for row in rows:
        assert at_fault(llava, *row).message == WHO + SAID[hook, how][0]


def test_where_it_raised_is_the_line_that_raised(llava: Subject) -> None:
    error = at_fault(llava, Faulty("step", "raises"))
    source = Path(__file__).parents[1] / "helpers" / "faulty.py"
    line = 1 + source.read_text("utf-8").splitlines().index(
        '    raise ZeroDivisionError("by nothing")'
    )
    assert error.cause == f"ZeroDivisionError: by nothing; see helpers/faulty.py, line {line}"
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_lack_of_memory_and_what_a_policy_tells_pass_as_they_are(llava: Subject) -> None:
    for error in (
        torch.OutOfMemoryError("no room"),
        UsageProblem("not with this model", cause="it is too small", hint="mvw list policies"),
    ):

        def fail(view: object, error: Exception = error) -> None:
            raise error

        policy = Faulty()
        object.__setattr__(policy, "begin", lambda fail=fail: fail)
        with pytest.raises(type(error), match=str(error)):
            list(Engine(llava.loaded).run([asked(llava, policy, 0)]))


def test_a_policy_that_is_not_installed_has_its_name_alone() -> None:
    class Nameless(Faulty):
        name = "made-here"

    with pytest.raises(PluginProblem, match=r"^policy `made-here` raised ZeroDivisionError from"):
        CheckedPolicy(Nameless("conflict", "raises")).conflict(())


def test_two_that_watch_at_different_layers_are_refused(llava: Subject) -> None:
    row = Stack((Mass(threshold=0.1, layers=[0]), _Other(threshold=0.1, layers=[1])))
    with pytest.raises(UsageProblem, match="two policies watch the attention") as caught:
        list(Engine(llava.loaded).run([asked(llava, row, 0)]))
    assert caught.value.cause == "(0,) and (1,)"


class _Other(Mass):
    name = "other"
