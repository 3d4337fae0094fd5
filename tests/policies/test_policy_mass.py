"""`mass`: the moving average of the vision attention mass."""

from __future__ import annotations

from walking import walk

from mvw_cli.policies.layers import probe_layers
from mvw_cli.policies.mass import Mass
from mvw_cli.policy import Signals, Withdraw


def steps(policy: Mass, masses: list[float | None]) -> list[int]:
    said = walk(policy, ["a "] * len(masses), [{"mass": mass} for mass in masses])
    assert all(one == [Withdraw()] for one in said.values())
    return list(said)


def test_it_withdraws_once_after_so_many_tokens_in_a_row() -> None:
    masses = [0.5, 0.05, 0.05, 0.5, 0.05, 0.05, 0.05, 0.05, 0.05]
    assert steps(Mass(threshold=0.1, patience=3, smoothing=1.0), masses) == [7]
    assert steps(Mass(threshold=0.1, patience=1, smoothing=1.0), masses) == [2]
    assert steps(Mass(threshold=0.1, patience=9, smoothing=1.0), masses) == []


def test_the_average_starts_at_the_first_mass_and_forgets_it_slowly() -> None:
    # 0.4, then 0.2, 0.1, 0.05, ...: half of what was, with nothing new.
    masses: list[float | None] = [0.4, 0.0, 0.0, 0.0, 0.0]
    assert steps(Mass(threshold=0.15, patience=1, smoothing=0.5), masses) == [3]
    assert steps(Mass(threshold=0.1, patience=1, smoothing=0.5), masses) == [4]  # 0.1 is not under
    assert steps(Mass(threshold=0.09, patience=2, smoothing=0.5), masses) == [5]


def test_a_spike_is_smoothed_away() -> None:
    masses: list[float | None] = [0.01, 0.01, 0.03, 0.01]
    assert steps(Mass(threshold=0.02, patience=4, smoothing=1.0), masses) == []
    assert steps(Mass(threshold=0.02, patience=4, smoothing=0.3), masses) == [4]


def test_min_delays_it_and_a_token_without_a_mass_changes_nothing() -> None:
    low: list[float | None] = [0.01] * 8
    assert steps(Mass(threshold=0.1, patience=2, smoothing=1.0, min=6), low) == [6]
    gaps = [None, 0.01, None, None, 0.01]
    assert steps(Mass(threshold=0.1, patience=2, smoothing=1.0), gaps) == [5]
    assert steps(Mass(threshold=0.1, patience=1), [None] * 5) == []


def test_it_asks_for_the_probe_layers() -> None:
    assert Mass(threshold=0.1).signals(tuple(range(32))) == Signals(mass=(5, 16, 26))
    assert Mass(threshold=0.1).signals((3, 8)) == Signals(mass=(3, 8))
    assert Mass(threshold=0.1).signals(()) == Signals()
    chosen = Mass(threshold=0.1, layers=[9, 2])
    assert chosen.signals(tuple(range(32))) == Signals(mass=(2, 9))
    assert chosen.signals(tuple(range(8))) == Signals(mass=(2, 7))
    assert chosen.signals((3, 8, 13)) == Signals(mass=(3, 8))
    assert chosen.signals(()) == Signals()


def test_probes_are_the_middles_of_the_thirds() -> None:
    assert probe_layers(range(3)) == (0, 1, 2)
    assert probe_layers(range(9)) == (1, 4, 7)
