"""What went wrong between this machine and the hub, told in three lines.

Errors are told apart by the types of huggingface_hub, and a full disk by its number. It asks no
network.
"""

from __future__ import annotations

import errno
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress

from mvw_cli import NotFetched, on_the_hub

OTHERS = "mvw list profiles"


def of_the_hub(error: BaseException, name: str, revision: str | None) -> NotFetched | None:
    """Say what the hub, or the way to it, did not give; None where it was something else."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if disk_is_full(error):
        return no_space(name)
    causes = list(_chain(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    if is_a(GatedRepoError):
        return NotFetched(
            f"{name} is gated, and this machine has no access to it.",
            cause="Its owners want the terms accepted on its page, by a logged-in user.",
            hint="hf auth login",
        )
    if is_a(RepositoryNotFoundError):
        return NotFetched(
            f"There is no model {name} on the hub.",
            cause="The name is wrong, or it is private and this machine is not logged in.",
            hint=OTHERS,
        )
    if is_a(RevisionNotFoundError):
        command = ["mvw", "infer", "scene.png", "QUESTION", "--model", name]
        return NotFetched(
            f"{name} has no revision {revision}.",
            cause="The hub knows no branch, tag or commit of that name for it.",
            hint=shlex.join([*command, "--set", "revision=main"]),
        )
    if is_a(OfflineModeIsEnabled) or (is_a(LocalEntryNotFoundError) and _offline()):
        return NotFetched(
            f"{name} is not on this machine.",
            cause="The hub is not asked: offline mode is on.",
            hint=download(name),
        )
    if is_a(LocalEntryNotFoundError, http_error(), ConnectionError):
        return NotFetched(
            f"{name} can't be fetched: the hub does not answer.",
            cause="There is no network or the hub is down, and the model is not on this machine.",
            hint=download(name),
        )
    return None


def disk_is_full(error: BaseException) -> bool:
    """Whether an error comes from a write for which the disk had no room.

    What downloads may be written in Rust, which tells the number in its text only.
    """
    return any(
        (isinstance(one, OSError) and one.errno == errno.ENOSPC)
        or f"(os error {errno.ENOSPC})" in str(one)
        for one in _chain(error)
    )


def no_space(name: str) -> NotFetched:
    """Say that a model did not fit on the disk while it was fetched."""
    from huggingface_hub import constants

    left = ""
    with suppress(OSError):
        left = f", which has {shutil.disk_usage(constants.HF_HUB_CACHE).free / 2**30:.1f} GiB left"
    return NotFetched(
        f"{name} can't be stored: the disk is full.",
        cause=f"It was being written to {constants.HF_HUB_CACHE}{left}.",
        hint="hf cache ls",
    )


def download(name: str) -> str:
    """Write the command that fetches a model, where it is one of the hub's."""
    return f"hf download {shlex.quote(name)}" if on_the_hub(name) else OTHERS


def _offline() -> bool:
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def http_error() -> type[Exception]:
    """Name what the HTTP library raises on which this version of the hub is built."""
    from huggingface_hub import errors

    kind: type[Exception] = vars(errors)["HTTPError"]
    return kind


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
