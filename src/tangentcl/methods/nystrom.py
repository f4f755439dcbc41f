"""Ridge regression with the arc-cosine kernel: what RanPAC's random features approximate."""

from __future__ import annotations

from tangentcl.heads import NystromArcCosine, RidgeHead
from tangentcl.heads.strength import Rule
from tangentcl.methods.analytic import Analytic, FirstSession, drawn_seed, require_backbone
from tangentcl.nn import Backbone


class Nystrom(Analytic):
    r"""RanPAC with landmarks of the kernel in place of random units.

    M random ReLU units see the arc-cosine kernel with an error of :math:`M^{-1/2}`; M landmarks see it exactly on their
    span, which for features of a task costs fewer of them. Landmarks come from the first task and stay: where later
    classes lie elsewhere, random units lose less.

    Args:
        backbone: frozen after the first task.
        n_landmarks: M.
        strength, holdout, balanced: see `tangentcl.heads.RidgeHead`. first_session, rank, joint: see `Analytic`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        n_landmarks: int = 1000,
        strength: float | Rule = "holdout",
        holdout: float = 0.1,
        balanced: bool = False,
        first_session: FirstSession = "off",
        rank: int = 16,
        joint: bool = False,
    ) -> None:
        lift = NystromArcCosine(require_backbone(backbone).width, n_landmarks, seed=drawn_seed())
        head = RidgeHead(lift, strength=strength, holdout=holdout, balanced=balanced)
        super().__init__(backbone, head, first_session=first_session, rank=rank, joint=joint)
