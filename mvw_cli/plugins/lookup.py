"""Adapters and policies by name: find one, and load its class when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Literal

from mvw_cli.adapter import Adapter, AdapterInfo
from mvw_cli.errors import MvwError, PluginProblem
from mvw_cli.plugins.loading import OWN, Entry, InfoT, Plugin, load_plugins
from mvw_cli.policy import PolicyInfo, WithdrawalPolicy
from mvw_cli.text import did_you_mean, error_line

Kind = Literal["adapter", "policy"]
_LISTING = {"adapter": "mvw list adapters", "policy": "mvw list policies"}


def find_adapter(name: str) -> AdapterInfo:
    """Find a usable adapter by its name or by `distribution:name`, without importing it.

    Raises:
        PluginProblem: unknown, ambiguous, broken or incompatible.
    """
    return _find("adapter", name, load_plugins().adapters).info


def load_adapter(name: str) -> Adapter:
    """Import the class of an adapter and make an instance of it.

    Raises:
        PluginProblem: as `find_adapter`, or its class can't be imported or is no adapter.
    """
    entry = _find("adapter", name, load_plugins().adapters)
    found = _import("adapter", entry.info.target, entry)
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise _unusable("adapter", entry, f"{entry.info.target} is not a subclass of Adapter")
    try:
        return found()
    except MvwError:
        raise
    except Exception as error:  # a missing abstract method among them
        raise _unusable("adapter", entry, error_line(error)) from error


def find_policy(name: str) -> PolicyInfo:
    """Find a usable policy by its name or by `distribution:name`, without importing it.

    Raises:
        PluginProblem: unknown, ambiguous, broken or incompatible.
    """
    return _find("policy", name, load_plugins().policies).info


def load_policy(name: str) -> type[WithdrawalPolicy]:
    """Import the class of a withdrawal policy.

    Raises:
        PluginProblem: as `find_policy`, or its class can't be imported or is no policy.
    """
    entry = _find("policy", name, load_plugins().policies)
    found = _import("policy", entry.info.target, entry)
    if not (isinstance(found, type) and issubclass(found, WithdrawalPolicy)):
        raise _unusable("policy", entry, f"{entry.info.target} is not a WithdrawalPolicy")
    if not is_dataclass(found):
        raise _unusable("policy", entry, f"{entry.info.target} is not a dataclass")
    return found


def canonical(kind: Kind, name: str, speaker: str | None = None) -> str:
    """Write a name as short as it can be; a name that is not known stays as it is.

    An ambiguous one is qualified by the distribution that speaks, if that brings one itself: a
    packaged profile means the adapter of its own package, whatever else is installed.
    """
    registry = load_plugins()
    entries: Sequence[Entry[AdapterInfo] | Entry[PolicyInfo]]
    entries = registry.adapters if kind == "adapter" else registry.policies
    for entry in entries:
        if name == entry.qualified or (
            name == entry.info.name and entry.plugin.distribution == speaker
        ):
            alone = [one.info.name for one in entries].count(entry.info.name) == 1
            return entry.info.name if alone else entry.qualified
    return name


def _find(kind: Kind, name: str, entries: Sequence[Entry[InfoT]]) -> Entry[InfoT]:
    same = [entry for entry in entries if name in (entry.info.name, entry.qualified)]
    if len(same) > 1:
        names = [entry.qualified for entry in same]
        raise PluginProblem(
            f"{kind} `{name}` is ambiguous",
            cause=f"{len(same)} distributions bring one: write {' or '.join(names)}",
            hint=_LISTING[kind],
        )
    if not same:
        raise _unknown(kind, name, [entry.info.name for entry in entries])
    if same[0].problem is not None:
        raise _unusable(kind, same[0], same[0].problem)
    return same[0]


def _unknown(kind: Kind, name: str, known: Sequence[str]) -> PluginProblem:
    for plugin in load_plugins().plugins:
        # A plugin that does not load can't say what it brings; its own name is the best clue.
        names = {plugin.name, plugin.distribution, plugin.distribution.removeprefix(f"{OWN}-")}
        if plugin.status == "broken" and name.partition(":")[0] in names:
            what = f"{kind} `{name}` can't be used: plugin {plugin.distribution} is broken"
            return PluginProblem(what, cause=plugin.cause, hint=_repair(plugin))
    listing = f"known: {', '.join(sorted(set(known))) or 'none'}"
    return PluginProblem(
        f"there is no {kind} `{name}`",
        cause=did_you_mean(name, known, otherwise=listing),
        hint=_LISTING[kind],
    )


def _import(kind: Kind, target: str, entry: Entry[InfoT]) -> object:
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except MvwError:
        raise
    except (Exception, SystemExit) as error:
        raise _unusable(kind, entry, error_line(error)) from error


def _unusable(kind: Kind, entry: Entry[InfoT], cause: str) -> PluginProblem:
    plugin = entry.plugin
    what = f"{kind} `{entry.info.name}` of {plugin.distribution} {plugin.version} can't be used"
    return PluginProblem(what, cause=cause, hint=_repair(plugin))


def _repair(plugin: Plugin) -> str:
    if plugin.status == "incompatible" and plugin.way_out:
        return plugin.way_out
    return f"pip install --upgrade --force-reinstall {plugin.distribution}"
