"""Looking back: what was withdrawn is offloaded to host memory, and restored on a trigger.

A modifier: it changes what the policies before it say, and withdraws nothing of its own accord.
Withdrawing early costs accuracy where the model has to look again (arXiv 2503.13360, 2604.12358);
this is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from mvw_cli.policy import (
    Decide,
    Decision,
    Restore,
    Signals,
    StepView,
    Withdraw,
    WithdrawalPolicy,
    decisions,
    require,
)


@dataclass(frozen=True)
class LookBack(WithdrawalPolicy):
    """Offload what the policies before it withdraw; restore it when a trigger fires.

    The triggers are looked at after each token while something is offloaded, that of the withdrawal
    itself included. What comes back stays for `steps` tokens: it goes again after that many, or, if
    a trigger fires at that very token, after `steps` more. Meanwhile the policies before it
    are heard, and what they withdraw goes along with it.

    Raises:
        ValueError: no trigger is given, or a field is out of its range.
    """

    name: ClassVar[str] = "look-back"
    triggers: ClassVar[tuple[str, ...]] = ("entropy", "tag", "words")
    modifies: ClassVar[bool] = True

    entropy: float | None = field(
        default=None,
        metadata={"description": "Look back where the next token's entropy, in nats, reaches it."},
    )
    tag: str | None = field(
        default=None, metadata={"description": "Look back each time this text has been written."}
    )
    words: Sequence[str] | None = field(
        default=None,
        metadata={
            "description": "Look back each time one of these words or phrases has been written; "
            "in any case of letters, as whole words."
        },
    )
    steps: int | None = field(
        default=16,
        metadata={"description": "Tokens for which the vision stays; null: to the end."},
    )

    def __post_init__(self) -> None:
        if self.words is not None and not isinstance(self.words, str):
            object.__setattr__(self, "words", tuple(self.words))
        triggers = (self.entropy, self.tag, self.words)
        require(any(one is not None for one in triggers), "give entropy, tag or words")
        require(self.entropy is None or self.entropy >= 0, "entropy must be 0 or more")
        require(self.tag != "", "tag must not be empty")
        if self.words is not None:
            listed = not isinstance(self.words, str) and bool(self.words)
            empty = not all(map(str.strip, self.words))
            require(listed and not empty, "words must be a list of words, none of them empty")
        require(self.steps is None or self.steps >= 1, "steps must be 1 or more")

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return Signals(entropy=self.entropy is not None)

    def after(self, decide: Decide) -> Decide:
        fires = self._trigger()
        away: Withdraw | None = None
        back_since: int | None = None

        def offloading(view: StepView) -> list[Decision]:
            nonlocal away, back_since
            fired = fires(view)
            said: list[Decision] = []
            for decision in decisions(decide(view)):
                if isinstance(decision, Withdraw):
                    decision = replace(decision, offload=True)
                    away = decision if away is None else _both(away, decision)
                said.append(decision)
            if away is None:
                return said
            if back_since is None:
                back_since = view.step if fired else None
                return [*said, Restore()] if fired else said
            if self.steps is None or view.step < back_since + self.steps:
                return []
            back_since = view.step if fired else None
            return [] if fired else [away]

        return offloading

    def _trigger(self) -> Callable[[StepView], bool]:
        """Start a request: return what says, after each of its tokens, whether a trigger fires."""
        patterns = [_whole(words) for words in self.words or ()]
        if self.tag is not None:
            patterns.append((re.compile(f"{re.escape(self.tag)}()"), len(self.tag) - 1))
        seen = 0

        def fires(view: StepView) -> bool:
            nonlocal seen
            fresh, seen = seen, len(view.text)
            # The entropy of a sure token may come out a little below 0.
            entropy = None if view.entropy is None else max(view.entropy, 0.0)
            if self.entropy is not None and entropy is not None and entropy >= self.entropy:
                return True
            # What has been completed by the newest text may have begun before it.
            return any(
                found.end(1) > fresh
                for pattern, before in patterns
                for found in pattern.finditer(view.text, max(0, fresh - before))
            )

        return fires

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        deciding = [type(other).begin is not WithdrawalPolicy.begin for other in before]
        if not any(deciding):
            return f"{self.name} needs a policy before it that withdraws while decoding, as mvw"
        return super().conflict(before)

    def describe(self) -> str:
        parts = [] if self.entropy is None else [f"an entropy of {self.entropy:g}"]
        parts += [] if self.tag is None else [self.tag]
        parts += [f"“{word}”" for word in self.words or ()]
        length = "to the end" if self.steps is None else f"for {self.steps} tokens"
        return f"looks back at {' or '.join(parts)} {length}"


def _both(one: Withdraw, other: Withdraw) -> Withdraw:
    """Withdraw what either of them does."""
    if one.keep is None or other.keep is None:
        return replace(one, keep=None)
    keep = dict(one.keep)
    for layer, stays in other.keep.items():
        keep[layer] = keep[layer] & stays if layer in keep else stays
    return replace(one, keep=keep)


def _whole(words: str) -> tuple[re.Pattern[str], int]:
    """Make a pattern for whole words that have surely ended, and tell how long before it begins.

    What follows must have been written too: "wait" may still become "waiting".
    """
    parts = words.split()
    start = r"(?<!\w)" if re.match(r"\w", parts[0]) else ""
    end = r"(?=(\W))" if re.search(r"\w$", parts[-1]) else "()"
    text = r"\s".join(map(re.escape, parts))
    return re.compile(start + text + end, re.IGNORECASE), len(" ".join(parts))
