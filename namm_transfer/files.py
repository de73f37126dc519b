"""Files: atomic writes, paths that stay inside their folder, checksums, and where the shipped assets are."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from importlib import resources
from pathlib import Path

from namm_transfer.errors import NammTransferError

MADE_BY = {
    "namm-text": "accelerate launch evals/evolve.py --out runs/evolve",
    "llava-next-video-small": "python -m namm_transfer.training.video.train",
    "llava-next-video-small-v2": "python -m namm_transfer.training.video.train --version 2 --vision-steps 200 "
    "--projector-steps 150 --language-steps 5300 --takes 6 --out assets/llava-next-video-small-v2 --work runs/small-v2",
    "decision-transformer": "python -m namm_transfer.training.rl.train --env ENV "
    "--out assets/decision-transformer/ENV-medium",
    "behaviour": "python -m namm_transfer.training.rl.behaviour --env ENV --out assets/behaviour/ENV-medium",
}
"""Commands that make the assets or groups of assets of this project, for error messages."""

LONGEST_NAME = 255
"""Largest length in bytes of a file's or folder's name on common file systems."""


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write ``content`` (text as UTF-8) so that ``path`` holds either the old or the new file, never half of one.

    Missing folders are made. The bytes are on the disk (fsync) before the name points to them.
    """
    path = Path(path)
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def make_folder(path: Path) -> Path:
    """Make a folder if it is not there, and return its path.

    Raises:
        NammTransferError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NammTransferError(f"{str(path)!r} cannot be a folder to write to: {error.strerror}") from None
    return path


def put_aside(path: Path) -> Path:
    """Rename a file to the first free one of NAME.old, NAME.old2, NAME.old3, ... and return its new path."""
    number = 1
    while (old := path.with_name(f"{path.name}.old{number if number > 1 else ''}")).exists():
        number += 1
    os.replace(path, old)
    return old


def safe_join(root: str | os.PathLike[str], relative: str | os.PathLike[str]) -> Path:
    """Join a relative path to a folder that it must not leave, be it by ``..``, as an absolute path or by a link.

    Links from a snapshot folder of the Hugging Face hub into the ``blobs`` folder of the same repository are allowed.

    Raises:
        NammTransferError: the path leaves the folder.
    """
    try:
        inside = Path(root).resolve()
        path = Path(os.path.normpath(inside / relative))
        real = path.resolve()
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            raise OSError(f"a name of more than {LONGEST_NAME} bytes")
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL byte, text that is no Unicode
        raise NammTransferError(f"path {str(relative)[:80]!r} can be no file in {str(root)!r}: {error}") from None
    blobs = [parent.parent / "blobs" for parent in inside.parents if parent.name == "snapshots"]
    if not path.is_relative_to(inside) or not any(real.is_relative_to(place) for place in (inside, *blobs)):
        raise NammTransferError(f"path {str(relative)!r} leaves its folder {str(root)!r}; expected a path inside it")
    return path


def safe_name(text: str) -> str:
    """Turn a text into a file name: runs of anything but letters, digits, dot and underscore become a dash.

    The end of a name that is too long for a file becomes a digest of the text.

    >>> safe_name("rl/hopper medium")
    'rl-hopper-medium'
    """
    name = (re.sub(r"[^\w.]+", "-", text).lstrip(".") or "-").encode()
    if len(name) > LONGEST_NAME // 2:  # room for suffixes
        name = name[: LONGEST_NAME // 3] + b"-" + hashlib.sha256(text.encode()).hexdigest()[:16].encode()
    return name.decode(errors="ignore")


def asset(name: str) -> Path:
    """Find a shipped asset, ``assets/NAME`` or ``assets/GROUP/NAME``, and return its path.

    Installed assets come first (in an editable install these are the checkout's own), then ``./assets``.

    Raises:
        NammTransferError: there is no such asset, and the message says which command makes it; or there are two.
    """
    for root in (Path(str(resources.files("namm_transfer.assets"))), Path("assets")):
        groups = sorted(path for path in root.glob("*") if path.is_dir())
        candidates = [safe_join(root, name), *(safe_join(group, name) for group in groups)]
        found = [path for path in candidates if path.exists() and path != root.resolve()]
        if len(found) > 1:
            names = " and ".join(map(str, found))
            raise NammTransferError(f"asset {name!r} exists more than once: {names}; name one of them with its group")
        if found:
            return found[0]
    made_by = MADE_BY.get(name) or MADE_BY.get(name.partition("/")[0])
    hint = f"make it with: {made_by}" if made_by else "expected a folder in assets/ or assets/GROUP/ of a checkout"
    raise NammTransferError(f"asset {name!r} is neither installed nor in ./assets; {hint}")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hash a file, or a folder as the sorted lines ``HASH  RELATIVE/PATH`` (as sha256sum writes them) of its files.

    README.md files are left out, so that a model's card can state the checksum and can be improved without changing it.

    Raises:
        NammTransferError: there is no such file or folder.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise NammTransferError(f"cannot hash {str(path)!r}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "README.md")
    lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
