"""Where the records of a run end up: always in a log on this machine, and from there elsewhere.

A table is made of the log when a run ends, and so is the copy at an address of fsspec: neither can
be appended to safely.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mvw_cli.batch.items import is_address
from mvw_cli.batch.source.remote import fetch_file, store_file
from mvw_cli.batch.store.fingerprint import sidecar_path
from mvw_cli.errors import UsageProblem

LOG = ".jsonl"
TABLES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Output:
    """The files of one run."""

    name: str
    """What the user calls it."""
    log: Path
    """Records as they come, one JSON line each."""
    table: Path | None = None
    """The same as a table, at the end."""
    address: str | None = None
    """Where the result is copied to, at the end."""

    def fetch(self) -> bool:
        """Bring a log that another machine has left at the address; return whether there was one.

        A log that is here is newer, and stays.

        Raises:
            MvwError: the address can't be looked up.
        """
        if self.address is None or self.log.exists():
            return False
        log, sidecar = self._addresses(self.address)
        if not fetch_file(log, self.log):
            return False
        fetch_file(sidecar, sidecar_path(self.log))
        return True

    def publish(self) -> None:
        """Make the table, and copy everything to the address.

        Raises:
            MvwError: the table can't be written, or the address is not reached; the log is whole.
        """
        if not self.log.exists():
            return
        if self.table is not None:
            from mvw_cli.batch.store.export import export  # few runs have a table

            export(self.log, self.table)
        if self.address is None:
            return
        log, sidecar = self._addresses(self.address)
        store_file(self.log, log)
        if sidecar_path(self.log).exists():
            store_file(sidecar_path(self.log), sidecar)
        if self.table is not None:
            store_file(self.table, self.address)

    def _addresses(self, address: str) -> tuple[str, str]:
        """Return where the log goes, and its sidecar."""
        log = address if self.table is None else f"{address}{LOG}"
        return log, log + sidecar_path(self.log).name.removeprefix(self.log.name)


def is_table(path: Path) -> bool:
    """Whether a file of this name is a table."""
    return path.suffix.lower() in TABLES


def log_of(output: Path) -> Path:
    """Name the log of an output: itself, or the file beside a table, as `answers.csv.jsonl`."""
    return output.with_name(f"{output.name}{LOG}") if is_table(output) else output


def check_name(name: str, command: str) -> None:
    """Refuse an output whose name does not tell what it is.

    Args:
        command: that does the same with a name that does.

    Raises:
        UsageProblem: it ends in something else than .jsonl, .csv or .parquet.
    """
    suffix = "" if name.endswith("/") else Path(name).suffix
    if suffix.lower() not in (LOG, *TABLES):
        raise UsageProblem(
            f"-o {name}: records go to a .jsonl, .csv or .parquet file",
            cause=f"its name ends in {suffix}" if suffix else "its name has no such ending",
            hint=command,
        )


def plan_output(given: str | None, default: str) -> Output:
    """Work out the files from what the user asks for.

    Args:
        given: a path or an address that ends in .jsonl, .csv or .parquet; None takes the default.

    Raises:
        UsageProblem: it ends in something else.
    """
    name = given or default
    folder, slash, last = name.rpartition("/")
    better = f"{folder}{slash}{default}"
    if last.strip("-") and not last.startswith("."):
        better = f"{name.removesuffix(Path(name).suffix)}{LOG}"
    check_name(name, shlex.join(["mvw", "batch", "IMAGES", "QUESTION", "-o", better]))
    address = name if is_address(name) else None
    local = Path(last) if address else Path(name)
    log = log_of(local)
    return Output(name, log, table=local if log != local else None, address=address)
