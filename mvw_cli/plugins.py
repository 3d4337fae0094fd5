"""The plugin seam: load what is installed, keep what works, remember why the rest does not.

A plugin is whatever an entry point of the group `mvw` names. Nothing a plugin does wrong, from a
missing module to a raising hook, gets further than its own record here: the caller sees a
`PluginWarning` with the way out, and an error only on using what is broken. mvw's own adapters
and policies come in through the same door. No class of an adapter or policy is imported here.

`MVW_LOAD_PLUGINS=a,b` loads only these plugins (by entry-point or distribution name) besides
mvw's own; empty loads none. `MVW_STRICT_PLUGINS=1` raises instead of warning, for plugin authors.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import click
import pluggy

from mvw_cli import hookspecs
from mvw_cli.adapter import API_VERSION, Adapter, AdapterInfo
from mvw_cli.errors import MvwError, PluginProblem, PluginWarning
from mvw_cli.policy import PolicyInfo, WithdrawalPolicy
from mvw_cli.text import did_you_mean, error_line

OWN = "mvw"
"""The distribution that this package is."""

Status = Literal["ok", "broken", "incompatible"]
InfoT = TypeVar("InfoT", AdapterInfo, PolicyInfo)


@dataclass(slots=True)
class Plugin:
    """One entry point: where it comes from, what it brings, and whether it works."""

    distribution: str
    version: str
    name: str
    module: str
    path: str | None = None
    hooks: tuple[str, ...] = ()
    adapters: list[str] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    """Folders of YAML profiles."""
    commands: list[str] = field(default_factory=list)
    status: Status = "ok"
    cause: str | None = None
    way_out: str | None = None
    """A shell command that ends the trouble."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[InfoT]):
    """An adapter or policy, and the plugin that brings it."""

    info: InfoT
    plugin: Plugin
    problem: str | None = None
    """Why it can't be used, or None."""

    @property
    def qualified(self) -> str:
        """The name that stays unique when two distributions bring the same one."""
        return f"{self.plugin.distribution}:{self.info.name}"


@dataclass(slots=True)
class Registry:
    """All that the installed plugins bring."""

    plugins: list[Plugin] = field(default_factory=list)
    adapters: list[Entry[AdapterInfo]] = field(default_factory=list)
    policies: list[Entry[PolicyInfo]] = field(default_factory=list)
    profiles: list[tuple[Path, Plugin]] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("mvw"))


@cache
def load_plugins() -> Registry:
    """Load every installed plugin, once per process, and warn of those that don't work.

    Raises:
        PluginProblem: a plugin does not work, under MVW_STRICT_PLUGINS=1.
    """
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    # In an order of our own: that of the file system would decide who wins a clash of commands.
    found_here = sorted(offered(), key=lambda one: (one.distribution != OWN, one.distribution))
    if not any(found.distribution == OWN for found in found_here):
        _warn(
            "mvw runs here without being installed, so its own adapters are not found; "
            "way out: pip install -e ."
        )
    for found in _wanted(found_here):
        plugin = Plugin(found.distribution, found.version, found.name, found.value)
        registry.plugins.append(plugin)
        if _attempt(plugin, partial(_register, registry.manager, plugin, found)) is None:
            _collect(registry, plugin)
    _warn_of_clashes("adapter", registry.adapters)
    _warn_of_clashes("policy", registry.policies)
    return registry


def plugin_commands(taken: Collection[str]) -> dict[str, click.Command]:
    """Ask the plugins for their commands; names in `taken` and first comers win a clash."""
    registry = load_plugins()
    commands: dict[str, click.Command] = {}
    for plugin in registry.plugins:
        scratch = click.Group("mvw")

        def ask(plugin: Plugin = plugin, scratch: click.Group = scratch) -> None:
            _call(registry.manager, plugin, "mvw_register_commands", cli=scratch)
            for command in scratch.commands.values():
                command.get_short_help_str()  # the help of the group calls it: it must not raise

        if _attempt(plugin, ask) is not None:
            continue
        for name, command in scratch.commands.items():
            if name in taken or name in commands:
                _warn(
                    f"command `{name}` of plugin {plugin.distribution} is hidden by another of "
                    f"that name; way out: pip uninstall {plugin.distribution}"
                )
                continue
            commands[name] = command
            plugin.commands.append(name)
    return commands


def _wanted(found: list[Offered]) -> list[Offered]:
    chosen = os.environ.get("MVW_LOAD_PLUGINS")
    if chosen is None:
        return found
    names = {name.strip() for name in chosen.split(",") if name.strip()}
    known = {name for one in found for name in (one.name, one.distribution)}
    for name in sorted(names - known):
        guess = did_you_mean(name, known, otherwise="it is not installed")
        _warn(f"MVW_LOAD_PLUGINS names no installed plugin with `{name}`: {guess}")
    return [one for one in found if one.distribution == OWN or {one.name, one.distribution} & names]


def _attempt(plugin: Plugin, step: Callable[[], None]) -> str | None:
    """Run one step of a plugin; whatever it raises becomes its record, a warning and the result."""
    try:
        # A plugin that prints while it is imported must not spoil a JSON document.
        with contextlib.redirect_stdout(sys.stderr):
            step()
    except (Exception, SystemExit) as error:
        cause = error_line(error)
        _fail(plugin, "broken", cause, _removal(plugin), error)
        return cause
    return None


def _fail(
    plugin: Plugin, status: Status, cause: str, way_out: str, error: BaseException | None = None
) -> None:
    if plugin.status != "ok":
        return  # one line for each plugin: its first fault is the one to mend
    plugin.status, plugin.cause, plugin.way_out = status, cause, way_out
    what = f"plugin {plugin.distribution} {plugin.version} ({plugin.name}) is {status}"
    if os.environ.get("MVW_STRICT_PLUGINS") == "1":
        raise PluginProblem(what, cause=cause, hint=way_out) from error
    _warn(f"{what}: {cause}; way out: {way_out}")


def _register(manager: pluggy.PluginManager, plugin: Plugin, found: Offered) -> None:
    if found.entry_point is None:
        raise ImportError(found.problem)
    module = found.entry_point.load()
    plugin.path = getattr(module, "__file__", None)
    manager.register(module, name=_key(plugin))
    implemented = sorted(caller.name for caller in manager.get_hookcallers(module) or [])
    specified = [name for name in vars(hookspecs) if name.startswith("mvw_")]
    try:
        manager.check_pending()
        if not implemented:
            bare = [name for name in specified if hasattr(module, name)]
            why = f"`{bare[0]}` is not marked with @hookimpl" if bare else "it implements no hook"
            manager.unregister(module)
            raise TypeError(why)
    except pluggy.PluginValidationError as error:
        manager.unregister(module)
        wrong = next(name for name in implemented if name not in specified)
        guess = did_you_mean(wrong, specified, otherwise=f"the hooks are {', '.join(specified)}")
        raise TypeError(f"there is no hook `{wrong}`; {guess}") from error
    plugin.hooks = tuple(implemented)


def _collect(registry: Registry, plugin: Plugin) -> None:
    adapters: list[Entry[AdapterInfo]] = []
    policies: list[Entry[PolicyInfo]] = []

    def folder(path: Path) -> None:
        if not Path(path).is_dir():
            raise FileNotFoundError(f"profile folder {path} does not exist")
        registry.profiles.append((Path(path), plugin))
        plugin.profiles.append(str(path))

    def ask(hook: str, register: Callable[[Any], None]) -> str | None:
        return _attempt(plugin, partial(_call, registry.manager, plugin, hook, register=register))

    distribution = plugin.distribution
    theirs = [e.info.name for e in registry.adapters if e.plugin.distribution == distribution]
    take_adapter = _taker(adapters, AdapterInfo, plugin, plugin.adapters, theirs)
    failed = ask("mvw_register_adapters", take_adapter)
    registry.adapters += [replace(one, problem=failed or one.problem) for one in adapters]
    theirs = [e.info.name for e in registry.policies if e.plugin.distribution == distribution]
    take_policy = _taker(policies, PolicyInfo, plugin, plugin.policies, theirs)
    failed = ask("mvw_register_policies", take_policy)
    registry.policies += [replace(one, problem=failed or one.problem) for one in policies]
    ask("mvw_register_profiles", folder)
    brought: list[Entry[Any]] = [*adapters, *policies]
    for one in brought:
        if one.info.api != API_VERSION and one.problem is not None:
            behind = OWN if one.info.api > API_VERSION else plugin.distribution
            _fail(plugin, "incompatible", one.problem, f"pip install --upgrade {behind}")


def _taker(
    entries: list[Entry[InfoT]],
    kind: type[InfoT],
    plugin: Plugin,
    names: list[str],
    theirs: Collection[str],
) -> Callable[[InfoT], None]:
    def register(info: InfoT) -> None:
        if not isinstance(info, kind):
            raise TypeError(f"register() takes {kind.__name__}, not {type(info).__name__}")
        if not all(isinstance(text, str) for text in (info.name, info.target, info.summary)):
            raise TypeError(f"{info!r}: name, target and summary are text")
        if not isinstance(info.api, int) or isinstance(getattr(info, "checkpoints", ()), str):
            raise TypeError(f"{info!r}: api is a number, checkpoints is a tuple")
        if info.name in names or info.name in theirs:
            raise ValueError(f"`{info.name}` is registered twice")
        if not info.name or ":" in info.name or info.target.count(":") != 1:
            raise ValueError(f'{info!r}: no ":" in the name, one in the target')
        names.append(info.name)
        problem = None
        if info.api != API_VERSION:
            problem = f"`{info.name}` needs plugin API {info.api}, and this mvw has {API_VERSION}"
        entries.append(Entry(info, plugin, problem))

    return register


def _call(manager: pluggy.PluginManager, plugin: Plugin, hook: str, **arguments: object) -> None:
    """Call the hook of this plugin alone: in a joint call one that raises would end the others'."""
    others = [module for name, module in manager.list_name_plugin() if name != _key(plugin)]
    manager.subset_hook_caller(hook, others)(**arguments)


def _removal(plugin: Plugin) -> str:
    if plugin.distribution == OWN:
        return f"pip install --force-reinstall {OWN}"
    return f"pip uninstall {plugin.distribution}"


def _key(plugin: Plugin) -> str:
    return f"{plugin.distribution}:{plugin.name}"


def _warn_of_clashes(kind: str, entries: Sequence[Entry[Any]]) -> None:
    for name in sorted({entry.info.name for entry in entries}):
        same = [entry for entry in entries if entry.info.name == name]
        if len(same) > 1:
            names = " or ".join(entry.qualified for entry in same)
            foreign = next(e.plugin.distribution for e in same if e.plugin.distribution != OWN)
            _warn(
                f"{kind} `{name}` comes from {len(same)} distributions: write {names}; "
                f"way out: pip uninstall {foreign}"
            )


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=2)


_GROUP = "mvw"


@dataclass(frozen=True, slots=True)
class Offered:
    """One entry point, or a distribution whose entry points can't be read."""

    distribution: str
    version: str
    name: str
    value: str
    entry_point: EntryPoint | None
    problem: str | None = None


def offered() -> Iterator[Offered]:
    """Yield every entry point of the group; the first of several copies of a distribution wins.

    `importlib.metadata.entry_points` parses the files of all distributions and raises if one of
    them is malformed. Looking for the group's name first is both safe and much faster.
    """
    seen: set[str] = set()
    for dist in distributions():
        text = _entry_points_of(dist)
        if f"[{_GROUP}]" not in text:
            continue
        name, version = _identity(dist)
        normal = name.lower().replace("_", "-").replace(".", "-")
        if normal in seen:
            continue
        seen.add(normal)
        try:
            entries = [entry for entry in dist.entry_points if entry.group == _GROUP]
        except Exception as error:  # malformed lines raise whatever the parser stumbles over
            problem = f"entry_points.txt can't be read ({type(error).__name__}: {error})"
            yield Offered(name, version, "?", "", None, problem)
            continue
        for entry in entries:
            yield Offered(name, version, entry.name, entry.value, entry)


def _entry_points_of(dist: Distribution) -> str:
    try:
        return dist.read_text("entry_points.txt") or ""
    except (OSError, ValueError):  # not UTF-8, or gone since the folder was listed
        return ""


def _identity(dist: Distribution) -> tuple[str, str]:
    """Name and version, from the folder's name where the metadata file is missing."""
    try:
        # The e-mail parser behind `dist.metadata` would read the whole README to get there, and
        # raises on an absent file.
        header = (dist.read_text("METADATA") or "").partition("\n\n")[0]
    except (OSError, ValueError):
        header = ""
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    if "Name" in fields and "Version" in fields:
        return fields["Name"].strip(), fields["Version"].strip()
    folder = getattr(dist, "_path", None)
    name, _, version = (folder.stem if folder is not None else "unknown").partition("-")
    return name.replace("_", "-"), version or "unknown"


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
