"""RanPAC: ridge regression on random ReLU features of a pre-trained model (McDonnell et al., 2023)."""

from __future__ import annotations

from tangentcl.errors import ConfigError
from tangentcl.heads import NoLift, RandomReLU, RidgeHead
from tangentcl.heads.strength import Rule
from tangentcl.methods.analytic import Analytic, FirstSession, drawn_seed, require_backbone
from tangentcl.nn import Backbone


class RanPAC(Analytic):
    r""":math:`s(x) = \mathrm{ReLU}(z R / \sqrt M)\,(G + \lambda I)^{-1} Q`, sums over all samples seen, in closed form.

    Source: McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual Learning", NeurIPS 2023.
    See `tangentcl.heads.RidgeHead` for what is exact about it.

    Departures, each with its reason:

    - :math:`\lambda` is chosen on samples kept aside from *all* tasks (``strength="holdout"``). The paper chooses it on
      a fifth of the current task and uses it on the sums of all: with small tasks it lands orders of magnitude off,
      and accuracy collapses (``strength="task"`` does the same).
    - R is scaled by :math:`1 / \sqrt M`, so that a strength means the same for every width.
    - The first session adapts by LoRA or fully, under the plan; the paper has adapters, SSF or prompts by SGD.

    Args:
        backbone: frozen after the first task.
        n_units: M; 0 for none, ridge on the features themselves. 8 M^2 bytes are kept once M samples were seen.
        strength, holdout, balanced: see `tangentcl.heads.RidgeHead`.
        first_session, rank, joint: see `Analytic`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        n_units: int = 10_000,
        strength: float | Rule = "holdout",
        holdout: float = 0.1,
        balanced: bool = False,
        first_session: FirstSession = "off",
        rank: int = 16,
        joint: bool = False,
    ) -> None:
        width = require_backbone(backbone).width
        if n_units < 0:
            raise ConfigError(f"n_units must be 0 (no lift) or more, got {n_units}")
        lift = RandomReLU(width, n_units, seed=drawn_seed()) if n_units else NoLift(width)
        head = RidgeHead(lift, strength=strength, holdout=holdout, balanced=balanced)
        super().__init__(backbone, head, first_session=first_session, rank=rank, joint=joint)
