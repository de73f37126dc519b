"""Reports that somebody else wrote."""

import json

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.report import build, pages, read


@pytest.fixture
def folder(write_folder, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0, 0.0]})
    pages.write(build(folder), folder)
    return folder


def test_what_was_written_is_read(folder):
    assert read(folder) == read(folder / "report.json") == build(folder)


@pytest.mark.parametrize("version", [0, 3, None, "1"])
def test_another_version_is_refused_with_what_to_do(version, folder):
    content = json.loads((folder / "report.json").read_text())
    content["schema_version"] = version
    (folder / "report.json").write_text(json.dumps(content))
    with pytest.raises(NammTransferError, match=rf"has schema version {version!r}, expected 1 to 2: .*report render"):
        read(folder)


def test_damage_and_strangers_are_named(folder, tmp_path):
    path = folder / "report.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(NammTransferError, match="cannot be read as a report"):
        read(folder)
    path.write_text(whole.replace('"summary"', '"sumary"', 1))
    with pytest.raises(NammTransferError, match="is no report of schema version 2: summary: Field required"):
        read(folder)
    with pytest.raises(NammTransferError, match="No such file"):
        read(tmp_path / "nowhere.json")


def test_a_report_of_the_first_schema_is_read(folder):
    content = json.loads((folder / "report.json").read_text())
    content["schema_version"] = 1
    del content["headlines"]
    for run in content["runs"]:
        run["schema_version"] = 1
        run["policies"] = [{"spec": policy["spec"], "match": None, "sha256": None} for policy in run["policies"]]
        run["options"]["update_interval"] = 16
    now = build(folder)
    (folder / "report.json").write_text(json.dumps(content))
    assert read(folder).runs[0].policies == now.runs[0].policies
    assert (read(folder).headlines, read(folder).summary) == ([], now.summary)
