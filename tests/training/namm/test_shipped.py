"""The deep NAMMs that ship are the states of learning that ship beside them."""

import pytest
import torch
from safetensors.torch import load_file

from namm_transfer import NAMM
from namm_transfer.files import asset
from namm_transfer.scorers import DEEP
from namm_transfer.training.namm.whitening import unwhiten


@pytest.mark.parametrize(("name", "raised"), [("namm-text-deep", 0.6), ("namm-text-deep-learned", 0.0)])
def test_a_shipped_namm_is_its_state_with_its_bias_raised_as_its_card_says(name, raised):
    state = load_file(asset(name) / "state" / "learning.safetensors")
    expected = unwhiten(state["module.vector"], state["module.matrix"], DEEP)
    expected[-1] += raised
    torch.testing.assert_close(NAMM.from_pretrained(name).to_vector(), expected, atol=1e-5, rtol=1e-5)
