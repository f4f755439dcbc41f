"""Operators against dense algebra."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.linalg import GramOperator, KroneckerIdentity
from tangentcl.linalg import operator as module


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.5])
def test_gram_operator_is_its_matrix(constant: float) -> None:
    g = torch.Generator().manual_seed(0)
    A, B, x = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((7, 4), (5, 4), (5, 2)))
    operator = GramOperator(A, B, constant)
    dense = A @ B.T + constant**2
    torch.testing.assert_close(operator @ x, dense @ x)
    torch.testing.assert_close(operator @ x[:, 0], dense @ x[:, 0])
    torch.testing.assert_close(operator.to_dense(), dense)
    torch.testing.assert_close(operator.T.to_dense(), dense.T)
    assert not operator.symmetric
    assert GramOperator(A).symmetric


def test_kronecker_identity_flattens_sample_major() -> None:
    g = torch.Generator().manual_seed(0)
    A, B = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (7, 5))
    operator = KroneckerIdentity(GramOperator(A, B, 1.0), 3)
    dense = torch.kron(A @ B.T + 1.0, torch.eye(3, dtype=torch.float64))
    assert operator.shape == (21, 15)
    torch.testing.assert_close(operator.to_dense(), dense)
    torch.testing.assert_close(operator.T.to_dense(), dense.T)
    x = torch.randn(5, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(operator.apply(x).flatten(), dense @ x.flatten())
    torch.testing.assert_close(operator @ x.flatten(), dense @ x.flatten())


def test_float32_factors_act_on_float64_vectors_in_float64() -> None:
    A = torch.randn(8, 4)
    x = torch.randn(8, 2, dtype=torch.float64)
    found = GramOperator(A) @ x
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, A.double() @ A.double().T @ x, rtol=1e-13, atol=1e-13)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(DataError, match=r"takes \[5\] or \[5, k\], got \[4\]"):
        GramOperator(torch.ones(7, 2), torch.ones(5, 2)) @ torch.ones(4)
    with pytest.raises(DataError, match=r"got \[7, 2\] and \[5, 3\]"):
        GramOperator(torch.ones(7, 2), torch.ones(5, 3))
