"""Plugins as real packages, installed by pip: what works, and what one that doesn't may break.

The packages are in tests/plugins; each test picks the ones it wants by MVW_LOAD_PLUGINS.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hints import parse_hint
from processes import Ran, make_venv, own_adapters, pip, pip_install, run_process

from mvw_cli import hookspecs
from mvw_cli.errors import ExitCode

PLUGINS = Path(__file__).parent
Run = Callable[..., Ran]


def documents(ran: Ran, key: str) -> list[dict[str, Any]]:
    document = json.loads(ran.out)
    assert document["schema_version"] == 1
    found = document[key]
    assert isinstance(found, list)
    return found


def load(python: Path, what: str) -> subprocess.CompletedProcess[str]:
    code = f"""
from mvw_cli.errors import PluginProblem
from mvw_cli.plugins import load_adapter, load_policy
try:
    print({what})
except PluginProblem as error:
    print(error.message, error.cause, error.hint, sep="\\n")
"""
    chosen = {**os.environ, "MVW_LOAD_PLUGINS": "good,hollow"}
    command = [python, "-c", code]
    return subprocess.run(command, env=chosen, capture_output=True, text=True, check=True)


# What a good plugin brings, hook by hook.


def test_hook_mvw_register_adapters(installed: Run, plugin_python: Path) -> None:
    ran = installed("good", "list", "adapters", "--json")
    good = next(one for one in documents(ran, "adapters") if one["name"] == "good")
    assert good == {
        "name": "good",
        "summary": "answers everything with its own question",
        "distribution": "mvw-good",
        "target": "mvw_good.model:Good",
        "status": "ok",
        "cause": None,
        "checkpoints": ["good/first", "good/second"],
    }
    assert (ran.code, ran.err) == (0, "")
    assert "mvw_good.model.Good object" in load(plugin_python, "load_adapter('good')").stdout


def test_hook_mvw_register_policies(installed: Run) -> None:
    ran = installed("good", "list", "policies", "--json")
    assert [one["name"] for one in documents(ran, "policies")].count("fraction") == 1
    sets = ("--set", "withdrawal.policy=fraction", "--set", "withdrawal.budget=64")
    shown = installed("good", "show", "shapes", *sets, "--json")
    assert json.loads(shown.out)["values"]["withdrawal"] == {
        "policy": "fraction",
        "budget": 64,
        "share": 0.5,
        "tags": [],
    }


def test_hook_mvw_register_profiles(installed: Run) -> None:
    ran = installed("good", "list", "profiles", "--json")
    good = next(one for one in documents(ran, "profiles") if one["name"] == "good")
    assert (good["adapter"], good["origin"]) == ("good", "mvw-good")
    shown = json.loads(installed("good", "show", "good", "--json").out)
    assert shown["values"]["model"] == "good/first"  # the adapter's first checkpoint
    assert shown["origins"]["withdrawal.budget"]["kind"] == "packaged"


def test_hook_mvw_register_commands(installed: Run) -> None:
    assert "hello" in installed("good", "--help").out
    ran = installed("good", "hello")
    assert (ran.code, ran.out, ran.err) == (0, "hello from a plugin\n", "")


def test_every_hook_has_a_test() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("mvw_")}
    assert {name.removeprefix("test_hook_") for name in globals() if "_hook_mvw" in name} == hooks


def test_plugins_lists_what_a_plugin_brings(installed: Run) -> None:
    good = next(
        one
        for one in documents(installed("good", "plugins", "--json"), "plugins")
        if one["distribution"] == "mvw-good"
    )
    assert Path(good.pop("path")).name == "__init__.py"
    assert [Path(folder).name for folder in good.pop("profiles")] == ["profiles"]
    assert good == {
        "version": "1.2.3",
        "distribution": "mvw-good",
        "name": "good",
        "module": "mvw_good",
        "hooks": [
            "mvw_register_adapters",
            "mvw_register_commands",
            "mvw_register_policies",
            "mvw_register_profiles",
        ],
        "adapters": ["good"],
        "policies": ["fraction"],
        "commands": ["hello"],
        "status": "ok",
        "cause": None,
        "way_out": None,
    }


# Broken in every way: one warning line with the way out, and nothing else suffers.

BROKEN = {
    "broken": ("mvw-broken", "ModuleNotFoundError: No module named 'a_library_that_nobody_has'"),
    "raising": ("mvw-raising", "RuntimeError: no licence found"),
    "misspelled": (
        "mvw-misspelled",
        "TypeError: there is no hook `mvw_register_adaptors`; "
        "did you mean `mvw_register_adapters`?",
    ),
    "gone": ("mvw-gone", "ModuleNotFoundError: No module named 'mvw_gone'"),
}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *((name, command) for name in BROKEN for command in ("list adapters", "--help")),
        ("broken", "show shapes"),
        ("raising", "plugins"),
    ],
)
def test_a_broken_plugin_breaks_no_command(installed: Run, name: str, command: str) -> None:
    distribution, cause = BROKEN[name]
    ran = installed(f"{name},good", *command.split())
    assert ran.code == 0
    assert len(ran.warnings) == 1 == len(ran.err.splitlines())
    assert cause in ran.warnings[0]
    assert ran.warnings[0].endswith(f"way out: pip uninstall {distribution}")


def test_quiet_silences_the_warnings(installed: Run) -> None:
    ran = installed(",".join(BROKEN), "-q", "list", "adapters")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_broken_plugin_would_bring_can_not_be_used(installed: Run, name: str) -> None:
    ran = installed(name, "show", "--set", f"adapter={name}")
    distribution, cause = BROKEN[name]
    assert ran.code == ExitCode.PLUGIN
    assert ran.out == ""
    error, why, hint = ran.err.splitlines()[-3:]
    assert distribution in error and name in error
    assert why.strip() == cause
    assert hint == f"Hint: pip install --upgrade --force-reinstall {distribution}"
    parse_hint(hint.removeprefix("Hint: "))


def test_hooks_that_work_still_count_where_another_raises(installed: Run) -> None:
    ran = installed("raising", "list", "policies")
    assert any(line.split()[0] == "surviving" for line in ran.out.splitlines())
    adapters = documents(installed("raising", "list", "adapters", "--json"), "adapters")
    raising = next(one for one in adapters if one["name"] == "raising")
    assert (raising["status"], raising["cause"]) == ("broken", "RuntimeError: no licence found")


def test_plugins_says_what_is_wrong(installed: Run) -> None:
    ran = installed(",".join(BROKEN), "plugins", "--json")
    records = {one["name"]: one for one in documents(ran, "plugins")}
    for name, (distribution, cause) in BROKEN.items():
        assert records[name]["status"] == "broken"
        assert records[name]["cause"] == cause
        assert records[name]["way_out"] == f"pip uninstall {distribution}"


def test_a_plugin_that_talks_and_leaves(installed: Run) -> None:
    ran = installed("loud", "plugins", "--json")
    loud = next(one for one in documents(ran, "plugins") if one["name"] == "loud")
    assert (ran.code, loud["cause"]) == (0, "SystemExit: goodbye")
    assert "thank you for choosing mvw-loud" in ran.err


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("load_adapter('hollow')", "ModuleNotFoundError: No module named 'mvw_hollow_model'"),
        ("load_adapter('classless')", "is not a subclass of Adapter"),
        ("load_adapter('abstract')", "TypeError: Can't instantiate abstract class Adapter"),
        ("load_policy('hollow')", "AttributeError: module 'mvw_hollow' has no attribute 'Missing'"),
    ],
)
def test_a_class_that_can_not_be_used(plugin_python: Path, what: str, cause: str) -> None:
    message, why, hint = load(plugin_python, what).stdout.splitlines()
    assert message.endswith("of mvw-hollow 0.1 can't be used")
    assert cause in why
    assert hint == "pip install --upgrade --force-reinstall mvw-hollow"


# Clashes: mvw's own wins, else the first by the distribution's name.


def test_clashing_names(installed: Run) -> None:
    ran = installed("good,clash", "list", "adapters", "--json")
    origins = {one["name"]: one["distribution"] for one in documents(ran, "adapters")}
    assert (origins["good"], origins["shapes"]) == ("mvw-clash", "mvw")
    hidden = [
        *(("adapter", "shapes", "mvw-clash"), ("policy", "mvw", "mvw-clash")),
        *(("policy", "none", "mvw-clash"), ("adapter", "good", "mvw-good")),
    ]
    assert ran.warnings == [
        f"Warning: {what} `{name}` of plugin {plugin} is hidden by another of that name; "
        f"way out: pip uninstall {plugin}"
        for what, name, plugin in hidden
    ]
    ran = installed("clash", "-q", "show", "shapes", "--json")
    assert json.loads(ran.out)["values"]["withdrawal"]["policy"] == "mvw"


def test_clashing_commands(installed: Run) -> None:
    ran = installed("clash,good", "--help")
    assert [line for line in ran.warnings if "command" in line] == [
        "Warning: command `list` of plugin mvw-clash is hidden by another of that name; "
        "way out: pip uninstall mvw-clash",
        "Warning: command `hello` of plugin mvw-good is hidden by another of that name; "
        "way out: pip uninstall mvw-good",
    ]
    assert "hf" in installed("clash", "-q", "list", "adapters").out


# Coming and going.


def test_install_and_uninstall(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    before = run_process(python, "list", "adapters", cwd=tmp_path)
    pip_install(python, PLUGINS / "mvw-good")
    during = run_process(python, "list", "adapters", cwd=tmp_path)
    assert "mvw-good" in during.out
    pip(python, "uninstall", "--yes", "--quiet", "mvw-good")
    assert run_process(python, "list", "adapters", cwd=tmp_path) == before


def test_all_at_once(installed: Run, plugin_python: Path, tmp_path: Path) -> None:
    names = [folder.name for folder in PLUGINS.glob("mvw-*")]
    ran = run_process(plugin_python, "plugins", "--json", cwd=tmp_path)
    records = documents(ran, "plugins")
    assert ran.code == 0
    assert {one["distribution"] for one in records} == {*names, "mvw"}
    assert [one["status"] for one in records if one["distribution"] == "mvw"] == ["ok"] * (
        1 + len({*own_adapters().values()})
    )


def test_only_chosen_plugins_are_loaded(installed: Run) -> None:
    none = documents(installed("", "plugins", "--json"), "plugins")
    assert {one["distribution"] for one in none} == {"mvw"}
    by_name = documents(installed("mvw-good , broken", "plugins", "--json"), "plugins")
    assert {one["distribution"] for one in by_name} == {"mvw", "mvw-good", "mvw-broken"}


@pytest.mark.parametrize("command", ["list adapters", "list policies", "list profiles", "plugins"])
def test_listing_imports_no_model_library(
    plugin_python: Path, tmp_path: Path, command: str
) -> None:
    code = f"""
import sys
from mvw_cli.__main__ import main
code = main({command.split()!r})
heavy = {{"torch", "transformers", "PIL", "numpy", "mvw_good.model"}} & set(sys.modules)
sys.exit(code or len(heavy))
"""
    done = subprocess.run([plugin_python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
