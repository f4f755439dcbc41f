"""LoRanPAC: continual truncated SVD of random features in place of a ridge (ICL-TSVD)."""

from __future__ import annotations

from tangentcl.heads import RandomReLU, TruncatedRidge
from tangentcl.heads.truncated import Update
from tangentcl.methods.analytic import Analytic, FirstSession, drawn_seed, require_backbone
from tangentcl.nn import Backbone


class LoRanPAC(Analytic):
    r"""RanPAC with far more random units, of which only the largest singular directions are kept.

    Truncation takes the place of :math:`\lambda`: nothing is to be chosen, and nothing of size M x M is formed. It is
    not order-invariant; see `tangentcl.heads.TruncatedRidge`, which also says what was thrown away.

    Source: Peng et al., "LoRanPAC: Low-rank Random Features and Pre-trained Models for Bridging Theory and Practice in
    Continual Learning", ICLR 2025; from its formulas. Scaled by :math:`1 / \sqrt M` as `tangentcl.heads.RandomReLU`;
    weights are computed once per task, not for each batch.

    Args:
        backbone: frozen after the first task.
        n_units: M, 100,000 in the paper: 4 M k bytes are kept for rank k.
        cut: relative to the largest singular value; the usual bound, M eps, is 1e-2 at M = 100,000 in float32
            and takes real directions away.
        truncation, rank_cap, block, ridge, update: see `tangentcl.heads.TruncatedRidge`.
        first_session, rank, joint: see `Analytic`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        n_units: int = 100_000,
        truncation: float = 0.25,
        rank_cap: int = 10_000,
        block: int = 10_000,
        ridge: float = 0.0,
        update: Update = "svd",
        cut: float = 1e-6,
        first_session: FirstSession = "off",
        rank: int = 16,
        joint: bool = False,
    ) -> None:
        lift = RandomReLU(require_backbone(backbone).width, n_units, seed=drawn_seed())
        head = TruncatedRidge(
            lift,
            truncation=truncation,
            rank_cap=rank_cap,
            block=block,
            ridge=ridge,
            update=update,
            cut=cut,
        )
        super().__init__(backbone, head, first_session=first_session, rank=rank, joint=joint)
