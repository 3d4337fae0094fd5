"""Images that torchvision alone prepares: without it, with a build that fails, and with it.

`make test-extras` installs it beside the other packages, which stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hints import parse_hint
from hub_folder import BY_PROFILE, write_hub_folder
from mvw_hf.fallback import fallback_processor
from narrowed import published
from plain_install import run_plain
from processes import Ran

from mvw_cli import ModelProblem

pytestmark = pytest.mark.skipif(
    "molmo2-8b" not in BY_PROFILE, reason="no such model in this transformers"
)
QUESTION = "What is in the picture?"


@pytest.fixture
def scene(mvw: Callable[..., Ran], tmp_path: Path) -> str:
    assert mvw("samples", str(tmp_path / "scenes"), "--count", "1", "--seed", "841").code == 0
    write_hub_folder(BY_PROFILE["molmo2-8b"], tmp_path / "molmo")
    (tmp_path / "mine.yaml").write_text(
        "extends: molmo2-8b\nmodel: ./molmo\ndtype: float32\n"
        "withdrawal: {m: 3}\ngeneration: {max_new_tokens: 8}\n"
    )
    return str(tmp_path / "scenes" / "scene-0001.png")


def test_without_it_the_package_is_named(scene: str, tmp_path: Path) -> None:
    of = ("--profile", "mine.yaml")
    *refused, doctor, cost = run_plain(
        tmp_path,
        ("infer", scene, QUESTION, *of),
        ("batch", str(Path(scene).parent), QUESTION, *of, "-o", "r.jsonl"),
        ("profile", scene, QUESTION, *of),
        ("doctor", *of, "--json"),
        ("show", "mine.yaml", "--cost", "--json"),
    )
    for done in refused:
        what, cause, hint = done.err.splitlines()[-3:]
        assert done.code == 7 and what.endswith("./molmo needs torchvision, not installed here.")
        assert cause.strip() == "Nothing else in transformers prepares the images of its family."
        assert hint == "Hint: pip install torchvision"
        parse_hint(hint.removeprefix("Hint: "))
    assert doctor.code == 20
    [lack] = [one for one in json.loads(doctor.out)["findings"] if one["check"] == "packages"]
    assert (lack["status"], lack["advice"]) == ("problem", "pip install torchvision")
    assert cost.code == 0 and json.loads(cost.out)["vision_tokens"] > 0


def test_random_weights_need_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checkpoint's own processor can't be had, and the fallback would prepare images."""
    monkeypatch.setattr("mvw_hf.image_processing.is_torchvision_available", lambda: False)
    with pytest.raises(ModelProblem, match="Molmo 2 needs torchvision"):
        fallback_processor(published("allenai/Molmo2-8B"))


def test_a_build_that_does_not_go_with_pytorch_is_named(scene: str, tmp_path: Path) -> None:
    """transformers imports it wherever it is installed, for every model."""
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    line = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (package / "__init__.py").write_text(line)
    told = tmp_path / "site" / "torchvision-0.28.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    done = subprocess.run(
        [sys.executable, "-m", "mvw_cli", "infer", scene, QUESTION, "--profile", "mine.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "torchvision::nms" in done.stderr and len(done.stderr.splitlines()) == 3


def test_with_it_images_are_read(
    scene: str, tmp_path: Path, mvw: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    of = ("--profile", "mine.yaml")
    ran = mvw("infer", scene, QUESTION, *of, "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["withdrawal"]["vision_tokens"] == answer["vision_tokens"] > 0
    # The folder's crops are at most two, where the published ones are eight.
    assert answer["vision_tokens"] == 5 * 5 + 5 * 5
    assert not answer["remarks"]
    two = mvw("infer", scene, QUESTION, "--image", scene, *of, "--json")
    assert json.loads(two.out)["vision_tokens"] == 2 * answer["vision_tokens"]
    ran = mvw("batch", str(Path(scene).parent), QUESTION, *of, "-o", "r.jsonl")
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert record["text"] == answer["text"]
    assert mvw("doctor", *of).code == 0
