"""Streaming linear discriminant analysis on frozen features (Hayes and Kanan, 2020)."""

from __future__ import annotations

from tangentcl.heads import SharedGaussian
from tangentcl.methods.analytic import Analytic, FirstSession, require_backbone
from tangentcl.nn import Backbone


class SLDA(Analytic):
    """Class means under one covariance that all classes share.

    Source: Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR
    Workshops 2020. Theirs updates sample by sample; sums give the same numbers (`tangentcl.heads.SharedGaussian`).

    Args:
        backbone: frozen after the first task. shrinkage: of the covariance towards a multiple of the identity, or
            ``"oas"``. prior: whether a class's number of samples counts. first_session, rank, joint: see `Analytic`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        shrinkage: float | str = 1e-4,
        prior: bool = False,
        first_session: FirstSession = "off",
        rank: int = 16,
        joint: bool = False,
    ) -> None:
        head = SharedGaussian(require_backbone(backbone).width, shrinkage=shrinkage, prior=prior)
        super().__init__(backbone, head, first_session=first_session, rank=rank, joint=joint)
