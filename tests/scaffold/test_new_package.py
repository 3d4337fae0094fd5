"""`mvw new-adapter` and `mvw new-policy`: what they write is installed, tested and used.

What they refuse stays whole.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hints import parse_hint
from processes import Ran, make_venv, pip_install, run_process

from mvw_cli.errors import ExitCode, MvwError
from mvw_cli.plugins import Kind
from mvw_cli.scaffold import check_name, names_of, render, write

Run = Callable[..., Ran]
KINDS: list[Kind] = ["adapter", "policy"]
OWN = {
    "adapter": {"mvw_my_own/model.py", "tests/test_contract.py"},
    "policy": {"mvw_my_own/policy.py", "tests/test_policy.py"},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment, with the packages in it as the commands write them."""
    folder = tmp_path_factory.mktemp("fresh")
    python = make_venv(folder / "venv")
    for command, name in (("new-adapter", "my-model"), ("new-policy", "early")):
        ran = run_process(python, command, name, cwd=folder)
        assert (ran.code, ran.out) == (0, f"mvw-{name}\n")
        pip_install(python, folder / f"mvw-{name}")
    return folder


@pytest.fixture
def mvw_there(fresh: Path) -> Run:
    """Run `mvw` in the fresh environment, with what is new beside mvw's own."""

    def run(*arguments: str) -> Ran:
        python = fresh / "venv" / "bin" / "python"
        return run_process(python, *arguments, cwd=fresh, MVW_LOAD_PLUGINS="my-model,early")

    return run


@pytest.fixture
def picture(tmp_path: Path) -> str:
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.mark.parametrize(("name", "tests"), [("my-model", "contract"), ("early", "policy")])
def test_the_package_passes_its_own_tests(fresh: Path, name: str, tests: str) -> None:
    done = subprocess.run(
        [fresh / "venv" / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=fresh / f"mvw-{name}",
        env={**os.environ, "MVW_LOAD_PLUGINS": name, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"test_{tests}.py" in done.stdout and "no tests ran" not in done.stdout


def test_a_new_policy_is_listed_and_used(mvw_there: Run, tmp_path: Path) -> None:
    listed = json.loads(mvw_there("list", "policies", "--json").out)["policies"]
    [early] = [one for one in listed if one["name"] == "early"]
    assert (early["distribution"], early["status"]) == ("mvw-early", "ok")
    assert mvw_there("samples", str(tmp_path), "--count", "1").code == 0
    asked = ("infer", str(tmp_path / "scene-0001.png"), "How many red circles are there?")
    ran = mvw_there(*asked, "--policy", "early:tokens=5", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["withdrawal"]["step"] == 5
    wrong = mvw_there(*asked, "--policy", "early:tokens=0")
    assert wrong.code == ExitCode.USAGE and "tokens must be 1 or more" in wrong.err


def test_it_answers_at_once_and_says_that_it_is_noise(mvw_there: Run, picture: str) -> None:
    asked = ("infer", picture, "w1 w2", "--adapter", "my-model", "--device", "cpu")
    ran = mvw_there(*asked, "--max-new-tokens", "6", "--m", "2", "--dtype", "bfloat16", "--json")
    assert ran.code == 0, ran.err
    assert "The words are noise: the weights are random." in ran.err
    document = json.loads(ran.out)
    assert document["model"]["adapter"] == "my-model"
    assert document["model"]["name"] == "random"
    assert document["model"]["dtype"] == "bfloat16"
    assert document["withdrawal"]["step"] == 2
    assert document["remarks"] == [
        "The words are noise: the weights are random. --model ORG/NAME loads real ones."
    ]


def test_it_loads_a_checkpoint_and_no_longer_speaks_of_noise(
    mvw_there: Run, picture: str, tmp_path: Path
) -> None:
    from mvw_hf.model import HuggingFace

    checkpoint, loaded = tmp_path / "checkpoint", HuggingFace().tiny()
    loaded.model.save_pretrained(checkpoint)
    loaded.processor.save_pretrained(checkpoint)
    asked = ("infer", picture, "w1 w2", "--adapter", "my-model", "--model", str(checkpoint))
    ran = mvw_there(*asked, "--max-new-tokens", "6", "--m", "2", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["remarks"] == []
    assert json.loads(ran.out)["model"]["name"] == str(checkpoint)
    assert "noise" not in ran.err


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [("adapter", "my-model", "an adapter"), ("policy", "early", "a policy")],
)
def test_an_installed_name_is_taken(
    mvw_there: Run, fresh: Path, kind: Kind, name: str, what: str
) -> None:
    before = files_in(fresh / f"mvw-{name}")
    ran = mvw_there(f"new-{kind}", name, "--into", "again")
    assert ran.code == ExitCode.USAGE
    assert ran.err.splitlines() == [
        f"Error: the name `{name}` is taken",
        f"  mvw-{name} 0.1.0 brings {what} `{name}`",
        f"Hint: mvw new-{kind} my-{name}",
    ]
    assert not (fresh / "again").exists()
    assert files_in(fresh / f"mvw-{name}") == before


@each_kind
def test_what_is_written(mvw: Run, tmp_path: Path, kind: Kind) -> None:
    into = tmp_path / "some where"
    ran = mvw(f"new-{kind}", "my-own", "--into", str(into))
    assert (ran.code, ran.out) == (0, f"{into / 'mvw-my-own'}\n")
    assert ran.err.splitlines()[1] == f"  pip install -e '{into}/mvw-my-own[test]'"
    for line in ran.err.splitlines()[3:]:
        parse_hint(line.strip())
    written = files_in(into / "mvw-my-own")
    assert written.keys() == {"README.md", "pyproject.toml", "mvw_my_own/__init__.py"} | OWN[kind]
    assert not [path for path, text in written.items() if "$" in text]
    project = tomllib.loads(written["pyproject.toml"])["project"]
    assert project["name"] == "mvw-my-own"
    assert project["description"].endswith(f" {kind} for mvw: my-own.")
    assert project["entry-points"] == {"mvw": {"my-own": "mvw_my_own"}}
    assert (into / "mvw-my-own").stat().st_mode & 0o077 == into.stat().st_mode & 0o077


@each_kind
@pytest.mark.parametrize("name", ["x", "nothing", "class", "true", "loaded-model", "a-4", "decide"])
def test_any_valid_name_makes_valid_python(kind: Kind, name: str) -> None:
    """Keywords, and names that the templates import, among them."""
    check_name(kind, name)
    for path, text in render(kind, name).items():
        if path.endswith(".py"):
            compile(text, path, "exec", dont_inherit=True)
    names = names_of(kind, name)
    assert names["module"].isidentifier() and names["class_"].isidentifier()


@pytest.mark.parametrize(
    ("kind", "name", "mended"),
    [
        ("adapter", "My Model", "my-model"),
        ("policy", "4bit", "bit"),
        ("adapter", "../up", "up"),
        ("policy", "a\n", "a"),
        ("adapter", "", "my-model"),
        ("policy", "", "my-policy"),
    ],
)
def test_a_malformed_name(mvw: Run, tmp_path: Path, kind: Kind, name: str, mended: str) -> None:
    ran = mvw(f"new-{kind}", "--into", str(tmp_path / "into"), "--", name)
    assert ran.code == ExitCode.USAGE
    *_, cause, hint = ran.err.splitlines()
    assert cause.strip().startswith("a name has lower-case letters")
    assert hint == f"Hint: mvw new-{kind} {mended}"
    parse_hint(hint.removeprefix("Hint: "))
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    ("kind", "name", "cause"),
    [
        ("adapter", "hf", "brings an adapter `hf`"),
        ("adapter", "llava-cot", "brings an adapter `llava-cot`"),
        ("policy", "look-back", "brings a policy `look-back`"),
        ("adapter", "cli", "a Python package `mvw_cli` is installed"),  # it would shadow mvw itself
        ("policy", "hf", "a Python package `mvw_hf` is installed"),
    ],
)
def test_a_name_that_is_taken(mvw: Run, tmp_path: Path, kind: Kind, name: str, cause: str) -> None:
    ran = mvw(f"new-{kind}", name, "--into", str(tmp_path / "into"))
    assert ran.code == ExitCode.USAGE
    error, why, hint = ran.err.splitlines()
    assert error == f"Error: the name `{name}` is taken"
    assert cause in why
    parse_hint(hint.removeprefix("Hint: "))
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_nothing_is_overwritten(mvw: Run, tmp_path: Path, kind: str) -> None:
    there = tmp_path / "mvw-my-model"
    if kind == "folder":
        there.mkdir()  # empty, and yet somebody's
    else:
        there.symlink_to(tmp_path / "nowhere")
    ran = mvw("new-adapter", "my-model", "--into", str(tmp_path))
    assert ran.code == ExitCode.USAGE
    error, cause, hint = ran.err.splitlines()
    assert (error, cause) == (f"Error: {there} exists already", "  nothing is overwritten")
    parse_hint(hint.removeprefix("Hint: "))
    assert [path.name for path in tmp_path.iterdir()] == ["mvw-my-model"]
    assert not there.is_dir() or not list(there.iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def full(path: Path, *arguments: object, **more: object) -> int:
        if path.name == "test_contract.py":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MvwError) as caught:
        write("adapter", "my-model", tmp_path)
    assert caught.value.exit_code == ExitCode.FAILURE
    assert caught.value.cause == "No space left on device"
    assert caught.value.hint == f"ls -ld {tmp_path}"
    assert list(tmp_path.iterdir()) == []
