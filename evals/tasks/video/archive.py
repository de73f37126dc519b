"""Archives cut into parts (`videos.tar.part.aa`, `.ab`, ...), unpacked as they are read and into one folder only."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.files import safe_join

CHUNK = 1 << 20
"""Size of the buffer in bytes."""


class _Joined:
    """A stream of the bytes of several files, one after the other."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = iter(parts)
        self._file: IO[bytes] | None = None
        self.length = 0
        """Number of bytes read so far."""
        self.content = 0
        """Number of bytes read up to the last one that is not zero."""

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; none at the end."""
        while True:
            if self._file is None:
                part = next(self._parts, None)
                if part is None:
                    return b""
                self._file = open(part, "rb")  # noqa: SIM115 -- closed below, when it has been read
            if data := self._file.read(size):
                if filled := len(data.rstrip(b"\0")):
                    self.content = self.length + filled
                self.length += len(data)
                return data
            self._file.close()
            self._file = None


def unpack(parts: Sequence[Path], root: Path, name: str) -> Path:
    """Unpack the folder `name` of a tar, given as its parts in order, to `root / name`, and return that path.

    The folder appears when all of it is there. A stopped run leaves `.NAME.partial`, and the next one writes only the
    files that are not in it yet.

    Raises:
        NammTransferError: a damaged archive or one with a part missing, or a member that is no plain file or folder (a
            link, a device), that leaves the folder, or that lies elsewhere than in `name`. Nothing is written for it.
    """
    target, partial = root / name, root / f".{name}.partial"
    try:
        # Mode "r|": front to back without seeking, which is all that joined parts allow.
        joined = _Joined(parts)
        with tarfile.open(fileobj=cast(IO[bytes], joined), mode="r|", bufsize=CHUNK) as tar:
            for member in tqdm(tar, desc=f"unpacking {name}", unit="file", disable=None, leave=False):
                _write(tar, member, partial, name)
            while joined.read(CHUNK):
                pass
            # tarfile takes anything that is no header for the end, which really is two blocks of zeros.
            if joined.content > tar.offset or joined.length < tar.offset + 2 * tarfile.BLOCKSIZE:
                raise EOFError("it does not end where its files do")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NammTransferError(
            f"archive {str(parts[0])!r} ({len(parts)} parts) cannot be unpacked: {error}"
        ) from error
    if not (partial / name).is_dir():
        raise NammTransferError(f"archive {str(parts[0])!r} holds no folder {name!r}")
    os.replace(partial / name, target)
    shutil.rmtree(partial)
    return target


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, name: str) -> None:
    """Write one member below `folder`, unless an earlier run has written it in full length."""
    plain = member.isdir() or (member.isreg() and not member.issparse())
    if not plain:
        raise NammTransferError(f"archive member {member.name!r} is a link, a device or a sparse file; expected a file")
    path = safe_join(folder, member.name)
    if not path.is_relative_to(safe_join(folder, name)):
        if member.isdir() and path == folder.resolve():
            return  # "./"
        raise NammTransferError(f"archive member {member.name!r} is outside the expected folder {name!r}")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
    elif not path.is_file() or path.stat().st_size != member.size:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with open(unfinished, "wb") as file:
            shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), file, CHUNK)
        os.replace(unfinished, path)
