"""Sums over many parameters keep the precision of their dtype."""

from __future__ import annotations

import torch

from tangentcl.kernels import tangent
from tangentcl.kernels.tangent import Tangent


def test_gram_sums_of_many_parameters_are_added_in_float64() -> None:
    n = 2**22  # one float32 product over them is off by 4e-5, over ten million of equal sign by 4e-3
    assert n > 4 * tangent.COLUMNS
    rows = torch.randn(2, n, generator=torch.Generator().manual_seed(0))
    exact = rows.double() @ rows.double().T
    found = Tangent(rows).gram(Tangent(rows))
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max() / exact.norm()) < 2e-6


def test_blocks_change_nothing_but_rounding() -> None:
    g = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(n, 2 * tangent.COLUMNS + 3, generator=g, dtype=torch.float64) for n in (3, 2))
    expected = ours @ theirs.T
    torch.testing.assert_close(Tangent(ours).gram(Tangent(theirs)), expected, rtol=1e-10, atol=1e-9)
