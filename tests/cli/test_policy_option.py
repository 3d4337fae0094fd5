"""`--policy` of every command: repeated, composed, swept, completed and repeated in hints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import fake_policies
import pytest
from processes import Ran

from mvw_cli.cli import cli

Run = Callable[..., Ran]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "white").save(path)
    return str(path)


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_policies.install(tmp_path / "site", monkeypatch)


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.mark.usefixtures("others")
def test_infer_composes_in_order_and_m_goes_to_the_policy_that_has_it(
    mvw: Run, picture: str
) -> None:
    asked = ("infer", picture, "What is there?", "--max-new-tokens", "6", "--json")
    ran = mvw(*asked, "--policy", "layered:layer=2", "--policy", "mvw", "--m", "3")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    first, second = document["profile"]["values"]["withdrawal"]["policy"]
    assert (first["policy"], first["layer"]) == ("layered", 2)
    assert (second["policy"], second["m"]) == ("mvw", 3)
    assert document["profile"]["origins"]["withdrawal.policy"]["where"] == "--policy"
    assert document["withdrawal"]["step"] == 3


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--policy mvw:m=3 --m 4", "--policy and --m: `m` is given twice"),
        ("--policy layered:layer=1 --m 4", "--m: policy `layered` has no field `m`"),
        ("--no-withdrawal --policy mvw:m=2", "--no-withdrawal and --policy contradict each other"),
        ("--policy=", "--policy: `` is no policy with its fields"),
    ],
)
def test_infer_refuses(
    mvw: Run, picture: str, options: str, message: str, check_hint: Callable[[str], None]
) -> None:
    ran = mvw("infer", picture, "What is there?", *options.split())
    lines = ran.err.splitlines()
    assert (ran.code, ran.out, len(lines)) == (2, "", 3)
    assert lines[0].startswith(f"Error: {message}")
    check_hint(lines[2].removeprefix("Hint: "))


@pytest.mark.parametrize(
    ("options", "swept"),
    [
        (["--policy", "vtw:layer=2+mvw:m=4,until=x,mvw:m=4"],
         [("vtw:layer=2+mvw:m=4,until=x", "mvw:m=4")]),
        (["--policy", "a,b", "--policy", "c"], [("a", "b"), ("c",)]),
        ([], []),
    ],
)  # fmt: skip
def test_profile_sweeps(options: list[str], swept: list[tuple[str, ...]]) -> None:
    context = command("profile").make_context("profile", ["--plan", *options])
    assert list(context.params["policies"]) == swept


def test_an_empty_sweep_is_refused(mvw: Run) -> None:
    ran = mvw("profile", "--plan", "--policy", " ,")
    assert ran.code == 2
    assert "it is empty" in ran.err


def test_completion_goes_on_after_a_plus() -> None:
    infer = command("infer")
    option = next(one for one in infer.params if one.name == "withdrawal_policy")
    found = option.shell_complete(click.Context(infer), "vtw:layer=2+mv")
    assert [item.value for item in found] == ["vtw:layer=2+mvw"]
