"""The feature kernel against an explicit J J^T."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.kernels import FeatureKernel


def _jacobian(head: nn.Linear, x: Tensor) -> Tensor:
    """Of all outputs in all parameters of the head, [n C, P]."""
    parameters = dict(head.named_parameters())

    def outputs(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(head, values, (x,)).flatten()

    blocks = torch.func.jacrev(outputs)(parameters)
    return torch.cat([block.flatten(1) for block in blocks.values()], dim=1).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_tangent_kernel_of_a_linear_head(bias: bool) -> None:
    head = nn.Linear(4, 3, bias=bias).double()
    x1, x2 = torch.randn(5, 4).double(), torch.randn(6, 4).double()
    kernel = FeatureKernel(3, bias=bias)
    assert kernel.exact
    J1, J2 = _jacobian(head, x1), _jacobian(head, x2)
    torch.testing.assert_close(kernel(x1, x2).to_dense(), J1 @ J2.T)
    own = kernel(x1).to_dense()
    torch.testing.assert_close(own, J1 @ J1.T)
    torch.testing.assert_close(own, own.T)
    assert torch.linalg.eigvalsh(own).min() > -1e-12


def test_features_come_from_the_backbone() -> None:
    backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    x = torch.randn(5, 4)
    found = FeatureKernel(2, backbone)(x)
    assert not found.base.A.requires_grad
    torch.testing.assert_close(found.base.A, backbone(x).detach())
    with pytest.raises(ModelError, match=r"expected features \[n, d\], got \[2, 3, 4\]"):
        FeatureKernel(2)(torch.ones(2, 3, 4))
