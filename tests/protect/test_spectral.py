"""The spectral regulariser against drift that is computed from old samples, and against dense algebra."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tangentcl.data import ArrayTransform, class_incremental, load
from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast import SGD, forecast_forgetting, forecast_from_moments
from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg import LowRankDiagonal, make_sketch, with_constant
from tangentcl.methods import Finetune
from tangentcl.nn import from_module
from tangentcl.protect.anchor_penalty import AnchorPenalty
from tangentcl.protect.jacobian_penalty import PROBED, JacobianPenalty
from tangentcl.protect.layer_penalty import LayerPenalty
from tangentcl.protect.spectral import SpectralRegularizer, trained_values
from tangentcl.training.moments import collect_moments

D, C, N = 6, 3, 40


def _moved(model: nn.Module, size: float = 0.1) -> nn.Module:
    other = copy.deepcopy(model)
    for p in other.parameters():
        if p.requires_grad:
            p.data.add_(size * torch.randn_like(p))
    return other


def _trained(model: nn.Module, steps: int = 20) -> nn.Module:
    """By SGD on other samples."""
    other = copy.deepcopy(model)
    x, y = torch.randn(30, D), torch.randint(0, C, (30,))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        optimizer.step()
    return other


def _drift(model: nn.Module, moved: nn.Module, old: Tensor) -> Tensor:
    with torch.no_grad():
        return 0.5 * (moved(old) - model(old)).square().sum(dim=1).mean()


def _old(n: int = N) -> Tensor:
    return torch.randn(n, D) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1]) + 1.0


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C))


# --- a linear head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["layers", "jacobian"])
def test_for_a_linear_head_it_is_the_drift(bias: bool, form: str) -> None:
    head, old = nn.Linear(D, C, bias=bias), _old()
    guard = SpectralRegularizer.of_old(head, old, k=D + 1, form=form)
    assert guard.head == ""
    after = _trained(head)
    torch.testing.assert_close(guard(after), _drift(head, after, old), rtol=1e-5, atol=1e-7)
    assert float(_drift(head, after, old)) > 0.1
    assert float(guard(head)) == 0.0


def test_a_sketch_stays_within_its_bounds() -> None:
    head, old = nn.Linear(D, C), _old()
    exact = LowRankDiagonal(D + 1, k=2)
    exact.update(with_constant(old, 1.0))
    guard = SpectralRegularizer.of_old(head, old, k=2)
    for _ in range(5):
        after = _moved(head)
        delta = torch.cat([after.weight - head.weight, (after.bias - head.bias)[:, None]], dim=1).T.detach()  # type: ignore
        low, high = (float(bound.sum()) / (2 * N) for bound in exact.bounds(delta))
        assert low * (1 - 1e-5) <= float(guard(after)) <= high * (1 + 1e-5)
        assert low * (1 - 1e-5) <= float(_drift(head, after, old)) <= high * (1 + 1e-5)
        assert float(guard(after)) == pytest.approx(float(exact.energy(delta).sum()) / (2 * N), rel=1e-5)


def test_two_tasks_are_as_both_at_once() -> None:
    model, old = _network(), _old()
    for form in ("layers", "jacobian"):
        both = SpectralRegularizer.of_old(model, old, k=100, form=form, weights="equal")
        one = SpectralRegularizer.of_old(model, old[:16], k=100, form=form, weights="equal")
        one.observe(model, old[16:])
        after = _moved(model)
        if form == "layers":
            torch.testing.assert_close(one(after), both(after), rtol=1e-4, atol=1e-7)
        else:  # signs of outputs are drawn for every task
            assert float(one.jacobian.samples) == float(both.jacobian.samples) == N  # type: ignore[union-attr]
        head_alone = copy.deepcopy(model)
        head_alone[2].weight.data.add_(0.3)
        torch.testing.assert_close(one(head_alone), both(head_alone), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(one(head_alone), _drift(model, head_alone, old), rtol=1e-4, atol=1e-7)


# --- layers below ---------------------------------------------------------------------------------------------------


def _second_moments(model: nn.Sequential, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the inputs of both layers with a constant, and of the outputs' gradients at the first one's: dense."""
    hidden = torch.tanh(model[0](old)).detach()
    M0, M1 = (with_constant(a, 1.0).T @ with_constant(a, 1.0) / N for a in (old.double(), hidden.double()))
    # d f_c / d z_j = W_cj (1 - h_j^2) in signs s: g = (1 - h^2) * (W' s), as the penalty draws them
    signs = torch.randint(0, 2, (N, C), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    g = ((1 - hidden.square()) * (signs @ model[2].weight.detach())).double()
    return M0, M1, g.T @ g / N


@pytest.mark.parametrize("weights", ["gradients", "equal"])
@pytest.mark.parametrize("body", [1.0, 0.3])
def test_layers_equal_dense_kfac(weights: str, body: float) -> None:
    model, old = _network(), _old()
    penalty = LayerPenalty(model, head="2", k=20, body=body, weights=weights)
    penalty.hold(trained_values(model))
    penalty.observe(model, [old], lambda m, x: m(x))
    M0, M1, G = _second_moments(model, old)
    after = _moved(model)
    delta = [
        torch.cat([b.weight - a.weight, (b.bias - a.bias)[:, None]], dim=1).T.double().detach()
        for a, b in ((model[0], after[0]), (model[2], after[2]))  # type: ignore[index]
    ]
    below = delta[0].T @ M0 @ delta[0]
    wanted = torch.trace(delta[1].T @ M1 @ delta[1]) + body * torch.trace(
        below @ G if weights == "gradients" else below
    )
    torch.testing.assert_close(penalty.energy(trained_values(after)).double(), wanted, rtol=1e-5, atol=1e-8)


def test_tokens_count_and_norms_are_held_as_they_are() -> None:
    """T tokens per sample weigh a layer T-fold; what is no linear layer is held by its squared change."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer, self.head = nn.LayerNorm(D), nn.Linear(D, 4), nn.Linear(4, C)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(self.norm(x)).mean(dim=1))
            return out

    model, old = Tokens(), torch.randn(N, 7, D)
    guard = SpectralRegularizer.of_old(model, old, k=20, weights="equal")
    assert guard.head == "head"
    assert guard.layers.rest == ("norm.weight", "norm.bias")
    assert float(guard.layers.tokens) == N  # without gradients nothing is weighed by tokens
    weighed = SpectralRegularizer.of_old(model, old, k=20)
    assert float(weighed.layers.tokens) == 7 * N
    after = copy.deepcopy(model)
    after.norm.bias.data.add_(0.2)
    assert float(guard(after)) == pytest.approx(0.5 * D * 0.04 * 1, rel=1e-5)


def test_a_jacobian_is_that_of_all_outputs_on_average() -> None:
    model, old = _network(), _old(PROBED)
    names = ["0.weight", "0.bias"]

    def jacobian(x: Tensor) -> Tensor:
        f = model(x[None])[0]
        rows = [torch.autograd.grad(f[c], [model[0].weight, model[0].bias], retain_graph=True) for c in range(C)]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    J = torch.cat([jacobian(x) for x in old])  # [n C, P]
    P = J.shape[1]
    wanted = (J.T @ J).double()
    # One sample at a time and one output: the signs square away, and the second moment is exact.
    one = JacobianPenalty(model, names, k=P)
    for x in old:
        for c in range(C):
            one.observe(model, [x[None]], lambda m, v, c=c: m(v)[:, c : c + 1])
    (sketch,) = one.moment.sketches()
    torch.testing.assert_close(sketch.matrix(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.diagonal().max()))
    assert float(one.samples) == PROBED * C
    # With all outputs at once it is so on average over signs.
    many = JacobianPenalty(model, names, k=P)
    repeats = 500
    many.observe(model, [old.repeat(repeats, 1)], lambda m, x: m(x))
    many.hold(trained_values(model))
    after = _moved(model)
    delta = torch.cat([(b - a).flatten() for a, b in zip(model[0].parameters(), after[0].parameters())]).detach()  # type: ignore
    true = float((J @ delta).square().sum()) / PROBED
    assert float(many.energy(trained_values(after))) == pytest.approx(true, rel=0.15)
    assert float(many.samples) == PROBED * repeats


def test_the_jacobian_form_is_the_drift_to_first_order() -> None:
    model, old = _network(), _old(200)
    guard = SpectralRegularizer.of_old(model, old, k=200, form="jacobian")
    assert guard.jacobian is not None
    assert guard.jacobian.names == ("0.bias", "0.weight")
    ratios = []
    for _ in range(30):
        after = copy.deepcopy(model)
        for p in after[0].parameters():
            p.data.add_(1e-3 * torch.randn_like(p))
        ratios.append(float(guard(after) / _drift(model, after, old)))
    assert sum(ratios) / 30 == pytest.approx(1.0, abs=0.2)


# --- forecasts and moments ------------------------------------------------------------------------------------------


def _head_forecast() -> tuple[nn.Linear, Tensor, tuple[Tensor, Tensor], SGD]:
    head, old = nn.Linear(D, C), _old()
    new = torch.randn(12, D) * torch.tensor([0.05, 0.1, 0.2, 1.0, 3.0, 5.0])
    return head, old, (new, torch.full((12,), 2)), SGD(lr=0.1, batches=[list(range(12))] * 10)


@pytest.mark.parametrize("stored", [False, True])
def test_a_forecast_chooses_the_directions_that_will_drift_most(stored: bool) -> None:
    head, old, new, recipe = _head_forecast()
    forecast: Any
    if stored:
        task = TaskMoments.empty(D, sketch="exact")
        task.add(old, torch.arange(N) % 2)
        forecast = forecast_from_moments([task], head, new, recipe, seen=2)
    else:
        forecast = forecast_forgetting(head, old, new, recipe)
    guard = SpectralRegularizer.from_forecast(head, forecast, rank=2)
    A = with_constant(old.double(), 1.0)
    values, vectors = torch.linalg.eigh(A.T @ A)
    trained = copy.deepcopy(head)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for rows in recipe.batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(new[0][rows]), new[1][rows]).backward()
        optimizer.step()
    delta = torch.cat([trained.weight - head.weight, (trained.bias - head.bias)[:, None]], dim=1).T.double().detach()
    drift = values * (vectors.T @ delta).square().sum(dim=1)
    chosen = drift.argsort(descending=True)[:2]
    assert set(chosen.tolist()) != set(values.argsort(descending=True)[:2].tolist())  # not simply the largest
    rows = guard.layers.inputs[0].rows[0].double()  # type: ignore[union-attr]
    wanted = (vectors[:, chosen] * values[chosen]) @ vectors[:, chosen].T
    torch.testing.assert_close(rows.T @ rows, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    whole = rows.T @ rows + guard.layers.inputs[0].diagonal[0].double().diag()  # type: ignore[union-attr]
    torch.testing.assert_close(whole.diagonal(), (A.T @ A).diagonal(), rtol=1e-4, atol=1e-4)
    assert guard.k == 2


def test_stored_moments_give_what_the_samples_give() -> None:
    stream = class_incremental(load("digits"), n_tasks=5, train_per_class=10)
    stream = stream.with_transforms(ArrayTransform(), ArrayTransform())
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())
    backbone = from_module(body, lambda m, x: m(x.float() / 255), 12, name="mlp", modality="array")
    method = Finetune(backbone, tune="full")
    method.begin_task(stream[0])
    moments = collect_moments(method.backbone, stream[0], k=100, layers_k=100, sketch="exact")
    stored = SpectralRegularizer.from_moments(method, [moments], k=100)
    read = SpectralRegularizer.of_old(method, stream[0].train_eval, k=100, weights="equal")
    assert stored.head == read.head == "head"
    after = _moved(method)
    torch.testing.assert_close(stored(after), read(after), rtol=1e-4, atol=1e-7)
    assert float(read(after)) > 0.01


def test_moments_of_other_layers_are_refused() -> None:
    model = _network()
    task = TaskMoments.empty(5, sketch="exact")
    with pytest.raises(DataError, match="at least one task"):
        SpectralRegularizer.from_moments(model, [])
    with pytest.raises(DataError, match="know nothing of the layers"):
        SpectralRegularizer.from_moments(model, [task])
    task.layers["elsewhere"] = make_sketch("exact", D + 1, 4)
    with pytest.raises(DataError, match="'elsewhere', which the model does not train"):
        SpectralRegularizer.from_moments(model, [task])
    wide = TaskMoments.empty(9, sketch="exact")
    with pytest.raises(DataError, match="another width"):
        SpectralRegularizer.from_moments(nn.Linear(D, C), [wide], head="")
    with pytest.raises(ConfigError, match="no gradients"):
        SpectralRegularizer.from_moments(nn.Linear(D, C), [wide], head="", weights="gradients")


# --- state and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["layers", "jacobian"])
def test_a_state_dict_and_a_file_hold_everything(form: str, tmp_path: Path) -> None:
    model, old = _network(), _old()
    guard = SpectralRegularizer.of_old(model, old, k=3, form=form, strength=0.2, body=0.5)
    after, path = _moved(model), tmp_path / "guard.safetensors"
    again = SpectralRegularizer(_network(), head="2", k=3, form=form, body=0.5)
    again.load_state_dict(guard.state_dict())
    assert float(again(after)) == float(guard(after)) > 0
    guard.save(path)
    loaded = SpectralRegularizer.load(path, _moved(model))
    assert float(loaded(after)) == float(guard(after))
    assert (loaded.strength, loaded.head, loaded.k, loaded.body, loaded.form) == (0.2, "2", 3, 0.5, form)
    for one in (guard, loaded):  # and they go on alike
        one.observe(after, old[:9])
    assert all(torch.equal(value, guard.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert not list(tmp_path.glob("*.part"))


def test_a_file_of_a_guard_with_fewer_directions_is_read(tmp_path: Path) -> None:
    head, old, new, recipe = _head_forecast()
    guard = SpectralRegularizer.from_forecast(head, forecast_forgetting(head, old, new, recipe), rank=2)
    guard.save(tmp_path / "guard.safetensors")
    after = _moved(head)
    assert float(SpectralRegularizer.load(tmp_path / "guard.safetensors", head)(after)) == float(guard(after))


def test_files_that_are_not_of_this_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "guard.safetensors"
    with pytest.raises(DataError, match="there is no file"):
        SpectralRegularizer.load(path, nn.Linear(D, C))
    SpectralRegularizer.of_old(nn.Linear(D, C), _old()).save(path)
    with pytest.raises(ModelError, match=r"guard.safetensors is not of this model.*\[5, 6\], and \[3, 6\]"):
        SpectralRegularizer.load(path, nn.Linear(D, 5))
    with pytest.raises(ModelError, match=r"guard.safetensors is not of this model"):
        SpectralRegularizer.load(path, _network())
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(DataError, match=r"guard\.safetensors is damaged"):
        SpectralRegularizer.load(path, nn.Linear(D, C))


def test_rows_that_were_added_have_to_be_held() -> None:
    head = nn.Linear(D, C)
    guard = SpectralRegularizer.of_old(head, _old(), k=20)
    grown = nn.Linear(D, C + 2)
    with pytest.raises(ModelError, match=r"guard.hold\(model\) once rows are added"):
        guard(grown)
    guard.hold(grown)
    assert float(guard(grown)) == 0.0


# --- anchors --------------------------------------------------------------------------------------------------------


def test_anchors_by_hand() -> None:
    head = nn.Linear(2, 1, bias=False)
    head.weight.data = torch.tensor([[1.0, 2.0]])
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    penalty = AnchorPenalty(head, anchors, lambda m, x: m(x), per_step=2)
    assert penalty.kept.flatten().tolist() == [1.0, 2.0, 3.0]
    grown = nn.Linear(2, 2, bias=False)
    grown.weight.data = torch.tensor([[2.0, 5.0], [9.0, 9.0]])  # the new output is left out
    drift = [1.0, 9.0, 16.0]
    assert float(penalty.energy(grown)) == (drift[0] + drift[1]) / 2
    assert float(penalty.energy(grown)) == (drift[2] + drift[0]) / 2
    penalty.eval()
    assert float(penalty.energy(grown)) == float(penalty.energy(grown)) == (drift[1] + drift[2]) / 2
    with pytest.raises(ConfigError, match="per_step"):
        AnchorPenalty(head, anchors, lambda m, x: m(x), per_step=0)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    head = nn.Linear(D, C)
    with pytest.raises(ConfigError, match="Did you mean 'layers'"):
        SpectralRegularizer(head, form="layer")
    with pytest.raises(ConfigError, match="strength must be zero or positive"):
        SpectralRegularizer(head, strength=-1.0)
    with pytest.raises(ConfigError, match="weights must be one of"):
        SpectralRegularizer(head, weights="loss")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        SpectralRegularizer(head, k=0)
    with pytest.raises(ModelError, match="no linear layer that trains"):
        SpectralRegularizer(head, head="classifier")
    with pytest.raises(ModelError, match="nothing of the model trains"):
        SpectralRegularizer(nn.Linear(D, C).requires_grad_(False))
    with pytest.raises(DataError):
        SpectralRegularizer.of_old(head, torch.zeros(0, D))
    with pytest.raises(DataError, match="no old sample"):
        SpectralRegularizer(head).observe_batches(head, [])
    with pytest.raises(ModelError, match="not finite"):
        SpectralRegularizer.of_old(head, torch.full((4, D), float("nan")))
    for form in ("layers", "jacobian"):
        guard = SpectralRegularizer(_network(), head="2", form=form)
        with pytest.raises(DataError, match="finite"):
            guard.observe(_network(), torch.full((4, D), float("inf")) * 0)
    with pytest.raises(ConfigError, match="rank"):
        SpectralRegularizer.from_forecast(head, None, rank=0)  # type: ignore[arg-type]
