"""Measurements of devices that were made before, one small file for each device and setting.

A file holds its whole key, so that no other measurement is taken for it. It does not know how a
device is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvw_cli.cost.case import Device


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Say where measurements are kept; the folder need not exist."""
    from mvw_cli.profiles.store import user_folder

    return user_folder(env).parent / "cache"


def read(folder: Path, key: dict[str, Any]) -> Device | None:
    """Read a former measurement; None where there is none that can be used."""
    from pydantic import TypeAdapter, ValidationError

    try:
        document = json.loads(_file(folder, key).read_text("utf-8"))
        if document["key"] != key:
            return None
        return TypeAdapter(Device).validate_python(document["measured"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def store(folder: Path, key: dict[str, Any], found: Device) -> None:
    """Keep a measurement; that it can't be kept is no reason to fail."""
    from mvw_cli.files import replacing

    document = json.dumps({"key": key, "measured": asdict(found)}, indent=2)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(_file(folder, key)) as file:
            file.write(document.encode("utf-8") + b"\n")


def _file(folder: Path, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"calibration-{digest[:16]}.json"
