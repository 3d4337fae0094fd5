"""Which files of a checkpoint's processor can't be had. It reads none of them."""

from __future__ import annotations

from contextlib import suppress

_OF_PROCESSORS = (
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json"),
)


def processor_lacks(name: str, revision: str | None = None) -> list[tuple[str, ...]]:
    """Name the files that no processor can do without and that can't be had.

    Each of them may go by several names, of which one would be enough.
    """
    from transformers.utils import cached_file

    def is_there(file: str) -> bool:
        found = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return found is not None

    return [files for files in _OF_PROCESSORS if not any(map(is_there, files))]


def lack_of_a_processor(name: str, revision: str | None = None) -> str | None:
    """Say in a sentence which files are missing; None where none is, or that can't be told."""
    with suppress(OSError, ValueError):
        lacking = [" or ".join(files) for files in processor_lacks(name, revision)]
        return f"There is no {', and no '.join(lacking)}." if lacking else None
    return None
