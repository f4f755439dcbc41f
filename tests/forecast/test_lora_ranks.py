"""Pruned LoRA against dense algebra on the inputs themselves, and as a module of peft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast import TaskMoments, forecast_layers, group_shrink, harmless_ranks, prune_ranks, rank_scores
from tangentcl.forecast.layer_moments import adapted_layers, layer_sketches, sketched_inputs
from tangentcl.forecast.lora_factors import input_moment, lora_factors

peft = pytest.importorskip("peft")
RANK = 4


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def model(seed: int = 0, *, fresh: bool = False, **keywords: Any) -> Any:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=["first", "second"], **keywords)
    found = peft.get_peft_model(Toy(), config).double()
    for name, p in found.named_parameters():
        if "lora_B" in name and not fresh:
            nn.init.normal_(p)
    return found.eval()


def recorded(made: Any, x: Tensor, task: int = 0, kind: str = "exact") -> TaskMoments:
    moments = TaskMoments.empty(3, sketch="exact", task=task)
    moments.layers.update(layer_sketches(adapted_layers(made), kind, 3))
    with sketched_inputs(adapted_layers(made), moments.layers), torch.no_grad():
        made(x)
    return moments


def data(seed: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 2.0, 1.0, 0.3, 0.1, 0.02, 1e-3], dtype=torch.float64)
    return scale * torch.randn(30, 7, generator=g, dtype=torch.float64) * spread[torch.randperm(7, generator=g)] + 0.3


def inputs(made: Any, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda module, args, out, name=name: found.__setitem__(name, args[0].detach()))
        for name, m in adapted_layers(made).items()
    ]
    made(x)
    for hook in hooks:
        hook.remove()
    return found


def changes(made: Any) -> dict[str, Tensor]:
    return {f.layer: f.change for f in lora_factors(made)}


def test_factors_are_those_of_peft_and_moments_those_of_the_inputs() -> None:
    made, x = model(), data(1)
    by_name = inputs(made, x)
    for factors in lora_factors(made):
        layer: Any = adapted_layers(made)[factors.layer]
        torch.testing.assert_close(factors.change, layer.get_delta_weight("default").detach())
        a = by_name[factors.layer]
        torch.testing.assert_close(input_moment(factors.layer, [recorded(made, x)]), a.T @ a / len(a))


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_energy_is_the_best_approximation_and_what_is_lost_the_discarded_squares(keep: int) -> None:
    made, x = model(), data(1)
    moments, before, a = [recorded(made, x)], changes(made), inputs(made, x)
    scores = rank_scores(made, moments)
    found = prune_ranks(made, moments, keep=keep)
    after = changes(made)
    for layer in found.layers:
        rows = a[layer.layer]
        u, sigma, vh = torch.linalg.svd(before[layer.layer] @ rows.T / len(rows) ** 0.5)  # [d_out, n]
        r = min(RANK, len(sigma))
        torch.testing.assert_close(scores[layer.layer][:r], sigma[:r].square(), rtol=1e-9, atol=1e-10)
        real = (rows @ (after[layer.layer] - before[layer.layer]).T).square().sum(dim=1).mean()
        assert layer.lost == pytest.approx(float(sigma[keep:].square().sum()), rel=1e-8)
        assert layer.lost == pytest.approx(float(real), rel=1e-8)
        best = u[:, :keep] * sigma[:keep] @ vh[:keep]
        torch.testing.assert_close(after[layer.layer] @ rows.T / len(rows) ** 0.5, best, rtol=1e-8, atol=1e-9)
        assert torch.linalg.matrix_rank(after[layer.layer]) == layer.kept == keep
    assert found.kept == 2 * keep
    assert made.peft_config["default"].r == RANK  # as peft wrote it
    assert found.to_dict()["layers"][0]["kept"] == keep


def test_a_share_keeps_the_fewest_ranks_that_have_it() -> None:
    made, moments = model(), [recorded(model(), data(1))]
    scores = rank_scores(made, moments)
    found = prune_ranks(made, moments, keep=0.9)
    for layer in found.layers:
        part = scores[layer.layer].cumsum(0) / scores[layer.layer].sum()
        assert part[layer.kept - 1] >= 0.9
        assert layer.kept == 1 or part[layer.kept - 2] < 0.9
        assert layer.lost <= 0.1 * layer.energy
    assert 0 < found.share_lost <= 0.1


@pytest.mark.parametrize("refit", [False, True])
def test_groups_are_the_largest_parts_and_a_refit_is_least_squares(refit: bool) -> None:
    made, x = model(), data(1)
    moments, old, a = [recorded(made, x)], lora_factors(made), inputs(made, x)
    scores = rank_scores(made, how="group")
    found = prune_ranks(made, moments, keep=2, how="group", refit=refit)
    for before, layer, after in zip(old, found.layers, changes(made).values()):
        parts = [before.scale * before.up[:, [j]] @ before.down[[j]] for j in range(RANK)]
        sizes = torch.stack([torch.linalg.matrix_norm(part) for part in parts])
        torch.testing.assert_close(scores[before.layer], sizes.sort(descending=True).values)
        top, rows = sizes.argsort(descending=True)[:2], a[before.layer]
        expected = before.scale * before.up[:, top] @ before.down[top]
        plain = float((rows @ (expected - before.change).T).square().sum(dim=1).mean())
        if refit:
            z = rows @ before.down[top].T  # [n, 2]
            expected = torch.linalg.lstsq(z, rows @ before.change.T).solution.T @ before.down[top]
        torch.testing.assert_close(after, expected, rtol=1e-8, atol=1e-9)
        real = float((rows @ (after - before.change).T).square().sum(dim=1).mean())
        assert layer.lost == pytest.approx(real, rel=1e-8)
        assert (layer.lost < 0.999 * plain) == refit


def test_what_stays_is_balanced_and_what_goes_can_learn_again() -> None:
    made, x = model(), data(1)
    prune_ranks(made, [recorded(made, x)], keep=2)
    for factors in lora_factors(made):
        torch.testing.assert_close(factors.up.norm(dim=0)[:2], factors.down.norm(dim=1)[:2])
        assert torch.equal(factors.up[:, 2:], torch.zeros_like(factors.up[:, 2:]))
        assert torch.linalg.matrix_rank(factors.down) == RANK
    made(x).square().sum().backward()
    for name, p in made.named_parameters():
        if "lora_B" in name:
            assert (p.grad.norm(dim=0) > 1e-6).all()
    fresh = model(fresh=True)
    found = prune_ranks(fresh, [recorded(fresh, x)], keep=3)
    assert (found.kept, found.share_lost) == (0, 0.0)
    assert all(torch.linalg.matrix_rank(f.down) == RANK for f in lora_factors(fresh))


def test_a_pruned_adapter_is_saved_and_loaded_by_peft(tmp_path: Any) -> None:
    made, x = model(), data(1)
    prune_ranks(made, [recorded(made, x)], keep=2)
    base = made(x).detach()
    made.save_pretrained(str(tmp_path))
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Toy().double(), str(tmp_path))
    torch.testing.assert_close(again.eval()(x), base, rtol=1e-6, atol=1e-6)
    assert again.peft_config["default"].r == RANK


@pytest.mark.parametrize("strength", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_shrinkage_is_the_proximal_operator_of_the_squared_k_support_norm(k: int, strength: float) -> None:
    v = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) * 3
    x = group_shrink(v, k, strength)
    # Moreau: (v - x) / strength is the gradient at x, and the conjugate is half the sum of the k largest squares:
    # Fenchel's equality <x, g> = f(x) + f*(g), with f(x) by its definition as a maximum over the dual ball.
    g = (v - x) / strength
    conjugate = float(g.square().sort(descending=True).values[:k].sum()) / 2
    primal = float(x @ g) - conjugate
    for seed in range(200):  # no other dual vector does better, so primal is f(x) = max_g <x, g> - f*(g)
        other = g * (1 + 0.3 * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        assert float(x @ other) - float(other.square().sort(descending=True).values[:k].sum()) / 2 <= primal + 1e-9
    assert float(x.count_nonzero()) >= k
    torch.testing.assert_close(group_shrink(v, 6, strength), v / (1 + strength))
    assert torch.equal(group_shrink(torch.zeros(3), 1, 1.0), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.2, 10.0])
def test_harmless_ranks_move_old_layers_no_further_than_said(tolerance: float) -> None:
    made = model()
    tasks = [data(1), data(2, 0.5), data(3)]
    moments = [recorded(made, x, i) for i, x in enumerate(tasks)]
    before, a = changes(made), [inputs(made, x) for x in tasks]
    found = harmless_ranks(made, moments[:2], moments[2], tolerance=tolerance)
    assert all(torch.equal(before[k], v) for k, v in changes(made).items())
    predicted = [forecast_layers([m], made, found.values) for m in moments]
    layers = {name: (m.base_layer.weight.detach(), m.base_layer.bias.detach()) for name, m in _pairs(made)}
    found.apply(made)
    assert found.dropped == 2 * RANK - sum(int(torch.linalg.matrix_rank(c)) for c in changes(made).values())
    for k in range(3):
        for i, name in enumerate(predicted[k].layers):
            weight, bias = layers[name]
            rows = a[k][name]
            whole = (rows @ (weight + before[name]).T + bias).square().sum()
            moved = (rows @ (changes(made)[name] - before[name]).T).square().sum()
            real = float((moved / whole).sqrt())
            assert real <= tolerance + 1e-9
            assert float(predicted[k].relative[i]) == pytest.approx(real, rel=1e-6, abs=1e-9)
    if tolerance == 10.0:
        assert found.dropped == 2 * RANK
    else:
        assert found.dropped < 2 * RANK
    single = [r for r in found.ranks if r.layer.endswith("first")]
    assert [r.direction for r in single] == list(range(RANK))
    assert found.table().count("\n") == 2
    assert len(found.to_dict()["ranks"]) == 2 * RANK


def _pairs(made: Any) -> Any:
    return adapted_layers(made).items()


def test_one_rank_alone_moves_a_layer_by_what_the_table_says_and_predicted_values_can_be_asked() -> None:
    made, other = model(), model(seed=5)
    moments = [recorded(made, data(1))]
    values = {n: p.detach() for n, p in other.named_parameters() if "lora" in n}
    found = harmless_ranks(made, moments, tolerance=0.0, after=values)
    f = lora_factors(other)[0]
    rows = inputs(made, data(1))[f.layer]  # what the stored moments are of
    sigma = torch.linalg.svdvals(f.change @ rows.T)
    base: Any = adapted_layers(made)[f.layer]
    whole = (rows @ (base.base_layer.weight.detach() + f.change).T + base.base_layer.bias.detach()).norm()
    assert [r.old for r in found.ranks[:RANK]] == pytest.approx((sigma[:RANK] / whole).tolist(), rel=1e-6)
    assert found.ranks[0].new != found.ranks[0].new  # there is no new task
    assert found.ranks[0].harmless_new


def test_refusals() -> None:
    made = model()
    moments = [recorded(made, data(1))]
    for keep in (-1, 0.0, 1.5, True):
        with pytest.raises(ConfigError, match="keep must be"):
            prune_ranks(made, moments, keep=keep)
    with pytest.raises(ConfigError, match="Did you mean 'energy'"):
        rank_scores(made, moments, how="enrgy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tolerance"):
        harmless_ranks(made, moments, tolerance=-1)
    with pytest.raises(ConfigError, match="at least one group"):
        group_shrink(torch.ones(2), 0, 1.0)
    with pytest.raises(DataError, match="same adapters"):
        prune_ranks(made, [TaskMoments.empty(3)], keep=1)
    with pytest.raises(DataError, match="at least one task"):
        rank_scores(made)
    with pytest.raises(ModelError, match="DoRA"):
        rank_scores(model(use_dora=True), moments)
    with pytest.raises(ModelError, match="trains by LoRA"):
        rank_scores(Toy(), moments)
