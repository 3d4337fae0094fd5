"""What `python -m mvw_cli.integrations.vlmeval` does before and after the harness itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvw_cli.evaluate.rules import first_letter
from mvw_cli.integrations.vlmeval import main, named_models, with_stated_letter


@pytest.mark.parametrize(
    ("name", "withdrawal"),
    [
        ("shapes", {"policy": "mvw", "until": "</CAPTION>"}),
        ("shapes-mvw16", {"policy": "mvw", "m": 16, "until": None}),
        ("shapes-never", {"policy": "none"}),
        ("qwen2.5-vl-7b-mvw4", {"policy": "mvw", "m": 4}),
    ],
)
def test_a_models_name_says_profile_and_withdrawal(
    name: str, withdrawal: dict[str, object]
) -> None:
    [(found, resolved)] = named_models([name], [], {}).items()
    assert found == name
    values = resolved.profile.withdrawal.model_dump()
    assert values | withdrawal == values


def test_a_profile_of_a_file_goes_by_its_name_and_keys_are_set_for_all(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: shapes\ngeneration: {max_new_tokens: 7}\n")
    found = named_models(["mine-never", "shapes"], [str(file)], {"generation.temperature": 0.5})
    assert found["mine-never"].profile.generation.max_new_tokens == 7
    assert found["mine-never"].profile.withdrawal.policy == "none"
    assert [one.profile.generation.temperature for one in found.values()] == [0.5, 0.5]


@pytest.mark.parametrize("name", ["GPT4V", "shapes-mvw0", "shapes-mvw", "shapes-16", "-never"])
def test_other_names_are_left_to_the_harness(name: str) -> None:
    assert named_models([name], [], {}) == {}


@pytest.mark.parametrize("answer", ["Based on the picture, the answer is C.", "A sum. Answer: C"])
def test_the_letter_that_is_stated_is_the_one_that_the_harness_reads(answer: str) -> None:
    for dataset in ("WeMath", "WeMath_COT"):
        assert first_letter(with_stated_letter(answer, dataset)) == "C"
        assert with_stated_letter(answer, dataset).startswith(answer)
    assert with_stated_letter(answer, "MMStar") == with_stated_letter(answer, None) == answer


@pytest.mark.parametrize("answer", ["C", "Given what is there, I cannot tell", ""])
def test_what_needs_no_letter_or_states_none_stays_as_it_is(answer: str) -> None:
    assert with_stated_letter(answer, "WeMath") == answer


def test_what_is_wrong_is_said_in_three_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--data", "WeMath", "--model", "shapes"]
    assert main([*asked, "--mvw-set", "device=gpu"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    assert main(asked) == 2
    assert capsys.readouterr().err.splitlines()[2].endswith("pip install ms-vlmeval")


STANDS_IN = {
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {'GPT4V': None}\n",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": "class BaseModel:\n    pass\n",
}
SCRIPT = (
    "import sys\nfrom vlmeval.config import supported_VLM\nprint([*supported_VLM], sys.argv[1:])"
)


@pytest.mark.parametrize("script", ["vlmeval/__main__.py", "run.py"])
def test_the_harness_gets_the_models_and_the_rest_of_the_line(script: str, tmp_path: Path) -> None:
    """As it is packed, and as a checkout of it is."""
    for name, text in {**STANDS_IN, script: SCRIPT}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    words = ["--data", "POPE", "--model", "shapes-mvw8", "GPT4V", "--work-dir", "out"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mvw_cli.integrations.vlmeval", *words]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(line, env=env, capture_output=True, text=True)

    done = run("--mvw-set", "generation.max_new_tokens=9", *words)
    assert done.stdout == f"{['GPT4V', 'shapes-mvw8']} {words}\n", done.stderr
    done = run("--model", "shapse-mvw8")
    assert done.returncode == 2
    assert "There is no model shapse-mvw8" in done.stderr
