"""Arrays of samples: written one by one under their SHA-256 while a run goes, packed into one kept.npz at its end."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.files import write_atomic

MOST_BYTES = 1 << 28
"""A larger array in an archive is not unpacked."""

_NAME = re.compile("[0-9a-f]{64}")
# Not there, not in it, damaged, encrypted, or packed in a way that Python does not know.
_UNREADABLE = (OSError, KeyError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class ArrayStore:
    """The arrays of a report folder, by the SHA-256 of their .npy bytes."""

    def __init__(self, folder: Path) -> None:
        self.loose = folder / "arrays"
        self.packed = folder / "kept.npz"

    def put(self, array: np.ndarray) -> str:
        """Store an array, return its name. Object arrays (which would need pickle) are refused."""
        if np.asarray(array).dtype.hasobject:
            raise NammTransferError(f"cannot store an array of dtype {np.asarray(array).dtype}; expected numbers")
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(array), allow_pickle=False)
        name = hashlib.sha256(buffer.getvalue()).hexdigest()
        if not (self.loose / f"{name}.npy").exists():
            write_atomic(self.loose / f"{name}.npy", buffer.getvalue())
        return name

    def get(self, name: str) -> np.ndarray:
        """The array of that name; refused if it is not there or its bytes do not hash to its name."""
        data = self._bytes(name)
        if data is None or hashlib.sha256(data).hexdigest() != name:
            raise NammTransferError(f"array {name!r} is {'missing' if data is None else 'damaged'} in {self.packed}")
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, MemoryError, OverflowError) as error:
            raise NammTransferError(f"array {name!r} in {self.packed} is no .npy file: {error}") from None

    def _bytes(self, name: str) -> bytes | None:
        if not _NAME.fullmatch(name):  # it comes from a record, and would be a path
            return None
        loose = self.loose / f"{name}.npy"
        try:
            if loose.is_file():
                return loose.read_bytes()
            with zipfile.ZipFile(self.packed) as archive:
                member = archive.getinfo(f"{name}.npy")
                return archive.read(member) if member.file_size <= MOST_BYTES else None
        except _UNREADABLE:
            return None

    def _names(self) -> set[str]:
        """Names of all arrays that are here."""
        loose = {path.stem for path in self.loose.glob("*.npy")}
        try:
            with zipfile.ZipFile(self.packed) as archive:
                return loose | {Path(name).stem for name in archive.namelist()}
        except _UNREADABLE:
            return loose

    def pack(self, names: Iterable[str] = (), sources: Iterable[ArrayStore] = (), only: bool = False) -> None:
        """Put all arrays that are here, and the named ones from `sources`, into kept.npz and remove the loose files.

        Those of a run that was put aside stay, as its records do. Arrays that are nowhere to be found are left out: the
        records still say that they existed. With `only`, arrays that are here and not named go.
        """
        stores = [self, *sources]
        wanted = set(names) if only else self._names().union(names)
        found = {name: next((data for store in stores if (data := store._bytes(name))), None) for name in wanted}
        if any(found.values()):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in sorted(name for name, data in found.items() if data):
                    archive.writestr(zipfile.ZipInfo(f"{name}.npy"), found[name] or b"", zipfile.ZIP_DEFLATED)
            write_atomic(self.packed, buffer.getvalue())
        for path in self.loose.glob("*.npy"):
            path.unlink()
        if self.loose.exists():
            self.loose.rmdir()
