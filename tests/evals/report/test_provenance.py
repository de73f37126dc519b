"""What is recorded about how a number was made."""

import torch

from namm_transfer import files, policies
from namm_transfer.evals.report import provenance


def test_folders_are_hashed_and_hub_ids_are_not(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    described = provenance.with_checksums(
        {"model": "someone/model", "data": [str(tmp_path / "a.json")], "dtype": "float32"}
    )
    assert described["data_sha256"] == [files.sha256(tmp_path / "a.json")]
    assert "model_sha256" not in described
    assert provenance.with_checksums({"model": tmp_path})["model_sha256"] == files.sha256(tmp_path)


def test_weights_have_the_checksum_of_their_file_and_rules_have_none(random_namm, tmp_path):
    assert provenance.weights_sha256(policies.make("h2o")) is None
    first, other = random_namm(), random_namm(seed=2)
    first.save_pretrained(tmp_path)
    assert provenance.weights_sha256(first) == files.sha256(tmp_path / "model.safetensors")
    assert provenance.weights_sha256(first) != provenance.weights_sha256(other)


def test_versions_and_machine_are_recorded():
    made = provenance.collect(processes=3)
    assert made.versions["torch"] == torch.__version__.partition("+")[0] or made.versions["torch"] == torch.__version__
    assert (made.processes, bool(made.cpu), made.cores > 0) == (3, True, True)
    assert made.started.endswith("+00:00")


def test_paths_of_this_checkout_and_its_packages_are_given_from_there(tmp_path):
    folder = files.asset("namm-text")
    described = provenance.with_checksums({"model": str(folder), "data": [str(tmp_path)]})
    assert described["model"] == "assets/namm-text"
    assert described["data"] == [str(tmp_path)]
