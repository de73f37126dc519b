"""Normalisation statistics: the recorded estimator, merged in any order, on the full cache."""

import numpy as np
import pytest
import torch
from places import PARITY

from namm_transfer import LayerView, NammTransferError
from namm_transfer.moments import Moments
from namm_transfer.training.namm.statistics import MomentsRecorder

CASE = PARITY / "case_c_norm_stats"


def test_recorded_estimator_is_reproduced():
    setup = np.load(CASE / "setup.npz")
    pad = torch.tensor(setup["left_pad"])
    recorder = MomentsRecorder(64)
    for u in range(int(setup["n_updates"])):
        update = np.load(CASE / f"update_{u}.npz")
        spectrum = torch.tensor(update["spec_ema"])
        batch, heads, tokens, _ = spectrum.shape
        columns = torch.arange(tokens) - pad[:, None]  # nothing but padding is ever evicted in this case
        if tokens < int(setup["delay"]) * (u + 1):
            columns = torch.arange(tokens)[None].expand(batch, -1)
        positions = columns.clamp_min(-1)[:, None].expand(-1, heads, -1).int()
        view = LayerView(
            layer=0,
            heads=torch.arange(positions.shape[1]).expand(positions.shape[:2]),
            keys=None,
            values=None,
            positions=positions,
            state={"spectrum": spectrum.transpose(-1, -2)},
            seen=[tokens] * batch,
            update=u,
        )
        assert torch.equal(recorder.select(view), view.real)
        np.testing.assert_allclose(recorder.moments.mean, update["running_mean"].reshape(-1), atol=1e-6)
        np.testing.assert_allclose(recorder.moments.var, update["running_var"].reshape(-1), rtol=1e-4, atol=1e-9)
        assert recorder.moments.count == update["running_num"].reshape(-1)[0]


def test_merging_equals_all_at_once():
    values = torch.rand(1000, 17, dtype=torch.float64)
    parts = []
    for chunk in values.split([1, 499, 300, 200]):
        moments = Moments()
        moments.add(chunk)
        parts.append(moments.to_row())
    merged = Moments.from_rows(torch.stack(parts))
    torch.testing.assert_close(merged.mean, values.mean(0))
    torch.testing.assert_close(merged.var, values.var(0, correction=0))


def test_no_update_is_an_error():
    with pytest.raises(NammTransferError, match="no update took place"):
        Moments.from_rows(torch.zeros(3, 35))
