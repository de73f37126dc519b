"""The deep NAMMs that ship are the states of learning that ship beside them."""

import torch
from safetensors.torch import load_file

from namm_transfer import NAMM
from namm_transfer.files import asset
from namm_transfer.scorers import DEEP
from namm_transfer.training.namm.whitening import unwhiten


def learned(name):
    state = load_file(asset(name) / "state" / "learning.safetensors")
    return unwhiten(state["module.vector"], state["module.matrix"], DEEP)


def test_namm_text_deep_is_its_state_with_its_bias_raised():
    expected = learned("namm-text-deep")
    expected[-1] += 0.5
    torch.testing.assert_close(NAMM.from_pretrained("namm-text-deep").to_vector(), expected, atol=1e-5, rtol=1e-5)


def test_namm_text_deep_learned_is_three_quarters_its_state_and_one_its_start():
    start = NAMM.from_pretrained(asset("namm-text-deep-learned") / "start").to_vector()
    expected = 0.75 * learned("namm-text-deep-learned") + 0.25 * start
    torch.testing.assert_close(
        NAMM.from_pretrained("namm-text-deep-learned").to_vector(), expected, atol=1e-5, rtol=1e-5
    )


def test_namm_text_deep_keydiff_is_namm_text_deep_that_lets_keys_choose():
    namm, plain = (NAMM.from_pretrained(name) for name in ("namm-text-deep-keydiff", "namm-text-deep"))
    assert torch.equal(namm.to_vector(), plain.to_vector())
    assert torch.equal(namm.mean, plain.mean)
    assert (namm.keydiff, namm.threshold) == (0.7, 0.1)
