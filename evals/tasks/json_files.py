"""Reading and checking of JSON files from others: every problem becomes one error that names file and entry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError

LARGEST = 1e9
"""Largest number accepted; numbers are seconds, counts and indices, and larger ones are mistakes."""


def read_json(file: Path, kind: type[list[Any]] | type[dict[str, Any]], what: str = "benchmark file") -> Any:
    """Read the list or object in a JSON file in UTF-8.

    Raises:
        NammTransferError: it cannot be read, is no JSON (NaN and infinity are none), holds text that is no Unicode
            (lone surrogates), is nested too deeply, or holds something else; the message names file and entry.
    """
    where = f"{what} {str(file)!r}"
    try:
        content = parse_json(file.read_bytes(), where)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise NammTransferError(f"{where} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise NammTransferError(f"{where} holds a {type(content).__name__}; expected a {kind.__name__}")
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for name, entry in entries:
        _check_writable(entry, f"{where}, entry {name}")
    return content


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON text in UTF-8; raise a `NammTransferError` that begins with `where` if it is invalid."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise NammTransferError(f"{where} cannot be read: {reason}") from error


def parse_line(data: bytes, where: str) -> dict[str, Any]:
    """Parse the object in a line of JSON; raise a `NammTransferError` that begins with `where` if it is none."""
    value = parse_json(data, where)
    if not isinstance(value, dict):
        raise NammTransferError(f"{where} is a {type(value).__name__}; expected an object")
    _check_writable(value, where)
    return value


def _check_writable(value: Any, where: str) -> None:
    """Refuse values that Python's parser accepts but that JSON cannot represent (NaN, lone surrogates)."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise NammTransferError(f"{where} holds text that is no Unicode: {error.reason}") from None
    except ValueError:
        raise NammTransferError(f"{where} holds a number that is NaN or infinite; expected finite numbers") from None
    except RecursionError:
        raise NammTransferError(f"{where} is nested too deeply") from None


def expect(entry: Any, fields: Mapping[str, type], where: str) -> None:
    """Raise `NammTransferError` unless `entry` is an object with these fields, of these types.

    A float may be written as a whole number; numbers lie between 0 and `LARGEST`.
    """
    if not isinstance(entry, dict):
        raise NammTransferError(f"{where} is a {type(entry).__name__}; expected an object")
    for key, kind in fields.items():
        value = entry.get(key)
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise NammTransferError(f"{where}: {key!r} is {repr(value)[:80]}; expected a {kind.__name__}")
        if isinstance(value, int | float) and not (0 <= value <= LARGEST and math.isfinite(value)):
            raise NammTransferError(f"{where}: {key!r} is {str(value)[:80]}; expected 0 to {LARGEST:g}")
