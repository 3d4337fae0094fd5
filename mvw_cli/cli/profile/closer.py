"""What speed does not tell: what changes in the answers, and where the attention goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_cli.cli.process import ShutdownRequest
from mvw_cli.cli.profile.task import Begun, Task
from mvw_cli.cli.profile.view import ProfileView

if TYPE_CHECKING:
    from mvw_cli.bench.documents import Answers, AttentionMass
    from mvw_cli.session import Session


@dataclass(slots=True)
class Closer:
    """What was found, as far as it came."""

    answers: Answers | None = None
    attention: AttentionMass | None = None


class _Stopped(Exception):
    """The user has had enough."""


def look_closer(
    task: Task, begun: Begun, view: ProfileView, shutdown: ShutdownRequest, found: Closer
) -> None:
    """Load the model here, and fill in what is wanted, as it is found.

    Raises:
        MvwError: the model can't be loaded or run.
    """
    wants_answers = _wanted(task, begun, task.answers) or task.suggest is not None
    wants_attention = _wanted(task, begun, task.attention_mass)
    if not (wants_answers or wants_attention):
        return
    view.stage("Loading the model to compare the answers")
    session = _session(task, begun)
    if wants_answers:
        found.answers = _answers(session, begun, view, shutdown)
    if wants_attention and not shutdown.requested:
        view.stage("Measuring the attention to the image")
        found.attention = _attention(session, begun, view, shutdown)


def _wanted(task: Task, begun: Begun, given: bool | None) -> bool:
    """Say whether to look: by default where the outcome means anything."""
    sensible = begun.items.meaningful and not task.random_weights
    return sensible if given is None else given


def _answers(
    session: Session, begun: Begun, view: ProfileView, shutdown: ShutdownRequest
) -> Answers:
    from mvw_cli.bench.documents import BASELINE
    from mvw_cli.bench.quality.answers import compare_answers
    from mvw_cli.profiles.withdrawal import withdrawal_policy

    items = begun.items.items
    arms = [arm for arm in begun.arms if arm.name != BASELINE]
    return compare_answers(
        session,
        items,
        {arm.name: withdrawal_policy(arm.profile) for arm in arms},
        progress=lambda number, doing: view.progress(
            f"Comparing the answers, {doing}, item", number, len(items)
        ),
        stopping=lambda: shutdown.requested,
    )


def _attention(
    session: Session, begun: Begun, view: ProfileView, shutdown: ShutdownRequest
) -> AttentionMass | None:
    from mvw_cli.bench.quality.attention import attention_mass

    def tick() -> None:
        if shutdown.requested:
            raise _Stopped

    try:
        return attention_mass(session, begun.items.items[0], tick=tick)
    except _Stopped:
        return None
    except ValueError as error:  # an item without vision tokens
        view.warn(f"No attention to the image is shown: {error}")
        return None


def _session(task: Task, begun: Begun) -> Session:
    from mvw_cli.session import open_session

    return open_session(
        begun.resolved.profile,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
    )
