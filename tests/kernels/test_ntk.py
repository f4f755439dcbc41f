"""Every back end of the empirical kernel against an explicit J J^T in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.kernels import ConjugateKernel, EmpiricalNTK, PseudoNTK, SketchedNTK
from tangentcl.kernels.network import Network, Outputs
from tangentcl.linalg import GramOperator
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone
from tangentcl.nn.hf import from_transformers


@dataclass
class Case:
    """A model, two batches and what the layers back end does with it."""

    model: nn.Module
    x1: Any
    x2: Any
    outputs: Outputs | None = None
    layers: bool = True


class Tokens(nn.Module):
    """Per-token logits with attention, a layer norm and dropout: [B, N, 4] -> [B, N, 3]."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(4), nn.Dropout(dropout)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(x))
        h = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        return self.head(h + x)


class CosineHead(nn.Module):
    """A weight matrix that is not applied as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class Odd(nn.Module):
    """Parameters that no layer owns, shared use of a layer, an unused layer and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(4))
        self.shared, self.unused, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.out = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.shared(torch.tanh(self.shared(self.frozen(x + self.prompt)))))


def grown(method: Finetune, n_outputs: int, lora: float) -> Finetune:
    method.head.grow(n_outputs)
    for name, p in method.named_parameters():
        if "lora_B" in name and lora:
            nn.init.normal_(p, std=lora)
    nn.init.normal_(method.head.weight)
    return method


def bert() -> Backbone:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    return from_transformers(BertModel(config), pooling="mean")


def padded(lengths: list[int], width: int) -> dict[str, Tensor]:
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(1, 20, mask.shape) * mask, "attention_mask": mask}


def make(kind: str, tiny: Callable[[], Backbone]) -> Case:
    torch.manual_seed(0)
    x1, x2 = torch.randn(5, 3, 4), torch.randn(3, 3, 4)
    if kind == "mlp":
        return Case(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), x1[:, 0], x2[:, 0])
    if kind == "one output":
        return Case(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), x1[:, 0], x2[:, 0])
    if kind == "one sample":
        return Case(Tokens(), x1[:1], x2[:1])
    if kind == "token logits":
        return Case(Tokens(), x1, torch.randn(2, 3, 4))
    if kind == "layer norm alone":
        model = Tokens().requires_grad_(False)
        model.norm.requires_grad_(True)
        return Case(model, x1, x2)
    if kind == "called twice":
        model = Odd()
        model.prompt.requires_grad_(False)
        return Case(model, x1[:, 0], x2[:, 0])
    if kind == "tied":
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return Case(model, x1[:, 0], x2[:, 0], layers=False)
    if kind == "changed in place":
        return Case(nn.Sequential(nn.Linear(4, 6), nn.ELU(inplace=True), nn.Linear(6, 2)), x1, x2, layers=False)
    if kind == "not linear after all":
        return Case(CosineHead(), x1[:, 0], x2[:, 0], layers=False)
    if kind == "by keyword":

        def named(model: nn.Module, x: Tensor) -> Tensor:
            return model(input=x)

        return Case(nn.Linear(4, 3), x1[:, 0], x2[:, 0], named)
    if kind == "bare parameter":
        return Case(Odd(), x1[:, 0], x2[:, 0], layers=False)
    if kind == "convolution":
        model = nn.Sequential(nn.Conv1d(3, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(6, 2))
        return Case(model, x1, x2, layers=False)
    if kind == "samples inside":  # [tokens, samples, d]: a layer's first axis is not the sample

        def swapped(model: nn.Module, x: Tensor) -> Tensor:
            return model(x.transpose(0, 1)).sum(dim=0)

        return Case(nn.Linear(4, 2), torch.randn(4, 2, 4), torch.randn(3, 2, 4), swapped, layers=False)
    if kind == "text":
        method = grown(Finetune(bert(), rank=2), 3, 0.5)
        return Case(method, padded([6, 2, 4], 6), padded([3, 1], 3))
    if kind == "full":
        return Case(grown(Finetune(tiny(), tune="full"), 2, 0.0), x1, x2)
    lora = {"lora": 0.3, "lora at the start": 0.0}[kind]
    return Case(grown(Finetune(tiny(), rank=2, targets=["q", "v"], dropout=0.2), 3, lora), x1, x2)


KINDS = [
    "mlp", "tied", "changed in place", "not linear after all", "by keyword",
    "one output", "one sample", "token logits", "layer norm alone", "called twice", "bare parameter",
    "convolution", "samples inside", "text", "full", "lora", "lora at the start",
]  # fmt: skip


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, tiny_backbone: Callable[[], Backbone]) -> Case:
    found = make(request.param, tiny_backbone)
    found.model.double().train()
    found.x1, found.x2 = (x.double() if isinstance(x, Tensor) else x for x in (found.x1, found.x2))
    return found


def explicit(model: nn.Module, x: Any, outputs: Outputs | None = None) -> Tensor:
    """The Jacobian by one backward call per output, [n C, P]."""
    model.eval()
    f = (model(x) if outputs is None else outputs(model, x)).flatten()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for value in f:
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    model.train()
    return torch.stack(rows)


def close(found: Tensor, true: Tensor) -> None:
    assert found.shape == true.shape
    assert float((found - true).abs().max()) <= 1e-10 * max(float(true.abs().max()), 1e-3)


@pytest.mark.parametrize("backend", ["auto", "layers", "jacobian", "matrix_free"])
def test_contract(case: Case, backend: str) -> None:
    if backend == "layers" and not case.layers:
        with pytest.raises(ModelError, match="backend='layers' cannot be used"):
            EmpiricalNTK(case.model, case.outputs, backend=backend)(case.x1)
        return
    kernel = EmpiricalNTK(case.model, case.outputs, backend=backend, chunk_size=2)
    J1, J2 = explicit(case.model, case.x1, case.outputs), explicit(case.model, case.x2, case.outputs)
    state = {name: (p.requires_grad, p.detach().clone()) for name, p in case.model.named_parameters()}
    modes = [m.training for m in case.model.modules()]
    cross = kernel(case.x1, case.x2)
    assert kernel.exact
    assert kernel.choice is not None
    if backend == "auto":
        assert kernel.choice.backend == ("layers" if case.layers else "jacobian"), kernel.choice
    close(cross.to_dense(), J1 @ J2.T)
    close(cross.T.to_dense(), J2 @ J1.T)
    own = kernel(case.x1).to_dense()
    close(own, J1 @ J1.T)
    close(own, own.T)
    assert torch.linalg.eigvalsh(own).min() > -1e-10 * own.abs().max()
    u, v = torch.randn(cross.shape[0]).double(), torch.randn(cross.shape[1]).double()
    torch.testing.assert_close(u @ (cross @ v), (cross.T @ u) @ v, rtol=1e-10, atol=1e-10)
    assert modes == [m.training for m in case.model.modules()]
    assert all(p.grad is None and p.requires_grad == state[n][0] for n, p in case.model.named_parameters())
    assert all(torch.equal(p, state[n][1]) for n, p in case.model.named_parameters())


def test_at_the_start_lora_sees_one_half_only(tiny_backbone: Callable[[], Backbone]) -> None:
    """With B = 0 the outputs do not depend on A to first order."""
    found = make("lora at the start", tiny_backbone)
    for half, silent in (("lora_A", True), ("lora_B", False)):
        names = [name for name, _ in found.model.named_parameters() if half in name]
        K = EmpiricalNTK(found.model, parameters=names)(found.x1).to_dense()
        assert bool((K == 0).all()) is silent


def test_a_parameter_that_is_a_single_number_has_a_column_like_others() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.tensor(2.0)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x)

    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(4, 3, dtype=torch.float64)
    kernel = EmpiricalNTK(model)
    K = kernel(x).to_dense()
    h = model.layer(x).detach().flatten()
    weights = 4 * torch.kron(x @ x.T + 1, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(K, weights + torch.outer(h, h))
    assert (kernel.choice.backend, kernel.note) == ("jacobian", "")  # type: ignore[union-attr]


def test_tiles_and_factors_give_the_same(tiny_backbone: Callable[[], Backbone]) -> None:
    found = make("full", tiny_backbone)
    found.model.double()
    x = torch.randn(7, 3, 4).double()
    whole = EmpiricalNTK(found.model)
    expected = whole(x).to_dense()
    assert whole.choice is not None
    assert whole.choice.factored
    for memory in (2e5, 6e4):
        tiled = EmpiricalNTK(found.model, memory=memory, chunk_size=1, backend="jacobian")
        close(tiled(x).to_dense(), expected)
        assert tiled.choice is not None
        assert "tiles" in tiled.choice.reason
        close(tiled(x, x[:5]).to_dense(), expected[:, :10])


def test_one_backward_call_per_output_where_vmap_cannot() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.scale = nn.Linear(4, 2), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.lift(row) * self.scale * (2 if row.sum() > 0 else 1) for row in x])

    model, x = Branches().double(), torch.randn(5, 4).double()
    kernel = EmpiricalNTK(model)
    J = explicit(model, x)
    close(kernel(x).to_dense(), J @ J.T)
    assert "vmap" in kernel.note


def test_more_outputs_than_parameters_keeps_two_factors() -> None:
    model, x = nn.Linear(2, 2).double(), torch.randn(9, 2).double()
    for backend in ("auto", "jacobian"):
        found = EmpiricalNTK(model, backend=backend)(x, x[:8])
        assert isinstance(found, GramOperator)
        close(found.to_dense(), explicit(model, x) @ explicit(model, x[:8]).T)


def test_the_choice() -> None:
    model, x = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 9)), torch.randn(6, 4)
    kernel = EmpiricalNTK(model, products=1)
    kernel(x)
    assert kernel.choice is not None
    assert kernel.choice.backend == "matrix_free"
    assert "1 products are cheaper than 9 rows" in str(kernel.choice)
    small = EmpiricalNTK(model, memory=1e4)
    small(x)
    assert small.choice is not None
    assert small.choice.backend == "matrix_free"
    assert "the kernel takes" in small.choice.reason
    with pytest.raises(ConfigError, match="Did you mean 'jacobian'"):
        EmpiricalNTK(model, backend="jacobain")(x)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lift(F.dropout(x, 0.5, training=True))


class Stubborn(nn.Dropout):
    def train(self, mode: bool = True) -> Stubborn:
        self.training = True
        return self


def test_random_models_are_refused_by_name() -> None:
    x = torch.randn(6, 4)
    with pytest.raises(ModelError, match="Noisy is not deterministic"):
        EmpiricalNTK(Noisy())(x)
    with pytest.raises(ModelError, match=r"'1' \(Stubborn\)"):
        EmpiricalNTK(nn.Sequential(nn.Linear(4, 4), Stubborn(0.5)))(x)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ModelError, match=r"depend on the other samples.*'1' \(BatchNorm1d\)"):
        EmpiricalNTK(nn.Sequential(nn.Linear(4, 4), norm))(x)
    EmpiricalNTK(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train())(x)  # running statistics are a constant


def test_what_is_not_finite_is_refused() -> None:
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    x[1, 0] = torch.nan
    with pytest.raises(ModelError, match="the outputs of 1 of"):
        EmpiricalNTK(model)(x)

    def root(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) * 0).abs().sqrt()

    with pytest.raises(ModelError, match="derivatives of the outputs are not finite"):
        EmpiricalNTK(model, root, backend="jacobian")(torch.randn(3, 4))


def test_wrong_models_and_outputs_are_refused() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ModelError, match="nothing of Linear trains"):
        EmpiricalNTK(nn.Linear(4, 2).requires_grad_(False))(x)
    with pytest.raises(ModelError, match="Did you mean 'weight'"):
        EmpiricalNTK(nn.Linear(4, 2), parameters=["wieght"])(x)
    with pytest.raises(ModelError, match=r"expected outputs .*, got \[\]"):
        EmpiricalNTK(nn.Linear(4, 2), lambda m, b: m(b).sum())(x)
    with pytest.raises(ModelError, match="after the kernel was called"):
        _ = EmpiricalNTK(nn.Linear(4, 2)).n_outputs


def test_an_approximation_says_so() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(5, 4).double()
    y = torch.randn(4, 4).double()
    J1, J2 = explicit(model, x), explicit(model, y)
    pseudo = PseudoNTK(model)
    j1, j2 = (J.view(-1, 3, J.shape[1]).sum(1) / 3**0.5 for J in (J1, J2))
    close(pseudo(x, y).to_dense(), torch.kron(j1 @ j2.T, torch.eye(3).double()))
    conjugate = ConjugateKernel(model, 3, lambda m, b: m[:2](b))
    phi1, phi2 = model[:2](x).detach(), model[:2](y).detach()
    close(conjugate(x, y).to_dense(), torch.kron(phi1 @ phi2.T, torch.eye(3).double()))
    sketched = [SketchedNTK(model, size=64, seed=seed) for seed in range(200)]
    mean = sum(kernel(x, y).to_dense() for kernel in sketched) / 200
    norms = J1.norm(dim=1)[:, None] * J2.norm(dim=1)
    assert float(((mean - J1 @ J2.T) / norms).abs().max()) < 4 * sketched[0].error / 200**0.5
    one = sketched[0](x).to_dense()
    close(one, sketched[0](x).to_dense())
    for kernel in (pseudo, conjugate, sketched[0]):
        assert not kernel.exact
        assert kernel.approximation
        assert kernel.n_outputs == 3


def test_network_restores_what_it_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[0].bias.requires_grad_(False)
    network = Network(model)

    def stop_inside() -> None:
        with network.evaluating():
            assert not model.training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_inside()
    assert model.training
    assert model[1].training
    assert not model[0].bias.requires_grad
