"""Modes of the old samples' tangent kernel, averaged over outputs, against a dense J J^T."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import DataError
from tangentcl.forecast import GradientDescent, prepare_forecast
from tangentcl.forecast.old_kernel import FeatureModes, JacobianModes
from tangentcl.forecast.old_modes import PROBES, in_turn, old_modes

C = 3


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)).double()


def _kernel(model: nn.Module, x: Tensor) -> Tensor:
    values = {name: p.detach() for name, p in model.named_parameters()}
    J = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, (x,)).flatten())(values)
    rows = torch.cat([block.flatten(1) for block in J.values()], dim=1)
    return rows @ rows.T


def _case() -> tuple[nn.Sequential, Tensor, Tensor, tuple[Tensor, Tensor]]:
    model = _model()
    torch.manual_seed(1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2])
    return model, torch.randn(9, 4).double(), labels, (torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1]))


@pytest.mark.parametrize("modes", [512, 4, 1])
def test_energies_are_projections_on_the_eigenvectors_of_the_dense_kernel(modes: int) -> None:
    model, old, labels, new = _case()
    prepared = prepare_forecast(model, (old, labels), new, modes=modes)
    forecast = prepared.forecast(GradientDescent(lr=0.05, steps=4))
    chosen = forecast.mode_samples
    assert len(chosen) == min(9, modes)
    K = _kernel(model, old[chosen])
    values, vectors = torch.linalg.eigh((K[0::C, 0::C] + K[1::C, 1::C] + K[2::C, 2::C]) / C)
    values, vectors = values.flip(0), vectors.flip(1)
    drift = forecast.drift[chosen]
    energy = (vectors.T @ drift).square().sum(dim=1)
    found = forecast.vulnerability
    kept = len(found.values)
    assert kept == len(chosen)
    torch.testing.assert_close(found.values, values[:kept], rtol=1e-6, atol=1e-9 * float(values[0]))
    torch.testing.assert_close(found.energy, energy[:kept], rtol=1e-5, atol=1e-7 * float(energy.sum()))
    assert found.total == pytest.approx(float(drift.square().sum()), rel=1e-12)
    assert found.multiplicity.tolist() == [C] * kept
    assert float(found.cumulative[-1]) <= 1 + 1e-9

    for mode in forecast.modes(3):
        assert mode.loading.shape == (len(chosen),)
        assert float(mode.loading.sum()) == pytest.approx(1.0, abs=1e-10)
        expected = vectors[:, mode.index].square()
        torch.testing.assert_close(mode.loading, expected, rtol=1e-4, atol=1e-6)
        assert mode.share == pytest.approx(float(energy[mode.index] / energy.sum()), rel=1e-5)
    shares = [mode.share for mode in forecast.modes(9)]
    assert shares == sorted(shares, reverse=True)


def test_the_kernel_is_of_what_trains_before_training() -> None:
    model, old, labels, new = _case()
    model[0].requires_grad_(False)
    setting = prepare_forecast(model, (old, labels), new, form="bilinear")._setting
    found, passes = old_modes(setting)
    head = torch.cat([torch.tanh(model[0](old)), torch.ones(9, 1).double()], dim=1).detach()
    values = torch.linalg.eigvalsh(head @ head.T).flip(0)
    torch.testing.assert_close(found.spectrum.values, values[: len(found.spectrum.values)], rtol=1e-6, atol=1e-9)
    assert len(found.spectrum.values) == 7  # six features and a constant
    assert passes == 9 * (1 + C)
    exact = FeatureModes(torch.tanh(model[0](old)).detach(), True)
    drift = torch.randn(9, C).double()
    ours, theirs = found.vulnerability(drift), exact.vulnerability(drift)
    assert ours.multiplicity.tolist() == theirs.multiplicity.tolist() == [C] * 7
    torch.testing.assert_close(ours.energy, theirs.energy, rtol=1e-6, atol=1e-9)
    assert isinstance(found, JacobianModes)


def test_many_outputs_are_probed_with_random_signs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 20)).double()
    old, new = torch.randn(12, 4).double(), (torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1]))
    K = _kernel(model, old).view(12, 20, 12, 20).diagonal(dim1=1, dim2=3).mean(dim=2)
    found, passes = old_modes(prepare_forecast(model, old, new)._setting)
    assert (found.probes, passes) == (PROBES, 12 * (1 + PROBES))
    G = found.spectrum.features
    assert 0.01 < float((G - K).norm() / K.norm()) < 0.2
    model[0].requires_grad_(False)  # the head alone: a Kronecker kernel, on which signs are exact
    K = _kernel_of_head(model, old)
    found, _ = old_modes(prepare_forecast(model, old, new, form="bilinear")._setting)
    torch.testing.assert_close(found.spectrum.features, K, rtol=1e-9, atol=1e-12)


def _kernel_of_head(model: nn.Sequential, x: Tensor) -> Tensor:
    h = torch.cat([torch.tanh(model[0](x)), torch.ones(len(x), 1).double()], dim=1).detach()
    return h @ h.T


def test_without_modes_there_are_none() -> None:
    model, old, labels, new = _case()
    forecast = prepare_forecast(model, (old, labels), new, modes=0).forecast(GradientDescent(lr=0.05, steps=2))
    assert forecast.old_kernel is None
    with pytest.raises(DataError, match="no kernel of its old samples"):
        _ = forecast.vulnerability


def test_classes_take_turns() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [2] * 7)
    for m, counts in ((3, [1, 1, 1]), (9, [3, 3, 3]), (14, [6, 3, 5]), (30, [20, 3, 7])):
        chosen = in_turn(30, labels, m)
        assert torch.equal(chosen, chosen.unique())
        found = torch.bincount(labels[chosen], minlength=3)
        assert int(found.sum()) == m
        if m == 14:  # after the second class is used up the others go on in turn
            assert int(found[1]) == 3
            assert abs(int(found[0]) - int(found[2])) <= 1
        else:
            assert found.tolist() == counts
        assert torch.equal(chosen, in_turn(30, labels, m))
    for labels in (None, torch.randn(30, 2)):
        chosen = in_turn(30, labels, 11)
        assert len(chosen.unique()) == 11
        assert torch.equal(chosen, chosen.sort().values)
    assert not torch.equal(in_turn(30, None, 11), torch.arange(11))
