"""Atomic writes, paths, assets, checksums."""

import hashlib
import importlib.util
import os
from pathlib import Path

import pytest

from namm_transfer import NammTransferError, files


def test_write_atomic_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert files.write_atomic(path, "one") == path
    files.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["b.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = files.write_atomic(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_safe_join_refuses_to_leave_the_folder(name, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(NammTransferError, match="leaves its folder"):
        files.safe_join(root, name)
    assert files.safe_join(root, "a/./b/../c") == root / "a" / "c"


def test_safe_join_follows_the_links_of_a_hub_snapshot_and_no_others(tmp_path):
    """The layout that huggingface_hub.snapshot_download leaves in its cache."""
    repository = tmp_path / "datasets--somebody--films"
    root = repository / "snapshots" / "0123abcd"
    (root / "video").mkdir(parents=True)
    for folder in (repository / "blobs", tmp_path / "blobs"):
        folder.mkdir()
        (folder / "f00d").write_text("film")
    (root / "video/good.mp4").symlink_to("../../../blobs/f00d")
    (root / "video/bad.mp4").symlink_to("../../../../blobs/f00d")
    assert files.safe_join(root, "video/good.mp4") == root / "video/good.mp4"
    assert files.safe_join(root / "video", "good.mp4").read_text() == "film"
    for name in ("video/bad.mp4", "../../blobs/f00d"):
        with pytest.raises(NammTransferError, match="leaves its folder"):
            files.safe_join(root, name)


def test_assets_are_found_by_name_and_in_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "group/two"):
        (tmp_path / "assets" / name).mkdir(parents=True)
    assert files.asset("one") == tmp_path / "assets" / "one"
    assert files.asset("two") == files.asset("group/two") == tmp_path / "assets" / "group" / "two"


def test_a_missing_asset_says_which_command_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(files.MADE_BY, "not-there", "python -m somewhere")
    with pytest.raises(NammTransferError, match="make it with: python -m somewhere"):
        files.asset("not-there")
    with pytest.raises(NammTransferError, match="expected a folder in assets"):
        files.asset("unheard-of")
    for name in ("", ".", ".."):
        with pytest.raises(NammTransferError):
            files.asset(name)


def test_a_name_in_two_groups_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/same", "b/same"):
        (tmp_path / "assets" / name).mkdir(parents=True)
    with pytest.raises(NammTransferError, match=r"more than once: .*/a/same and .*/b/same; name one"):
        files.asset("same")
    assert files.asset("b/same") == tmp_path / "assets" / "b" / "same"


def test_commands_that_make_assets_exist():
    root = Path(__file__).parent.parent
    for command in files.MADE_BY.values():
        words = command.split()
        script = next((word for word in words if word.endswith(".py")), None)
        module = words[words.index("-m") + 1] if script is None else None
        assert (root / script).is_file() if script else importlib.util.find_spec(module), command


def test_sha256_of_files_and_folders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "b" / "x") == digest
    assert files.sha256(tmp_path) == hashlib.sha256(f"{digest}  b/x\n".encode()).hexdigest()
    before = files.sha256(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert files.sha256(tmp_path) == before
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert files.sha256(tmp_path) != before
    with pytest.raises(NammTransferError, match="no such file or folder"):
        files.sha256(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "name"),
    [("a/b c:d", "a-b-c-d"), ("../..", "-.."), ("..", "-"), ("film_1.mp4", "film_1.mp4"), ("Fluß 日本", "Fluß-日本")],
)
def test_a_safe_name_is_one_part_of_a_path(text, name):
    assert files.safe_name(text) == name
    assert files.safe_name(text) not in ("", ".", "..")


@pytest.mark.parametrize("letter", ["x", "日"])
def test_a_safe_name_is_never_too_long_for_a_file(letter, tmp_path):
    names = {files.safe_name(letter * 300 + end) for end in "ab"}
    assert len(names) == 2
    for name in names:
        files.write_atomic(tmp_path / f"{name}.html", "")
