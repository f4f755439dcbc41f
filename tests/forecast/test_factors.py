"""Changes of features by factors of layers, against dense Jacobians in float64."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.forecast.factors import TOKENS, Derivatives, derivatives
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.site_check import checked_sites
from tangentcl.forecast.sites import Values, find_sites
from tangentcl.kernels.network import Network

D, K, N = 5, 3, 4


class Mixed(nn.Module):
    """Linear with and without bias, two norms, an embedding, a prompt, a scalar: [B, T] -> h."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.prompt = nn.Embedding(9, 6), nn.Parameter(torch.randn(2, 6))
        self.norm, self.late = nn.LayerNorm(6), nn.LayerNorm(D, bias=False)
        self.q, self.v = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.out, self.scale = nn.Linear(6, D), nn.Parameter(torch.tensor(1.3))
        nn.init.normal_(self.norm.weight, 1.0, 0.3)
        nn.init.normal_(self.norm.bias, 0.0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.norm(torch.cat([self.prompt.expand(len(h), -1, -1), h], dim=1))
        h = h + (self.q(h) @ h.transpose(1, 2)).softmax(dim=-1) @ self.v(h)
        h = h + torch.tanh(self.v(h))  # a layer that is called twice
        return self.late(self.scale * self.out(h).mean(dim=1))


def made(model: nn.Module, lora: bool = False, live: bool = True) -> nn.Module:
    """In float64; with LoRA on two layers, B drawn where it is live."""
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q", "v"]))
        for name, p in model.named_parameters():
            if "lora_B" in name and live:
                nn.init.normal_(p, std=0.4)
    return model.double().eval()


def found(model: nn.Module, x: Any, P: Tensor, *, first_order: bool = False, **settings: Any) -> Derivatives:
    network, inputs = Network(model), Inputs.of(x, "new")
    sites, rest = find_sites(network, None, first_order=first_order)
    sites, rest = checked_sites(network, sites, rest, x)
    settings = {"chunk": 3, "dtype": torch.float64, **settings}
    return derivatives(network, sites, rest, inputs, P, move=lambda b: b, **settings)


def moved(model: nn.Module, size: float = 1.0) -> Values:
    g = torch.Generator().manual_seed(3)
    values = Network(model).values
    return {name: v + size * torch.randn(v.shape, generator=g, dtype=v.dtype) for name, v in values.items()}


def dense_change(model: nn.Module, x: Any, P: Tensor, values: Values) -> Tensor:
    r"""P J delta from torch.func, [n, k]."""
    start = Network(model).values
    J = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, (x,)))(start)
    total = sum(
        (J[name].reshape(len(P), -1, start[name].numel()) @ (values[name] - start[name]).flatten() for name in start),
        torch.zeros(1),
    )
    return torch.einsum("nkd,nd->nk", P, total)


def directions(n: int = N, d: int = D, k: int = K) -> Tensor:
    return torch.randn(n, k, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(a: Tensor, b: Tensor, bound: float = 1e-10) -> None:
    assert (a - b).norm() < bound * b.norm()


X = torch.randint(0, 9, (N, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trains", ["all", "norms", "biases", "embed prompt scale", "lora", "lora and norms"])
def test_any_displacement(trains: str) -> None:
    torch.manual_seed(0)
    model, P = made(Mixed(), lora="lora" in trains), directions()
    for name, p in model.named_parameters():
        chosen = {
            "all": True,
            "norms": "norm" in name or "late" in name,
            "biases": name.endswith("bias"),
            "embed prompt scale": any(word in name for word in trains.split()),
            "lora": "lora" in name,
            "lora and norms": any(word in name for word in ("lora", "norm")),
        }
        p.requires_grad_(chosen[trains])
    kept, values = found(model, X, P), moved(model)
    close(kept.change(torch.arange(N), values), dense_change(model, X, P, values))
    rows = torch.tensor([2, 0, 2])
    close(kept.change(rows, values), dense_change(model, X, P, values)[rows])
    assert not kept.change(rows, Network(model).values).any()
    expected = {"norms": 0, "biases": 0, "lora": 0, "lora and norms": 0}.get(trains, 2)
    assert len(kept.names) == expected  # prompt and scale have no rule


def test_gradients_in_the_parameters_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    model, P = made(Mixed(), lora=True), directions()
    kept = found(model, X, P)
    values = {name: v.clone().requires_grad_() for name, v in Network(model).values.items()}
    weights = torch.randn(N, K, dtype=torch.float64)
    ours = torch.autograd.grad((kept.change(torch.arange(N), values) * weights).sum(), list(values.values()))
    parameters = Network(model).parameters
    truth = torch.autograd.grad((torch.einsum("nkd,nd->nk", P, model(X)) * weights).sum(), list(parameters.values()))
    for name, a, b in zip(parameters, ours, truth):
        assert (a - b).norm() <= 1e-10 * b.norm(), name


def test_blind_lora_is_the_change_of_the_merged_weight() -> None:
    torch.manual_seed(0)
    model, P = made(Mixed(), lora=True, live=False), directions()
    values = moved(model)
    inner = model.get_base_model()  # type: ignore[operator]
    merged = {f"{name}.base_layer.weight": getattr(inner, name).base_layer.weight.detach() for name in ("q", "v")}
    J = torch.func.jacrev(lambda v: torch.func.functional_call(inner, v, (X,)))(merged)
    total = torch.zeros(N, D, dtype=torch.float64)
    for name in ("q", "v"):
        A, B = (values[f"base_model.model.{name}.lora_{f}.default.weight"] for f in "AB")
        total += J[f"{name}.base_layer.weight"].flatten(2) @ (3.0 * B @ A).flatten()  # alpha / r = 3
    close(found(model, X, P).change(torch.arange(N), values), torch.einsum("nkd,nd->nk", P, total))
    plain = found(model, X, P, first_order=True).change(torch.arange(N), values)
    close(plain, dense_change(model, X, P, values))
    assert (plain - found(model, X, P).change(torch.arange(N), values)).norm() > 0.1 * plain.norm()


class Long(nn.Module):
    """A layer over many tokens whose sum has a chosen rank."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(50, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return (torch.linspace(0.1, 2, x.shape[1], dtype=x.dtype)[:, None] * h * h).sum(dim=1)[:, :40] / 10


@pytest.mark.parametrize("rank", [3, TOKENS, 45])
def test_long_sums_keep_what_their_rank_allows(rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 70, rank, dtype=torch.float64) @ torch.randn(rank, 50, dtype=torch.float64)
    model, P = made(Long()), directions(2, 40)
    (_, factors), *_ = found(model, x, P).sites
    assert factors.first.tolist() == [0, TOKENS, 2 * TOKENS]
    J = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, (x,)))(Network(model).values)["layer.weight"]
    truth = torch.einsum("nkd,ndoi->nkoi", P, J).permute(0, 2, 1, 3).flatten(1, 2)  # [n, o k, i]
    errors = []
    for i in range(2):
        a, g, _ = factors.of(torch.tensor([i]))
        kept = torch.einsum("tko,ti->oki", g, a).flatten(0, 1)
        errors.append(float((kept - truth[i]).norm() / truth[i].norm()))
    if rank <= TOKENS:
        assert max(errors) < 1e-10
        assert factors.lost < 1e-10
    else:
        best = max(float(s[TOKENS:].norm() / s.norm()) for s in (torch.linalg.svdvals(t) for t in truth))
        assert factors.lost == pytest.approx(best, rel=1e-9)
        assert max(errors) == pytest.approx(best, rel=1e-9)
        assert 1e-3 < best < 0.5


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, D)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        mask = x["mask"][..., None]
        return (torch.tanh(self.layer(x["tokens"])) * mask).sum(dim=1) / mask.sum(dim=1)


def test_padding_is_not_kept() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]).double()
    x = {"tokens": torch.randn(3, 4, 4).double(), "mask": mask}
    model, P = made(Padded()), directions(3)
    kept, values = found(model, x, P), moved(model)
    assert kept.sites[0][1].first.tolist() == [0, 2, 5, 6]
    close(kept.change(torch.arange(3), values), dense_change(model, x, P, values))


def test_factors_in_bfloat16_are_rounded_once() -> None:
    torch.manual_seed(0)
    model, P = made(Mixed()).float(), directions().float()
    exact, rounded = found(model, X, P, dtype=torch.float32), found(model, X, P, dtype=torch.bfloat16)
    values = moved(model)
    change = rounded.change(torch.arange(N), values)
    assert change.dtype == torch.float32
    close(change, exact.change(torch.arange(N), values), 5e-3)


def test_a_layer_that_is_not_called_per_sample_is_refused() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, D)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x * self.layer(torch.ones(1, 4, dtype=x.dtype)))

    model, x = made(Once()), torch.randn(4, 4).double()
    network = Network(model)
    sites, rest = find_sites(network, None)
    with pytest.raises(ModelError, match=r"'layer.weight' is not called with one row, or several tokens"):
        derivatives(network, sites, rest, Inputs.of(x, "new"), directions(), move=lambda b: b)
    values = moved(model)
    close(found(model, x, directions()).change(torch.arange(4), values), dense_change(model, x, directions(), values))
