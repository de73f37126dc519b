"""Random eviction that is reproducible from its seed."""

from dataclasses import dataclass

from torch import Tensor

from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView


@dataclass
class RandomEviction(ScoredPolicy):
    """Keeps random tokens; with ``match``, as many in each layer and at each update as another policy.

    Nothing is drawn: the score is a hash of seed, layer, head and original position.
    """

    name = "random"
    seed: int = 0

    def scores(self, view: LayerView) -> Tensor:
        """Score tokens by integers spread uniformly over [0, 2^24), the same wherever and whenever computed."""
        x = view.positions.long() + 1
        for part in (view.heads[..., None], view.layer, self.seed):
            x = _mix(x + (part + 1) * 0x9E3779B1)
        return x >> 16 & 0xFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Hash 62-bit integers (multiply, xor-shift); int64 products wrap around alike on every device."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * 0x14D049BB133111EB
    return x ^ (x >> 31 & 0x1FFFFFFFF)
