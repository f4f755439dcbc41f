"""How far the rows of a matrix are from orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormality(rows: Tensor) -> Tensor:
    r"""The mean entry of :math:`(T T^\top - I)^2` for rows T ``[M, n]``, in float32 at least.

    Unlike `tangentcl.losses.orthogonality_gap` it sees the scale, too: rows are held at length one.

    Source: the penalty of CODA-Prompt (Smith et al., CVPR 2023) as its code computes it, a mean over the
    M^2 entries; the paper writes a norm.

    >>> orthonormality(torch.eye(3)[:2]).item(), orthonormality(torch.ones(2, 1)).item()
    (0.0, 0.5)
    """
    rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
    with torch.autocast(rows.device.type, enabled=False):
        gram = rows @ rows.T  # [M, M]
        return (gram - torch.eye(len(rows), dtype=gram.dtype, device=gram.device)).square().mean()
