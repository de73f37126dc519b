"""A report.json that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report.schema import SCHEMA_VERSION, Report


def read(path: Path) -> Report:
    """The report in a report.json, or in a folder that has one.

    Raises:
        NammTransferError: no such file, no JSON, another version of the schema, or something that does not fit it.
    """
    path = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NammTransferError(f"{str(path)!r} cannot be read as a report: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise NammTransferError(
            f"{str(path)!r} has schema version {version!r}, expected {SCHEMA_VERSION}: write it again from its records "
            "with namm-transfer report render, or use the release that wrote it"
        )
    try:
        return Report.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise NammTransferError(
            f"{str(path)!r} is no report of schema version {SCHEMA_VERSION}: {place}: {first['msg']}; write it again "
            "from its records with namm-transfer report render"
        ) from None
