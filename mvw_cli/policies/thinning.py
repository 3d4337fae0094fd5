"""What the policies share that keep a fixed part of the vision tokens from some layer on.

How many stay is settled here, once for all of them, so that a comparison at one `keep` is fair.
"""

from mvw_cli.policies.at_layer import AtLayer


class Thinning(AtLayer):
    """Base of the policies with a field `keep`.

    Raises:
        ValueError: `keep` is not above 0 and at most 1, or as `AtLayer`.
    """

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError("keep must be above 0 and at most 1")

    def part(self) -> float:
        return self.keep


def kept(tokens: int, keep: float) -> int:
    """Count how many of some vision tokens stay: the nearest number, halves up, at least 1."""
    return min(tokens, max(1, int(tokens * keep + 0.5)))
