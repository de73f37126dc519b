"""KeyDiff: keeps the tokens whose keys differ most from the others."""

from dataclasses import dataclass

from torch import Tensor

from namm_transfer.key_difference import key_difference
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView


@dataclass
class KeyDiff(ScoredPolicy):
    """Keeps keys that point elsewhere than most (KeyDiff, Park et al. 2025, arXiv 2504.15364); needs no attention."""

    name = "keydiff"

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by 1 - cos(its key, the mean of all cached keys scaled to length 1)."""
        return key_difference(view)
