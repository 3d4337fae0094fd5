"""The plugin of the documentation: built, installed by pip and used, as a reader would."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from docs_pages import EXAMPLE, example_path
from processes import Ran, make_venv, pip_install, run_process

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = make_venv(tmp_path_factory.mktemp("example") / "venv")
    pip_install(python, EXAMPLE)
    return python


@pytest.fixture
def example(python: Path, tmp_path: Path) -> Run:
    """Run `mvw` where the example is installed, alone beside mvw's own plugins."""

    def run(*arguments: str) -> Ran:
        return run_process(python, *arguments, cwd=tmp_path, MVW_LOAD_PLUGINS="example")

    return run


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as if it were installed for this very process, without pip."""
    monkeypatch.setattr("sys.path", [*example_path(tmp_path / "site"), *sys.path])


def test_it_brings_one_of_each(example: Run) -> None:
    ran = example("plugins", "--json")
    assert (ran.code, ran.err) == (0, "")
    plugin = next(
        one for one in json.loads(ran.out)["plugins"] if one["distribution"] == "mvw-example"
    )
    assert (plugin["name"], plugin["status"]) == ("example", "ok")
    assert (plugin["adapters"], plugin["policies"]) == (["boxed"], ["sentences"])
    assert [Path(folder).parts[-2:] for folder in plugin["profiles"]] == [
        ("mvw_example", "profiles")
    ]
    assert plugin["commands"] == ["unbox"]


def test_its_profile_uses_its_adapter_and_policy(example: Run) -> None:
    ran = example("show", "boxed", "--set", "withdrawal.count=3", "--json")
    assert (ran.code, ran.err) == (0, "")
    shown = json.loads(ran.out)
    assert shown["values"]["adapter"] == "boxed"
    assert shown["values"]["withdrawal"] == {"policy": "sentences", "count": 3}
    assert shown["origins"]["withdrawal.policy"]["kind"] == "packaged"


def test_a_wrong_count_is_the_users_error(example: Run) -> None:
    ran = example("show", "boxed", "--set", "withdrawal.count=0")
    assert (ran.code, ran.out) == (2, "")
    assert "count must be 1 or more" in ran.err


def test_its_command_runs(example: Run, tmp_path: Path) -> None:
    (tmp_path / "saved.txt").write_text("So it is \\boxed{42}.\n")
    ran = example("unbox", "saved.txt")
    assert (ran.code, ran.out, ran.err) == (0, "42\n", "")


@pytest.mark.usefixtures("importable")
def test_it_answers_a_question(mvw: Run, tmp_path: Path) -> None:
    from mvw_hf.model import HuggingFace
    from PIL import Image

    model, picture = tmp_path / "model", tmp_path / "picture.png"
    loaded = HuggingFace().tiny()
    loaded.model.save_pretrained(model)
    loaded.processor.save_pretrained(model)
    Image.new("RGB", (40, 30), "red").save(picture)
    prompts = {}
    for adapter in ("hf", "boxed"):
        ran = mvw(
            *("infer", str(picture), "w1 w2", "--model", str(model), "--adapter", adapter),
            *("--max-new-tokens", "6", "--m", "2", "--device", "cpu", "--json", "-q"),
        )
        assert ran.code == 0, ran.err
        document = json.loads(ran.out)
        assert document["model"]["adapter"] == adapter
        assert document["withdrawal"]["step"] == 2
        prompts[adapter] = document["prompt_tokens"]
    # "Put the final answer in \\boxed{}." to a tokenizer that splits at spaces.
    assert prompts["boxed"] == prompts["hf"] + 6


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("It is \\boxed{7}.", "7", "It is"),
        ("\\boxed{1} no, \\boxed{\\frac{7}{2}}", "\\frac{7}{2}", "\\boxed{1} no,"),
        ("Seven.\n", "Seven.", ""),
        ("It is \\boxed{\\frac{7}{", "", "It is \\boxed{\\frac{7}{"),
        ("", "", ""),
    ],
)
def test_boxes_are_read(text: str, answer: str, reasoning: str) -> None:
    from mvw_example.boxed import read_boxed

    read = read_boxed(text)
    assert (read.answer, read.reasoning) == (answer, reasoning)


@pytest.mark.usefixtures("importable")
def test_the_policy_holds_the_contract() -> None:
    from mvw_example.policy import Sentences

    from mvw_cli.testing import PolicyContract

    policies = (Sentences(), Sentences(count=2))
    contract = type("Contract", (PolicyContract,), {"policies": policies})()
    checks = [name for name in dir(contract) if name.startswith("test_")]
    assert len(checks) > 15
    for name in checks:
        getattr(contract, name)()
