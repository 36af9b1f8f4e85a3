"""What lies beside a training checkpoint: checksums of its files, and a seal over each record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..storage.checksums import METADATA_FILE, check_files, describe_files
from ..storage.directories import sync, sync_tree

FORMAT_VERSION = 1
ADVICE = "delete this step's directory to go on from the checkpoint before it"


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields and a checksum over them: Orbax keeps none."""
    fields = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(fields, sort_keys=True)
    return {**fields, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write_record(directory: Path) -> None:
    """Records the checksums of all files, beside those of the leaves, and flushes all to the disk.

    Orbax does not flush its metadata. After a crash before this the leaves' checksums do.
    """
    # Beside the checkpoint and moved in: one that is killed here must not leave half a record.
    beside = directory.parent / f".{directory.name}-{METADATA_FILE}"
    beside.write_text(json.dumps(seal({"files": describe_files(directory)})), encoding="utf-8")
    sync_tree(directory)
    sync(beside)
    beside.replace(directory / METADATA_FILE)
    sync(directory)
    sync(directory.parent)


def has_record(directory: Path) -> bool:
    """Whether `write_record` came to its end here."""
    return (directory / METADATA_FILE).exists()


def check_record(directory: Path) -> None:
    """Refuses damaged files before another library parses them.

    Raises:
        AdapterError: names the file.
    """
    file = directory / METADATA_FILE
    if not file.exists():
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if seal(record) != record:
            raise ValueError("wrong checksum")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{file} is damaged ({error}): {ADVICE}") from None
    check_files(directory, record["files"], ADVICE)


def parse_about(directory: Path, about: Any) -> tuple[dict[str, Any], Any]:
    """The manifest of the leaves and the user's own value.

    Raises:
        AdapterError: of another format version, or damaged.
    """
    if not isinstance(about, dict) or about.get("format_version") != FORMAT_VERSION:
        found = about.get("format_version") if isinstance(about, dict) else about
        raise AdapterError(
            f"the checkpoint {directory} has format version {found!r}, expected {FORMAT_VERSION}: "
            "resume with the version of lntune_jax that saved it"
        )
    if seal(about) != about:
        raise AdapterError(
            f"the checkpoint {directory} has a wrong checksum in its JSON file. It is damaged: "
            f"{ADVICE}"
        )
    return about["leaves"], about["extra"]
