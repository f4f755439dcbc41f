"""Spectra in either space against a dense decomposition."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.linalg import gram_spectrum
from tangentcl.linalg import spectrum as module


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("n, d", [(10, 4), (4, 10), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_either_space_gives_the_dense_answer(
    monkeypatch: pytest.MonkeyPatch, n: int, d: int, constant: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = gram_spectrum(features, constant)
    gram = features.double() @ features.double().T + constant**2
    values = torch.linalg.eigvalsh(gram).flip(0)[: min(n, d + bool(constant))]
    torch.testing.assert_close(found.values, values, rtol=1e-10, atol=1e-12)
    U = found.modes(list(range(len(values))))
    torch.testing.assert_close(U @ torch.diag(found.values) @ U.T, gram, rtol=1e-10, atol=1e-10)
    x = torch.randn(n, 2)
    torch.testing.assert_close(found.project(x), U.T @ x.double(), rtol=1e-9, atol=1e-10)


def test_the_null_space_is_left_out() -> None:
    features = torch.randn(8, 2) @ torch.randn(2, 5)
    assert len(gram_spectrum(features.double()).values) <= 5
    exact = torch.cat([torch.eye(3), torch.zeros(3, 3)], dim=1)
    assert gram_spectrum(exact).values.tolist() == [1.0, 1.0, 1.0]
    assert len(gram_spectrum(torch.zeros(3, 2)).values) == 0


def test_vectors_over_other_samples_are_refused() -> None:
    with pytest.raises(DataError, match="over the 3 samples"):
        gram_spectrum(torch.eye(3)).project(torch.ones(4, 1))
