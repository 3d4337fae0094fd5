"""What answers depend on: answers of one log come from the same model, settings and code.

Not the device nor the attention kernel, so that another machine may go on with a log. The file
`<log>.run.json` has it, and which shards the log is for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli import __version__
from mvw_cli.files import replacing

if TYPE_CHECKING:
    from mvw_cli.profiles.resolution import Resolved

_SIDECAR_VERSION = 1
MOST_SHARDS = 10**6
_KINDS = {
    **dict.fromkeys(("mvw", "adapter_version", "policy_version"), str),
    **dict.fromkeys(("random_weights", "settled"), bool),
    "profile": dict,
    "revision": str | None,
}
"""What the facts of a fingerprint are, in a file that anybody may have changed."""

_IRRELEVANT = (
    *("device", "device_map", "attention", "description", "extends"),
    *("prompt.question", "images.min_pixels"),  # records say the question, and what was scaled
    "images.max_decoded_pixels",  # what it refuses is not answered
    "revision",  # what is loaded counts, not the name that it was asked for by
)

_READ_WHOLE = (
    *("*config*.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.jinja", "*.model", "*.tiktoken", "*.index.json"),
)
_WEIGHTS = ("*.safetensors", "*.bin")
_WINDOW = 64 * 1024
_SHOWN = 3
"""Differences that a message names."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that answers depend on, but for image and question."""

    mvw: str
    profile: Mapping[str, Any]
    """The resolved values that change answers, by dotted key."""
    adapter_version: str
    """Distribution that brings the adapter, and its version."""
    policy_version: str
    """The same of the withdrawal policy; of several policies each distribution once."""
    random_weights: bool = False
    revision: str | None = None
    """Commit of the hub, or digest of a folder's files; None where nothing tells it."""
    settled: bool = False
    """Whether the model has been loaded, so that `revision` is what there is to know."""

    def with_revision(self, revision: str | None) -> Fingerprint:
        """Fill in what loading the model told; None leaves what is known."""
        return replace(self, revision=revision or self.revision, settled=True)

    @property
    def short(self) -> str:
        """Hash of the whole, as records carry it: 12 hexadecimal digits."""
        content = {key: value for key, value in self.to_dict().items() if key != "settled"}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Serialise; what is read back from JSON is equal."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def difference(self, other: Fingerprint) -> list[tuple[str, Any, Any]]:
        """List what differs: the key, the value here, the value there.

        A revision that is still to be found out differs from none.
        """
        before, now = self._facts(), other._facts()
        if not (self.settled and other.settled):
            del before["revision"], now["revision"]
        keys = [*before, *(key for key in now if key not in before)]
        pairs = [(key, before.get(key), now.get(key)) for key in keys]
        return [(key, one, two) for key, one, two in pairs if one != two]

    def _facts(self) -> dict[str, Any]:
        content = self.to_dict()
        del content["settled"]
        profile = content.pop("profile")
        return {**profile, **content}


def fingerprint(resolved: Resolved, *, random_weights: bool) -> Fingerprint:
    """Take the fingerprint of a resolved profile, as far as it is known before loading.

    Raises:
        PluginProblem: its adapter or policy can't be used.
    """
    profile = {key: v for key, v in resolved.values().items() if key not in _IRRELEVANT}
    folder = Path(profile["model"] or "")
    is_folder = bool(profile["model"]) and os.path.isdir(folder)
    if is_folder:
        profile["model"] = folder.resolve().name  # it may lie elsewhere on another machine
    policies = [_distribution("policy", name) for name, _ in resolved.profile.withdrawal.steps]
    return Fingerprint(
        mvw=__version__,
        profile=json.loads(json.dumps(profile)),
        adapter_version=_distribution("adapter", profile["adapter"]),
        policy_version=", ".join(dict.fromkeys(policies)),
        random_weights=random_weights,
        revision=folder_digest(folder) if is_folder and not random_weights else None,
    )


def describe_difference(
    difference: list[tuple[str, Any, Any]], here: str = "before", there: str = "now"
) -> str:
    """Write differences on one line, the first few of them; `here`, `there`: of which values."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    lines = [f"{key}: {text(one)} {here}, {text(two)} {there}" for key, one, two in difference]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "; ".join(lines[:_SHOWN] + more)


def folder_digest(folder: Path) -> str:
    """Tell a folder's model from others: by the small files that configure it, and by the names,
    sizes, starts, middles and ends of the files of its weights, which are not read whole.
    """
    digest = hashlib.sha256()
    for path in _matching(folder, _READ_WHOLE):
        digest.update(f"{path.name}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for path in _matching(folder, _WEIGHTS):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _WINDOW)):
                file.seek(start)
                digest.update(file.read(_WINDOW))
    return f"sha256:{digest.hexdigest()}"


def files_of(resolved: Resolved) -> Iterator[str]:
    """List the files that a profile is read from, and those of its model and policies."""
    yield from map(str, resolved.files)
    for _, given in resolved.profile.withdrawal.steps:
        yield from (value for value in given.values() if isinstance(value, str))
    model = Path(resolved.profile.model or "").expanduser()
    if resolved.profile.model and model.is_dir():
        yield from map(str, _matching(model, (*_READ_WHOLE, *_WEIGHTS)))


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The content of `<log>.run.json`."""

    fingerprint: Fingerprint
    shards: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Items of each shard `(i, n)` that the log is for; empty where the work was not divided."""


def sidecar_path(log: Path) -> Path:
    """Name the file that goes with a log."""
    return log.with_name(f"{log.name}.run.json")


def read_sidecar(log: Path) -> Sidecar | None:
    """Read the file that goes with a log; None where it is missing or can't be read."""
    try:
        content = json.loads(sidecar_path(log).read_bytes())
        if content["schema_version"] != _SIDECAR_VERSION:
            return None
        shards = {(one["shard"][0], one["shard"][1]): one["listed"] for one in content["parts"]}
        known = Fingerprint(**content["fingerprint"])
        fits = all(isinstance(getattr(known, name), kind) for name, kind in _KINDS.items())
        for (i, n), listed in shards.items():
            fits = fits and 0 <= i < n <= MOST_SHARDS and isinstance(listed, int) and listed >= 0
        return Sidecar(known, shards) if fits else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def write_sidecar(log: Path, sidecar: Sidecar) -> None:
    """Write the file that goes with a log, whole or not at all."""
    content = {
        "schema_version": _SIDECAR_VERSION,
        "run": sidecar.fingerprint.short,
        "fingerprint": sidecar.fingerprint.to_dict(),
        "parts": [{"shard": shard, "listed": n} for shard, n in sorted(sidecar.shards.items())],
    }
    with replacing(sidecar_path(log)) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _distribution(kind: str, name: str) -> str:
    from mvw_cli.plugins import find_adapter, find_policy

    plugin = (find_adapter(name) if kind == "adapter" else find_policy(name)).plugin
    return f"{plugin.distribution} {plugin.version}"
