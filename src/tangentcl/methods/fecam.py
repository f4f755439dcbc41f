"""FeCAM: Mahalanobis distances to class means, each class with its own covariance (Goswami et al., 2023)."""

from __future__ import annotations

from tangentcl.heads import FeCAM as FeCAMHead
from tangentcl.methods.analytic import Analytic, FirstSession, require_backbone
from tangentcl.nn import Backbone


class FeCAM(Analytic):
    """The class whose Gaussian a sample is nearest to, after Tukey's transform, shrinkage and normalisation.

    Source: Goswami et al., "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual
    Learning", NeurIPS 2023. The state holds a d x d matrix for every class; ``shared`` keeps one for all.

    Args:
        backbone: frozen after the first task. tukey, gamma1, gamma2, shared: see `tangentcl.heads.FeCAM`.
        first_session, rank, joint: see `Analytic`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        tukey: float = 0.5,
        gamma1: float = 1.0,
        gamma2: float = 1.0,
        shared: bool = False,
        first_session: FirstSession = "off",
        rank: int = 16,
        joint: bool = False,
    ) -> None:
        width = require_backbone(backbone).width
        head = FeCAMHead(width, tukey=tukey, gamma1=gamma1, gamma2=gamma2, shared=shared)
        super().__init__(backbone, head, first_session=first_session, rank=rank, joint=joint)
