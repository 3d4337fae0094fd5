"""Files that are not on this machine: addresses with `://`, read and written through fsspec.

fsspec comes with huggingface_hub; the package behind a protocol (s3fs, gcsfs, adlfs, …) does not.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import IO, Any, cast

from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import replacing
from mvw_cli.text import error_line


def open_address(address: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        UsageProblem: nobody here speaks the address's protocol.
        Exception: whatever the package behind the protocol raises.
    """
    filesystem, path = _resolve(address)
    return cast("IO[bytes]", filesystem.open(path, "rb"))


def is_remote_folder(address: str) -> bool | None:
    """Whether an address is a folder; None where there is nothing.

    Raises:
        MvwError: it cannot be looked up.
    """
    filesystem, path = _resolve(address)
    try:
        return bool(filesystem.isdir(path)) or (False if filesystem.exists(path) else None)
    except Exception as error:  # every package has its own
        raise _unreachable(address, error) from None


def list_address(address: str) -> list[tuple[str, bool]]:
    """List a folder: names, and whether each is a folder.

    Raises:
        MvwError: it cannot be listed.
    """
    filesystem, path = _resolve(address)
    try:
        found = filesystem.ls(path, detail=True)
    except Exception as error:  # as above
        raise _unreachable(address, error) from None
    named = ((one["name"].rstrip("/").rpartition("/")[2], one["type"]) for one in found)
    own = path.rstrip("/")  # object stores list a folder's own marker among its files
    return [
        (name, kind == "directory")
        for (name, kind), one in zip(named, found, strict=True)
        if name and one["name"].rstrip("/") != own
    ]


def fetch_file(address: str, target: Path) -> bool:
    """Copy a file to this machine, as a whole or not at all; False where there is none.

    Raises:
        MvwError: it cannot be read.
    """
    filesystem, path = _resolve(address)
    try:
        if not filesystem.isfile(path):
            return False
        with filesystem.open(path, "rb") as source, replacing(target) as file:
            shutil.copyfileobj(source, file)
    except Exception as error:  # every package has its own
        raise _unreachable(address, error) from None
    return True


def store_file(source: Path, address: str) -> None:
    """Copy a file from this machine to an address.

    Raises:
        MvwError: it cannot be written there; the message names the file that is here.
    """
    filesystem, path = _resolve(address, "write")
    try:
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(source), path)
    except Exception as error:  # as above
        raise MvwError(
            f"Cannot write {address}",
            cause=f"{error_line(error)}; {source} holds it on this machine",
            hint=f"ls -l {shlex.quote(str(source))}",
        ) from None


def _resolve(address: str, action: str = "read") -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise _no_package(address, error, action) from None
    except ValueError as error:
        protocol = address.partition("://")[0]
        raise UsageProblem(
            f"Cannot {action} {address}", cause=str(error), hint=_python(protocol)
        ) from None
    except Exception as error:  # credentials are looked for already here
        raise _unreachable(address, error, action) from None
    return filesystem, str(path)


def _no_package(address: str, error: ImportError, action: str) -> UsageProblem:
    missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
    protocol = address.partition("://")[0].rpartition("::")[2]
    package = (missing or "").partition(".")[0] or f"fsspec[{protocol}]"
    return UsageProblem(
        f"Cannot {action} {address}",
        cause=f"{protocol}:// needs the package {package}, which is not installed",
        hint=f"pip install {shlex.quote(package)}",
    )


def _python(protocol: str) -> str:
    code = "import fsspec; print(*fsspec.available_protocols())"
    return f"python -c {shlex.quote(code)}"


def _unreachable(address: str, error: Exception, action: str = "read") -> MvwError:
    return MvwError(
        f"Cannot {action} {address}",
        cause=error_line(error),
        hint=f"python -c {shlex.quote(f'import fsspec; print(fsspec.open({address!r}))')}",
    )
