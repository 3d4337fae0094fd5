"""Where the records of a run end up: always in a log on this machine, and from there elsewhere.

A table is made of the log when a run ends, and so is the copy at an address of fsspec: neither can
be appended to safely. It does not know how records are made.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mvw_cli.batch.source.remote import fetch_file, is_address, store_file
from mvw_cli.batch.store.sidecar import sidecar_path
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

    @property
    def local(self) -> Path:
        """The result on this machine."""
        return self.table or self.log

    def fetch(self) -> bool:
        """Bring a log that another machine has left at the address; say whether there was one.

        A log that is here is newer, and stays.

        Raises:
            MvwError: the address can't be looked up.
        """
        if self.address is None or self.log.exists():
            return False
        there = self._log_address
        if not fetch_file(there, self.log):
            return False
        fetch_file(f"{there}{_sidecar_ending(self.log)}", sidecar_path(self.log))
        return True

    def publish(self) -> None:
        """Make the table, and copy everything to the address.

        Raises:
            MvwError: the table can't be written, or the address is not reached; the log is whole.
        """
        if not self.log.exists():
            return
        if self.table is not None:
            from mvw_cli.batch.store.export import export

            export(self.log, self.table)
        if self.address is None:
            return
        store_file(self.log, self._log_address)
        if sidecar_path(self.log).exists():
            ending = _sidecar_ending(self.log)
            store_file(sidecar_path(self.log), f"{self._log_address}{ending}")
        if self.table is not None:
            store_file(self.table, self.address)

    @property
    def _log_address(self) -> str:
        assert self.address is not None
        return self.address if self.table is None else f"{self.address}{LOG}"


def plan_output(given: str | None, default: str) -> Output:
    """Work out the files from what the user asks for.

    Args:
        given: a path or an address that ends in .jsonl, .csv or .parquet; None takes the default.

    Raises:
        UsageProblem: it ends in something else.
    """
    name = given or default
    suffix = "" if name.endswith("/") else Path(name).suffix
    ending = suffix.lower()
    if ending not in (LOG, *TABLES):
        folder, slash, last = name.rpartition("/")
        known = f"{folder}{slash}{default}"
        if last.strip("-") and not last.startswith("."):
            known = f"{name.removesuffix(suffix)}{LOG}"
        raise UsageProblem(
            f"-o {name}: records go to a .jsonl, .csv or .parquet file",
            cause=f"its name ends in {ending}" if ending else "its name has no such ending",
            hint=shlex.join(["mvw", "batch", "IMAGES", "QUESTION", "-o", known]),
        )
    address = name if is_address(name) else None
    local = Path(name.rpartition("/")[2]) if address else Path(name)
    if ending == LOG:
        return Output(name, local, address=address)
    return Output(name, local.with_name(f"{local.name}{LOG}"), table=local, address=address)


def _sidecar_ending(log: Path) -> str:
    return sidecar_path(log).name.removeprefix(log.name)
