"""`mvw new-adapter`: what it writes is installed, tested and asked; what it refuses stays whole."""

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
from mvw_cli.scaffold import check_name, names_of, render, write

Run = Callable[..., Ran]
FILES = {
    "README.md",
    "mvw_my_model/__init__.py",
    "mvw_my_model/model.py",
    "pyproject.toml",
    "tests/test_contract.py",
}


def files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as the command writes it, with its environment beside it."""
    folder = tmp_path_factory.mktemp("fresh")
    python = make_venv(folder / "venv")
    ran = run_process(python, "new-adapter", "my-model", cwd=folder)
    assert (ran.code, ran.out) == (0, "mvw-my-model\n")
    pip_install(python, folder / "mvw-my-model")
    return folder / "mvw-my-model"


@pytest.fixture
def fresh(package: Path) -> Run:
    """Run `mvw` in the fresh environment, with the new adapter beside mvw's own."""

    def run(*arguments: str) -> Ran:
        python = package.parent / "venv" / "bin" / "python"
        return run_process(python, *arguments, cwd=package.parent, MVW_LOAD_PLUGINS="my-model")

    return run


@pytest.fixture
def picture(tmp_path: Path) -> str:
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_the_package_passes_its_own_tests(package: Path) -> None:
    done = subprocess.run(
        [package.parent / "venv" / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=package,
        env={**os.environ, "MVW_LOAD_PLUGINS": "my-model", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "test_contract.py" in done.stdout and "no tests ran" not in done.stdout


def test_it_answers_at_once_and_says_that_it_is_noise(fresh: Run, picture: str) -> None:
    asked = ("infer", picture, "w1 w2", "--adapter", "my-model", "--device", "cpu")
    ran = fresh(*asked, "--max-new-tokens", "6", "--m", "2", "--dtype", "bfloat16", "--json")
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
    fresh: Run, picture: str, tmp_path: Path
) -> None:
    from mvw_hf.model import HuggingFace

    checkpoint, loaded = tmp_path / "checkpoint", HuggingFace().tiny()
    loaded.model.save_pretrained(checkpoint)
    loaded.processor.save_pretrained(checkpoint)
    asked = ("infer", picture, "w1 w2", "--adapter", "my-model", "--model", str(checkpoint))
    ran = fresh(*asked, "--max-new-tokens", "6", "--m", "2", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["remarks"] == []
    assert json.loads(ran.out)["model"]["name"] == str(checkpoint)
    assert "noise" not in ran.err


def test_an_installed_name_is_taken(fresh: Run, package: Path) -> None:
    before = files_in(package)
    ran = fresh("new-adapter", "my-model", "--into", "again")
    assert ran.code == ExitCode.USAGE
    assert ran.err.splitlines() == [
        "Error: the name `my-model` is taken",
        "  mvw-my-model 0.1.0 brings an adapter `my-model`",
        "Hint: mvw new-adapter my-my-model",
    ]
    assert not (package.parent / "again").exists()
    assert files_in(package) == before


def test_what_is_written(mvw: Run, tmp_path: Path) -> None:
    into = tmp_path / "some where"
    ran = mvw("new-adapter", "my-model", "--into", str(into))
    assert (ran.code, ran.out) == (0, f"{into / 'mvw-my-model'}\n")
    assert ran.err.splitlines()[1] == f"  pip install -e '{into}/mvw-my-model[test]'"
    written = files_in(into / "mvw-my-model")
    assert written.keys() == FILES
    assert not [path for path, text in written.items() if "$" in text]
    project = tomllib.loads(written["pyproject.toml"])["project"]
    assert project["name"] == "mvw-my-model"
    assert project["entry-points"] == {"mvw": {"my-model": "mvw_my_model"}}
    assert (into / "mvw-my-model").stat().st_mode & 0o077 == into.stat().st_mode & 0o077


@pytest.mark.parametrize("name", ["x", "none", "class", "true", "loaded-model", "a-4", "qwen3-vl"])
def test_any_valid_name_makes_valid_python(name: str) -> None:
    """Keywords, and names that the templates import, among them."""
    check_name(name)
    for path, text in render(name).items():
        if path.endswith(".py"):
            compile(text, path, "exec", dont_inherit=True)
    assert names_of(name)["module"].isidentifier() and names_of(name)["class_"].isidentifier()


@pytest.mark.parametrize(
    ("name", "mended"),
    [
        ("My Model", "my-model"),
        ("4bit", "bit"),
        ("../up", "up"),
        ("a\n", "a"),
        ("", "my-model"),
    ],
)
def test_a_malformed_name(mvw: Run, tmp_path: Path, name: str, mended: str) -> None:
    ran = mvw("new-adapter", "--into", str(tmp_path / "into"), "--", name)
    assert ran.code == ExitCode.USAGE
    *_, cause, hint = ran.err.splitlines()
    assert cause.strip().startswith("a name has lower-case letters")
    assert hint == f"Hint: mvw new-adapter {mended}"
    parse_hint(hint.removeprefix("Hint: "))
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("hf", "brings an adapter `hf`"),
        ("llava-cot", "brings an adapter `llava-cot`"),
        ("cli", "a Python package `mvw_cli` is installed"),  # it would shadow mvw itself
    ],
)
def test_a_name_that_is_taken(mvw: Run, tmp_path: Path, name: str, cause: str) -> None:
    ran = mvw("new-adapter", name, "--into", str(tmp_path / "into"))
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
        write("my-model", tmp_path)
    assert caught.value.exit_code == ExitCode.FAILURE
    assert caught.value.cause == "No space left on device"
    assert caught.value.hint == f"ls -ld {tmp_path}"
    assert list(tmp_path.iterdir()) == []
