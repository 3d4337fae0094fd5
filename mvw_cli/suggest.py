"""Did-you-mean: the one place that decides which known word a user probably meant.

It knows words, and not what they name.
"""

from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Find the known word that is nearest to `word`, or None where none is near."""
    from difflib import get_close_matches

    spelling = {name.lower().replace("-", "_"): name for name in known}
    near = get_close_matches(word.lower().replace("-", "_"), spelling, n=1, cutoff=0.6)
    return spelling[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """Write "did you mean `x`?", or `otherwise` where nothing is near."""
    near = closest(word, known)
    return f"did you mean `{near}`?" if near else otherwise
