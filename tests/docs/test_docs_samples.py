"""Links in the documentation lead somewhere, and its samples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from docs_pages import DOCS, PAGES, ROOT, blocks, example_path, prose
from hints import parse_hint
from processes import Ran

from mvw_cli.cli import cli
from mvw_cli.profiles.resolution import resolve

Run = Callable[..., Ran]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", ""))
    return words.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_speaks_of_the_machine_it_was_made_on() -> None:
    folders = re.compile(r"(?<![\w.~-])/(?:work|opt|root|home|mnt)/")
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        assert not folders.search(text), path


@pytest.fixture
def example_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*example_path(tmp_path / "site"), *sys.path])


@each_page
@pytest.mark.usefixtures("example_installed")
def test_python_samples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, sample in enumerate(blocks(page, "python"), start=1):
        where = f"{page.name}, Python sample {number}"
        exec(
            compile(sample, where, "exec", dont_inherit=True),
            {"__name__": "sample", "__file__": where},
        )


@each_page
@pytest.mark.usefixtures("example_installed")
def test_yaml_and_toml_samples_are_read(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "sample.yaml"
    for sample in blocks(page, "yaml"):
        file.write_text(sample, encoding="utf-8")
        assert resolve(str(file), {}, {}).values()["adapter"] in ("hf", "shapes", "boxed")
    assert all(tomllib.loads(sample) for sample in blocks(page, "toml"))


@each_page
@pytest.mark.usefixtures("example_installed")
def test_shell_samples_are_commands_that_exist(page: Path) -> None:
    for sample in blocks(page, "sh"):
        for line in sample.replace("\\\n", " ").splitlines():
            if "$(" not in line:
                for command in re.split(r" \| ", line):
                    check_command(shlex.split(command, comments=True))


@each_page
@pytest.mark.usefixtures("example_installed")
def test_commands_in_the_text_exist(page: Path) -> None:
    """`mvw …` in running text names commands and options that there are."""
    for written in re.findall(r"`(mvw [^`\n]+)`", prose(page)):
        words = shlex.split(written.replace("…", ""))[1:]
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name = words.pop(0)
            found = command.get_command(click.Context(command), name)
            assert found is not None, written
            command = found
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert options <= known | {"-h", "--help"}, written


HARNESSES = ("vlmeval", "lmms-eval", "inspect", "evalscope")
EXTRAS = re.findall(
    r"^([\w-]+)==", (ROOT / "tests/harnesses/extras.txt").read_text("utf-8"), re.MULTILINE
)
"""Packages that some checkpoints need: `make test-extras` runs with them."""


def check_command(words: list[str]) -> None:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    match words:
        case ["mvw", *_]:
            parse_hint(shlex.join(words))
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["python", "-m", module, *_]:
            path = module.replace(".", "/") + ".py"
            assert module in HARNESSES or (ROOT / path).exists(), module
        case ["python" | "pytest", path, *_]:
            assert (ROOT / path).exists(), path
        case ["pip", "install", *rest]:
            for word in rest:
                path, _, extras = word.partition("[")
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                named = set(filter(None, extras.rstrip("]").split(",")))
                assert named <= set(project["optional-dependencies"]), word
                known = path in ("mvw", *EXTRAS) or path.startswith("-")
                assert known or (ROOT / path).exists(), word
        case []:
            pass
        case _:
            known = ("curl", "find", "git", "vllm", "wc", "xargs", ".", *HARNESSES)
            assert words[0] in known, words


@each_page
def test_terminal_samples_are_what_the_terminal_shows(
    page: Path, mvw: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generated = (DOCS / "example.txt").read_text("utf-8")  # checked by the generator
    for sample in blocks(page, "console"):
        if sample == generated:
            continue
        shown, last = "", 0
        for line in re.findall(r"^\$ (.+)$", sample, re.MULTILINE):
            shown += f"$ {line}\n"
            if line == "echo $?":
                shown += f"{last}\n"
                continue
            ran = mvw(*shlex.split(line)[1:])
            shown, last = shown + ran.out + ran.err, ran.code
        assert shown == sample
