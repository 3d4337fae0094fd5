"""The plugin loader on small hand-made distributions: every way that metadata or hooks go wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import own_adapters

from mvw_cli.errors import PluginProblem, PluginWarning
from mvw_cli.plugins import (
    Plugin,
    find_adapter,
    find_policy,
    load_adapter,
    load_plugins,
    plugin_commands,
)

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution on the path: its metadata folder, and its module if there is source."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(name: str, source: str | None, entry_points: str | None = None) -> Path:
        module = name.replace("-", "_")
        folder = site / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(entry_points or f"[mvw]\nit = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        if source is not None:
            (site / f"{module}.py").write_text("from mvw_cli import *\n" + source)
        return folder

    return make


def outcome(name: str) -> tuple[Plugin, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry = load_plugins()
    plugin = next(one for one in registry.plugins if one.distribution == name)
    return plugin, [str(w.message) for w in caught if w.category is PluginWarning]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        (
            "def mvw_register_adapters(register): pass",
            "TypeError: it implements no hook: is @hookimpl missing?",
        ),
        (
            "@hookimpl\ndef mvw_register_adapters(registry): pass",
            "{'registry'} are declared in the hookimpl but can not be found in the hookspec",
        ),
        (
            "@hookimpl\ndef mvw_register_adapters(register): register('hf')",
            "TypeError: register() takes AdapterInfo, not str",
        ),
        (
            "@hookimpl\ndef mvw_register_adapters(register):\n"
            "    register(AdapterInfo(name='x:y', target='a:B', summary=''))",
            'no ":" in the name, one in the target',
        ),
        (
            "@hookimpl\ndef mvw_register_profiles(register): register('/no/such/folder')",
            "FileNotFoundError: profile folder /no/such/folder does not exist",
        ),
    ],
)
def test_a_fault_becomes_one_warning(install: Install, source: str, cause: str) -> None:
    install("mvw-faulty", source)
    plugin, lines = outcome("mvw-faulty")
    assert plugin.status == "broken"
    assert cause in (plugin.cause or "")
    assert len(lines) == 1
    assert lines[0].startswith("plugin mvw-faulty 1.0 (it) is broken: ")
    assert lines[0].endswith("; way out: pip uninstall mvw-faulty")
    assert find_adapter("hf")  # everything else goes on


def test_hooks_may_take_fewer_arguments(install: Install) -> None:
    install("mvw-modest", "@hookimpl\ndef mvw_register_adapters(): pass")
    plugin, lines = outcome("mvw-modest")
    assert (plugin.status, lines) == ("ok", [])


def test_a_malformed_distribution_that_has_nothing_to_do_with_mvw(install: Install) -> None:
    install("unrelated", "", "[console_scripts]\nnonsense without an equals sign\n")
    install("mvw-ghost", None)  # its package is gone
    _, lines = outcome("mvw-ghost")
    assert [line.split(" is broken: ")[0] for line in lines] == ["plugin mvw-ghost 1.0 (it)"]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[mvw]\nnonsense without an equals sign\n", "TypeError: "),
        (b"[mvw]\nit = mvw_torn\n[console_scripts]\nto", "TypeError: "),  # the disk was full
        (b"[mvw]\nit = mvw_torn\xff\xfe\n", "UnicodeDecodeError: "),
        (b"[mvw]\nit = not a module\n", None),
        (b"[mvw]\nit =\n", None),
    ],
)
def test_entry_points_that_are_damaged_are_one_warning(
    install: Install, content: bytes, cause: str | None
) -> None:
    folder = install("mvw-torn", "@hookimpl\ndef mvw_register_adapters(register): pass")
    (folder / "entry_points.txt").write_bytes(content)
    install("mvw-whole", "@hookimpl\ndef mvw_register_adapters(register): pass")
    plugin, lines = outcome("mvw-torn")
    assert plugin.status == "broken" and len(lines) == 1
    name = "it" if cause is None else "entry_points.txt"
    assert lines[0].startswith(f"plugin mvw-torn 1.0 ({name}) is broken: ")
    assert lines[0].endswith("; way out: pip uninstall mvw-torn")
    if cause is not None:
        assert f"its entry_points.txt is damaged: {cause}" in lines[0]
    assert outcome("mvw-whole")[0].status == "ok" and find_adapter("hf")


@pytest.mark.parametrize("metadata", [None, b"", b"Name: \xff\n"])
def test_a_distribution_without_its_metadata_has_its_folders_name(
    install: Install, metadata: bytes | None
) -> None:
    folder = install("mvw-nameless", "@hookimpl\ndef mvw_register_adapters(register): pass")
    (folder / "METADATA").unlink()
    if metadata is not None:
        (folder / "METADATA").write_bytes(metadata)
    plugin, lines = outcome("mvw_nameless")
    assert (plugin.version, plugin.status, lines) == ("1.0", "ok", [])


def test_what_is_damaged_and_not_for_mvw_is_nobodys_business(install: Install) -> None:
    folder = install("unrelated", "")
    (folder / "entry_points.txt").write_bytes(b"[console_scripts]\n\xff\xfe")
    install("mvw-whole", "@hookimpl\ndef mvw_register_adapters(register): pass")
    assert outcome("mvw-whole")[1] == []


def test_the_first_of_two_copies_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("mvw-twin", "@hookimpl\ndef mvw_register_adapters(register): pass")
    behind = tmp_path / "behind" / "mvw_twin-0.1.dist-info"
    behind.mkdir(parents=True)
    (behind / "METADATA").write_text("Name: Mvw_Twin\nVersion: 0.1\n")
    (behind / "entry_points.txt").write_text("[mvw]\nit = mvw_twin\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(behind.parent)])
    plugin, lines = outcome("mvw-twin")
    assert (plugin.version, plugin.status, lines) == ("1.0", "ok", [])


def test_mvw_without_its_own_metadata_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvw_cli.plugins.offered", lambda: iter(()))
    with pytest.warns(PluginWarning, match=r"without being installed.*pip install -e \."):
        assert load_plugins().adapters == []


def test_commands_that_raise_leave_the_others(install: Install) -> None:
    install("mvw-a", "@hookimpl\ndef mvw_register_commands(cli): 1 / 0")
    install(
        "mvw-b",
        "import click\n"
        "@hookimpl\ndef mvw_register_commands(cli): cli.add_command(click.Command('fine'))",
    )
    with pytest.warns(PluginWarning, match="ZeroDivisionError"):
        assert "fine" in plugin_commands(taken=())


def test_unknown_names() -> None:
    for find, wrong, right, hint in (
        (find_adapter, "shaeps", "shapes", "mvw list adapters"),
        (find_policy, "mwv", "mvw", "mvw list policies"),
    ):
        with pytest.raises(PluginProblem) as caught:
            find(wrong)
        assert caught.value.cause == f"did you mean `{right}`?"
        assert caught.value.hint == hint
    with pytest.raises(PluginProblem) as caught:
        load_adapter("zzz")
    assert caught.value.cause == f"known: {', '.join(own_adapters())}"
