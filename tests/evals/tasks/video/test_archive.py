"""Archives in parts: unpacked whole, or refused with nothing outside."""

import io
import tarfile
from pathlib import Path

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.video import archive
from namm_transfer.evals.tasks.video.archive import unpack

FILMS = {"videos/a.mp4": b"a" * 9000, "videos/b/c.mp4": b"c" * 25_000}


def write_parts(folder: Path, files: dict[str, bytes], *others: tarfile.TarInfo, size: int = 8000) -> list[Path]:
    """A tar of files and other members, cut into parts of `size` bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in others:
            tar.addfile(member)
    whole = data.getvalue()
    parts = []
    for number, start in enumerate(range(0, len(whole), size)):
        parts.append(folder / f"videos.tar.part.a{chr(ord('a') + number)}")
        parts[-1].write_bytes(whole[start : start + size])
    assert len(parts) > 1
    return parts


def made(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A member that is no file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.fixture
def root(tmp_path) -> Path:
    """An empty folder to unpack into, with the parts beside it."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [512, 8000, 10_001])
def test_parts_make_the_files(size, root, tmp_path):
    parts = write_parts(tmp_path, FILMS, link("./", "", tarfile.DIRTYPE), size=size) if size > 512 else None
    parts = parts or write_parts(tmp_path, {"videos/a.mp4": b"x" * 700}, size=size)
    assert unpack(parts, root, "videos") == root / "videos"
    assert made(root) == (FILMS if size > 512 else {"videos/a.mp4": b"x" * 700})
    assert [path.name for path in root.iterdir()] == ["videos"]


@pytest.mark.parametrize(
    "member",
    [
        link("videos/link", "/etc"),
        link("videos/link", "a.mp4"),
        link("videos/hard", "videos/a.mp4", tarfile.LNKTYPE),
        link("videos/null", "", tarfile.CHRTYPE),
        link("videos/pipe", "", tarfile.FIFOTYPE),
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("videos/../../escaped"),
        tarfile.TarInfo("/tmp/namm-transfer-escaped"),
        tarfile.TarInfo("elsewhere/a.mp4"),
        tarfile.TarInfo("videos-and-more/a.mp4"),
    ],
    ids=lambda member: member.name,
)
def test_members_that_are_no_plain_files_inside_are_refused(member, root, tmp_path):
    parts = write_parts(tmp_path, FILMS, member)
    before = {*tmp_path.rglob("*")}
    with pytest.raises(NammTransferError, match=r"leaves its folder|is a link|is outside the expected folder"):
        unpack(parts, root, "videos")
    assert not (root / "videos").exists()
    written = {*tmp_path.rglob("*")} - before
    assert all(path.is_relative_to(root / ".videos.partial") for path in written)
    assert not any(path.is_symlink() or "escaped" in path.name for path in written)
    assert not Path("/tmp/namm-transfer-escaped").exists()


def test_a_missing_or_damaged_part_is_named(root, tmp_path):
    parts = write_parts(tmp_path, FILMS)
    for wrong in (parts[:2], [parts[0], *parts[2:]], parts[1:], parts[:-2], [*parts[:-1], parts[0]]):
        with pytest.raises(NammTransferError, match=r"videos\.tar\.part\.a"):
            unpack(wrong, root, "videos")
        assert not (root / "videos").exists()


def test_a_stopped_run_is_gone_on_with(root, tmp_path, monkeypatch):
    parts = write_parts(tmp_path, FILMS)
    with pytest.raises(NammTransferError):
        unpack(parts[:-2], root, "videos")
    assert made(root) == {".videos.partial/videos/a.mp4": FILMS["videos/a.mp4"]} | {
        name: data for name, data in made(root).items() if "unfinished" in name
    }
    copied = []
    copy = archive.shutil.copyfileobj
    monkeypatch.setattr(archive.shutil, "copyfileobj", lambda *args: (copied.append(args[1].name), copy(*args)))
    unpack(parts, root, "videos")
    assert [Path(name).name for name in copied] == [".c.mp4.unfinished"]
    assert made(root) == FILMS
