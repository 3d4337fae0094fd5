"""The plugin seam: load what is installed, keep what works, remember why the rest does not.

A plugin is whatever an entry point of the group `mvw` names. Nothing a plugin does wrong, from a
missing module to a raising hook, gets further than its own record here: the caller sees a
`PluginWarning` with the way out, and an error only on using what is broken. mvw's own adapters
and policies come in through the same door. No class of an adapter or policy is imported here.

`MVW_LOAD_PLUGINS=a,b` loads only these plugins (by entry-point or distribution name) besides
mvw's own; empty loads none.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from traceback import walk_tb
from typing import Generic, Literal, TypeVar

import click
import pluggy

from mvw_cli import console, hookspecs
from mvw_cli.adapter import Adapter, AdapterInfo
from mvw_cli.errors import MvwError, PluginProblem, PluginWarning
from mvw_cli.policy import PolicyInfo, WithdrawalPolicy
from mvw_cli.text import did_you_mean, error_line

OWN = "mvw"
"""The distribution that this package is."""

Status = Literal["ok", "broken"]
Kind = Literal["adapter", "policy"]
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

    @property
    def key(self) -> str:
        """Its name in pluggy's manager."""
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True, slots=True)
class Entry(Generic[InfoT]):
    """An adapter or policy, and the plugin that brings it."""

    info: InfoT
    plugin: Plugin
    problem: str | None = None
    """Why it can't be used, or None."""


@dataclass(slots=True)
class Registry:
    """All that the installed plugins bring."""

    plugins: list[Plugin] = field(default_factory=list)
    adapters: list[Entry[AdapterInfo]] = field(default_factory=list)
    policies: list[Entry[PolicyInfo]] = field(default_factory=list)
    profiles: list[tuple[Path, Plugin]] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("mvw"))

    def call(self, plugin: Plugin, hook: str, **arguments: object) -> None:
        """Call the hook of one plugin: in a joint call one that raises would end the others'."""
        others = [module for name, module in self.manager.list_name_plugin() if name != plugin.key]
        self.manager.subset_hook_caller(hook, others)(**arguments)


@cache
def load_plugins() -> Registry:
    """Load every installed plugin, once per process, and warn of those that don't work."""
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    # In an order of our own: the first wins a clash of names.
    found = sorted(offered(), key=lambda one: (one[0].distribution != OWN, one[0].distribution))
    if not any(plugin.distribution == OWN for plugin, _ in found):
        _warn(
            "mvw runs here without being installed, so its own adapters are not found; "
            "way out: pip install -e ."
        )
    for plugin, entry_point in _wanted(found):
        registry.plugins.append(plugin)
        if _attempt(plugin, partial(_register, registry, plugin, entry_point)) is not None:
            continue
        _take(
            registry,
            plugin,
            "mvw_register_adapters",
            AdapterInfo,
            registry.adapters,
            plugin.adapters,
        )
        _take(
            registry,
            plugin,
            "mvw_register_policies",
            PolicyInfo,
            registry.policies,
            plugin.policies,
        )
        _attempt(plugin, partial(_take_profiles, registry, plugin))
    return registry


def plugin_commands(taken: Collection[str]) -> dict[str, click.Command]:
    """Ask the plugins for their commands; names in `taken` and first comers win a clash."""
    registry = load_plugins()
    commands: dict[str, click.Command] = {}
    for plugin in registry.plugins:
        scratch = click.Group("mvw")
        call = partial(registry.call, plugin, "mvw_register_commands", cli=scratch)
        if _attempt(plugin, call) is not None:
            continue
        for name, command in scratch.commands.items():
            if name in taken or name in commands:
                _warn_of_clash("command", name, plugin)
                continue
            commands[name] = command
            plugin.commands.append(name)
    return commands


def offered() -> Iterator[tuple[Plugin, EntryPoint | None]]:
    """Yield every entry point of the group; the first of several copies of a distribution wins.

    A distribution whose entry points can't be read comes with None, and its plugin tells why.
    """
    seen: set[str] = set()
    for dist in distributions():
        # `importlib.metadata.entry_points` would parse the files of all distributions, which takes
        # longer and raises where one that has nothing to do with mvw is malformed.
        damage = None
        try:
            is_ours = "[mvw]" in (dist.read_text("entry_points.txt") or "")
        except UnicodeDecodeError as error:
            is_ours, damage = b"[mvw]" in error.object, error_line(error)
        if not is_ours:
            continue
        name, version = _name_and_version(dist)
        normal = name.lower().replace("_", "-").replace(".", "-")
        if normal in seen:
            continue
        seen.add(normal)
        try:
            points = [] if damage else [*dist.entry_points.select(group="mvw")]
        except Exception as error:  # the parser's, of a file that was cut or written by hand
            damage = error_line(error)
        if damage:
            cause = f"its entry_points.txt is damaged: {damage}"
            yield Plugin(name, version, "entry_points.txt", "", cause=cause), None
            continue
        for entry_point in points:
            yield Plugin(name, version, entry_point.name, entry_point.value), entry_point


def _name_and_version(dist: Distribution) -> tuple[str, str]:
    """Read them off METADATA, or off the folder's name where that file is gone or damaged."""
    with contextlib.suppress(Exception):
        name, version = dist.metadata["Name"], dist.metadata["Version"]
        if name and version:
            return name, version
    folder = Path(str(getattr(dist, "_path", ""))).stem  # mvw_x-1.0.dist-info
    name, _, version = folder.partition("-")
    return name or "unknown", version or "unknown"


def _wanted(
    found: list[tuple[Plugin, EntryPoint | None]],
) -> list[tuple[Plugin, EntryPoint | None]]:
    chosen = os.environ.get("MVW_LOAD_PLUGINS")
    if chosen is None:
        return found
    names = {name.strip() for name in chosen.split(",") if name.strip()}
    return [one for one in found if {OWN, *names} & {one[0].name, one[0].distribution}]


def _attempt(plugin: Plugin, step: Callable[[], None]) -> str | None:
    """Run one step of a plugin; whatever it raises becomes its record, a warning and the result."""
    own = plugin.distribution == OWN
    try:
        # A plugin that prints while it is imported must not spoil a JSON document.
        with contextlib.nullcontext() if own else console.stdout_to_stderr():
            step()
    except (Exception, SystemExit) as error:
        cause = error_line(error)
        if plugin.status == "ok":  # one line for each plugin: its first fault is the one to mend
            repair = "install --force-reinstall" if plugin.distribution == OWN else "uninstall"
            plugin.way_out = f"pip {repair} {plugin.distribution}"
            plugin.status, plugin.cause = "broken", cause
            what = f"plugin {plugin.distribution} {plugin.version} ({plugin.name}) is broken"
            _warn(f"{what}: {cause}; way out: {plugin.way_out}")
        return cause
    return None


def _register(registry: Registry, plugin: Plugin, entry_point: EntryPoint | None) -> None:
    if entry_point is None:
        raise ValueError(plugin.cause)
    module = entry_point.load()
    plugin.path = getattr(module, "__file__", None)
    specified = [name for name in vars(hookspecs) if name.startswith("mvw_")]
    implemented = [
        name for name in dir(module) if registry.manager.parse_hookimpl_opts(module, name)
    ]
    for wrong in set(implemented).difference(specified):
        guess = did_you_mean(wrong, specified, otherwise=f"the hooks are {', '.join(specified)}")
        raise TypeError(f"there is no hook `{wrong}`; {guess}")
    if not implemented:
        raise TypeError("it implements no hook: is @hookimpl missing?")
    registry.manager.register(module, name=plugin.key)
    plugin.hooks = tuple(implemented)


def _take_profiles(registry: Registry, plugin: Plugin) -> None:
    def register(folder: Path) -> None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"profile folder {folder} does not exist")
        registry.profiles.append((Path(folder), plugin))
        plugin.profiles.append(str(folder))

    registry.call(plugin, "mvw_register_profiles", register=register)


def _take(
    registry: Registry,
    plugin: Plugin,
    hook: str,
    kind: type[InfoT],
    entries: list[Entry[InfoT]],
    names: list[str],
) -> None:
    """Add what a hook of a plugin registers to `entries`, and its names to the plugin's `names`."""
    taken: list[InfoT] = []

    def register(info: InfoT) -> None:
        if not isinstance(info, kind):
            raise TypeError(f"register() takes {kind.__name__}, not {type(info).__name__}")
        if not info.name or ":" in info.name or info.target.count(":") != 1:
            raise ValueError(f'{info!r}: no ":" in the name, one in the target')
        if info.name in [*names, *(one.info.name for one in entries)]:
            _warn_of_clash(kind.__name__.removesuffix("Info").lower(), info.name, plugin)
            return
        names.append(info.name)
        taken.append(info)

    failed = _attempt(plugin, partial(registry.call, plugin, hook, register=register))
    entries += [Entry(info, plugin, failed) for info in taken]


def _warn_of_clash(what: str, name: str, plugin: Plugin) -> None:
    _warn(
        f"{what} `{name}` of plugin {plugin.distribution} is hidden by another of that name; "
        f"way out: pip uninstall {plugin.distribution}"
    )


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=2)


# -- what goes wrong later -------------------------------------------------------------------------


def faulty(kind: Kind, name: str, what: str, cause: str, hint: str | None = None) -> PluginProblem:
    """Return the error for an adapter or policy that does not keep to its contract.

    Args:
        what: it did, as `returned None from load()`.
        cause: what is wanted instead, as a sentence's part.
        hint: where another version is not the first thing to try.
    """
    entries: Sequence[Entry[AdapterInfo] | Entry[PolicyInfo]] = load_plugins().adapters
    if kind == "policy":
        entries = load_plugins().policies
    plugin = next((entry.plugin for entry in entries if entry.info.name == name), None)
    origin = "" if plugin is None else f" ({plugin.distribution} {plugin.version})"
    other = "mvw plugins" if plugin is None else f"pip install --upgrade {plugin.distribution}"
    return PluginProblem(f"{kind} `{name}`{origin} {what}", cause=cause, hint=hint or other)


def culprit(error: BaseException) -> PluginProblem | None:
    """Find the plugin of another distribution in whose code an error arose; None: in no such."""
    registry = load_plugins()
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    for plugin in registry.plugins:
        package = re.split(r"[.:]", plugin.module)[0]
        mine = [one for one in modules if one and one.partition(".")[0] == package]
        if plugin.distribution == OWN or not mine:
            continue
        what = f"plugin `{plugin.name}`"
        for kind, entries in (("adapter", registry.adapters), ("policy", registry.policies)):
            for entry in entries:
                if entry.plugin is plugin and entry.info.target.partition(":")[0] in mine:
                    what = f"{kind} `{entry.info.name}`"
        return PluginProblem(
            f"{what} of {plugin.distribution} {plugin.version} has failed",
            cause=error_line(error),
            hint="mvw infer IMAGE QUESTION --debug",
        )
    return None


# -- by name -------------------------------------------------------------------------------------

_LISTING = {"adapter": "mvw list adapters", "policy": "mvw list policies"}


def find_adapter(name: str) -> Entry[AdapterInfo]:
    """Find a usable adapter by its name, without importing it.

    Raises:
        PluginProblem: unknown or broken.
    """
    return _find("adapter", name, load_plugins().adapters)


def comes_with_adapter(model: str, adapter: str) -> bool:
    """Whether a model lies inside the package of an adapter: what does has no slash in its name."""
    return "/" not in model and model in find_adapter(adapter).info.checkpoints


def load_adapter(name: str) -> Adapter:
    """Import the class of an adapter and make an instance of it.

    Raises:
        PluginProblem: as `find_adapter`, or its class can't be imported or is no adapter.
    """
    with _imported("adapter", find_adapter(name)) as found:
        if not (isinstance(found, type) and issubclass(found, Adapter)):
            raise TypeError(f"{found!r} is not a subclass of Adapter")
        adapter = found()  # raises where a method is missing
    return adapter


def find_policy(name: str) -> Entry[PolicyInfo]:
    """Find a usable policy by its name, without importing it.

    Raises:
        PluginProblem: unknown or broken.
    """
    return _find("policy", name, load_plugins().policies)


def load_policy(name: str) -> type[WithdrawalPolicy]:
    """Import the class of a withdrawal policy.

    Raises:
        PluginProblem: as `find_policy`, or its class can't be imported or is no policy.
    """
    with _imported("policy", find_policy(name)) as found:
        if not (isinstance(found, type) and issubclass(found, WithdrawalPolicy)):
            raise TypeError(f"{found!r} is not a subclass of WithdrawalPolicy")
        if not is_dataclass(found):
            raise TypeError(f"{found!r} is not a dataclass")
        if getattr(found, "name", None) != name:
            raise TypeError(f'it is registered as `{name}`: write name: ClassVar[str] = "{name}"')
        for one in fields(found):
            if hasattr(WithdrawalPolicy, one.name):
                raise TypeError(f"its field `{one.name}` hides the method of that name")
    return found


def _find(kind: Kind, name: str, entries: Sequence[Entry[InfoT]]) -> Entry[InfoT]:
    for entry in entries:
        if entry.info.name == name:
            if entry.problem is not None:
                raise _unusable(kind, name, entry.plugin, entry.problem)
            return entry
    for plugin in load_plugins().plugins:
        # A plugin that does not load can't say what it brings; its own name is the best clue.
        names = [plugin.name, plugin.distribution, plugin.distribution.removeprefix(f"{OWN}-")]
        if plugin.status == "broken" and name in names:
            raise _unusable(kind, name, plugin, plugin.cause)
    known = sorted({entry.info.name for entry in entries})
    cause = did_you_mean(name, known, otherwise=f"known: {', '.join(known) or 'none'}")
    raise PluginProblem(f"there is no {kind} `{name}`", cause=cause, hint=_LISTING[kind])


@contextlib.contextmanager
def _imported(kind: Kind, entry: Entry[InfoT]) -> Iterator[object]:
    """Import what an entry names; turn whatever that or the block raises into a `PluginProblem`."""
    module, _, attribute = entry.info.target.partition(":")
    try:
        with console.stdout_to_stderr():  # here come the heavy modules, and those of others
            yield getattr(import_module(module), attribute)
    except MvwError:
        raise
    except (Exception, SystemExit) as error:
        cause: BaseException = error
        while isinstance(cause, ImportError) and cause.__cause__ is not None:
            cause = cause.__cause__  # transformers names what it was after, and not why
        raise _unusable(kind, entry.info.name, entry.plugin, error_line(cause)) from error


def _unusable(kind: Kind, name: str, plugin: Plugin, cause: str | None) -> PluginProblem:
    what = f"{kind} `{name}` of {plugin.distribution} {plugin.version} can't be used"
    hint = f"pip install --upgrade --force-reinstall {plugin.distribution}"
    return PluginProblem(what, cause=cause, hint=hint)
