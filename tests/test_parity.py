"""The recorded updates of the published code, and that the check can fail."""

import numpy as np
import pytest
from places import PARITY

from namm_transfer import NammTransferError
from namm_transfer.parity import main, replay

CASES = sorted(path.name for path in PARITY.iterdir() if path.is_dir())


def test_all_cases_are_green(capsys):
    assert main([str(PARITY / case) for case in CASES]) == 0
    assert capsys.readouterr().out.strip().endswith("parity: ok")
    assert len(CASES) == 5


def copy_case(case, folder):
    for file in (PARITY / case).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("case", "file", "array"),
    [
        ("case_c", "update_4", name)
        for name in (
            "cache_positions_before",
            "spec_frames",
            "spec_ema",
            "spec_norm",
            "features",
            "scores",
            "above_threshold",
            "kept_idx",
            "cache_positions_after",
        )
    ]
    + [("case_c_norm_stats", "update_1", name) for name in ("running_mean", "running_var", "running_num")]
    + [("case_c_norm_stats", "setup", name) for name in ("norm_mean", "norm_var")]
    + [("case_d_batch", "update_0", "scores"), ("case_c", "setup", "params")],
)
def test_a_changed_number_turns_it_red(tmp_path, capsys, case, file, array):
    copy_case(case, tmp_path)
    path = tmp_path / f"{file}.npz"
    arrays = dict(np.load(path))
    changed = arrays[array].copy()
    flat = changed.reshape(-1)
    at = -1 if array == "params" else flat.size // 2
    flat[at] = not flat[at] if changed.dtype == bool else flat[at] + 1
    np.savez(path, **(arrays | {array: changed}))
    assert main([str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_folder_without_recordings_is_named(tmp_path, capsys):
    with pytest.raises(NammTransferError, match=r"setup\.npz"):
        replay(tmp_path)
    assert main([str(tmp_path)]) == 1
    assert "setup.npz" in capsys.readouterr().out


def test_an_array_nobody_computes_is_no_success(tmp_path):
    copy_case("case_c", tmp_path)
    path = tmp_path / "update_0.npz"
    np.savez(path, **np.load(path), surprise=np.zeros(3))
    assert main([str(tmp_path)]) == 1
