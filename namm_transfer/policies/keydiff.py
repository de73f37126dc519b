"""KeyDiff: keeps the tokens whose keys differ most from the others."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView


@dataclass
class KeyDiff(ScoredPolicy):
    """Keeps keys that point elsewhere than most (KeyDiff, Park et al. 2025, arXiv 2504.15364); needs no attention."""

    name = "keydiff"

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by 1 - cos(its key, the mean of all cached keys scaled to length 1)."""
        keys = normalize(view.keys.float(), dim=-1).masked_fill(~view.real[..., None], 0)
        anchor = normalize(keys.sum(-2, keepdim=True), dim=-1)
        return 1 - (keys * anchor).sum(-1)
