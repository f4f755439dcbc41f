from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tangentcl.errors import ModelError
from tangentcl.nn import CosineLinear, GrowingLinear, PrototypeHead
from tangentcl.nn.sections import SectionPrototypes

HEADS = [GrowingLinear, CosineLinear]


@pytest.mark.parametrize("kind", HEADS)
def test_growth_keeps_old_rows_and_old_logits(kind: type[GrowingLinear]) -> None:
    torch.manual_seed(0)
    head, x = kind(4), torch.randn(3, 4)
    head.grow(2)
    old, logits = head.weight.detach().clone(), head(x)
    head.grow(5)
    assert torch.equal(head.weight[:2], old)
    assert torch.allclose(head(x)[:, :2], logits)
    assert head(x).shape == (3, 5)
    assert 0 < head.weight[2:].std() < 0.1


def test_new_outputs_start_at_their_bias_and_old_ones_stay() -> None:
    head = GrowingLinear(4)
    head.grow(2)
    head.bias.data += 1.0
    head.grow(2, bias=-2.0)
    head.grow(4, bias=-2.0)
    assert head.bias.tolist() == [1.0, 1.0, -2.0, -2.0]
    with pytest.raises(ModelError, match="without a bias"):
        GrowingLinear(4, bias=False).grow(1, bias=-2.0)


@pytest.mark.parametrize("kind", HEADS)
def test_state_loads_into_a_head_grown_to_the_same_size(kind: type[GrowingLinear]) -> None:
    head, other = kind(4), kind(4)
    head.grow(2)
    head.grow(3)
    other.grow(3)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)


@pytest.mark.parametrize("kind", [*HEADS, PrototypeHead])
def test_a_head_never_shrinks(kind: type[GrowingLinear]) -> None:
    head = kind(4)
    head.grow(3)
    head.grow(3)
    with pytest.raises(ModelError, match="never shrinks"):
        head.grow(2)


def test_growth_is_seeded_by_the_global_generator() -> None:
    heads = []
    for _ in range(2):
        torch.manual_seed(7)
        head = GrowingLinear(4)
        head.grow(3)
        heads.append(head.weight)
    assert torch.equal(heads[0], heads[1])


def test_new_bias_is_zero_and_bias_may_be_absent() -> None:
    head = GrowingLinear(4)
    head.grow(2)
    with torch.no_grad():
        head.bias.fill_(1)  # type: ignore[union-attr]
    head.grow(3)
    assert head.bias.tolist() == [1, 1, 0]  # type: ignore[union-attr]
    assert GrowingLinear(4, bias=False).bias is None


def test_dtype_and_frozen_state_survive_growth() -> None:
    head = GrowingLinear(4).double()
    head.grow(1)
    head.requires_grad_(False)
    head.grow(2)
    assert head.weight.dtype == torch.float64
    assert not head.weight.requires_grad


def test_cosine_logits_do_not_depend_on_length() -> None:
    head = CosineLinear(4, scale=5.0)
    head.grow(3)
    x = torch.randn(2, 4)
    assert torch.allclose(head(x), head(7 * x), atol=1e-6)
    assert head(x).abs().max() <= 5.0 + 1e-5


@given(st.permutations(range(12)), st.integers(1, 11))
@settings(max_examples=20, deadline=None)
def test_prototypes_do_not_depend_on_order_or_batching(order: list[int], cut: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=generator), torch.arange(12) % 4
    whole, parts = PrototypeHead(3), PrototypeHead(3)
    whole.grow(4)
    parts.grow(4)
    whole.update(x, y)
    for chunk in (torch.tensor(order[:cut]), torch.tensor(order[cut:])):
        parts.update(x[chunk], y[chunk])
    assert torch.equal(whole.counts, parts.counts)
    torch.testing.assert_close(whole.sums, parts.sums, rtol=1e-14, atol=1e-14)


def test_prototype_scores_against_their_formulas() -> None:
    torch.manual_seed(0)
    x, y, query = torch.randn(8, 3), torch.arange(8) % 2, torch.randn(5, 3)
    means = torch.stack([x[y == c].mean(0) for c in range(2)])
    for metric, expected in {
        "cosine": F.cosine_similarity(query[:, None], means[None], dim=-1),
        "euclidean": -(query[:, None] - means[None]).square().sum(-1),
    }.items():
        head = PrototypeHead(3, metric=metric)
        head.grow(2)
        head.update(x, y)
        torch.testing.assert_close(head(query), expected, rtol=1e-5, atol=1e-5)


def test_an_empty_class_is_never_chosen() -> None:
    head = PrototypeHead(2)
    head.grow(3)
    head.update(torch.tensor([[-1.0, 0.0]]), torch.tensor([1]))
    assert head(torch.tensor([[1.0, 0.0]])).argmax(1).item() == 1


def test_moved_means_take_in_further_samples_with_the_weight_of_those_before() -> None:
    head = PrototypeHead(2)
    head.grow(3)
    head.update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    head.move(torch.tensor([[0.0, 4.0], [7.0, 7.0], [9.0, 9.0]]))
    head.update(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
    expected = torch.tensor([[1.0, 3.0], [7.0, 7.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(head.prototypes, expected)
    with pytest.raises(ModelError, match=r"class means \[3, 2\]"):
        head.move(torch.zeros(2, 2))


def test_prototypes_refuse_what_does_not_fit() -> None:
    head = PrototypeHead(2)
    head.grow(1)
    with pytest.raises(ModelError, match="do not fit 1 outputs"):
        head.update(torch.ones(1, 2), torch.tensor([1]))
    with pytest.raises(ModelError, match=r"expected features \[n, 2\]"):
        head.update(torch.ones(1, 3), torch.tensor([0]))
    with pytest.raises(ModelError, match="metric"):
        PrototypeHead(2, metric="dot")


def test_prototype_state_round_trip() -> None:
    head, other = PrototypeHead(2), PrototypeHead(2)
    head.grow(2)
    head.update(torch.ones(2, 2), torch.tensor([0, 1]))
    other.grow(2)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.prototypes, head.prototypes)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_of_class_means_are_not_rounded_under_autocast(metric: str) -> None:
    torch.manual_seed(0)
    near = torch.ones(6, 32) + 0.01 * torch.randn(6, 32)  # cosines that differ in the fourth digit
    plain, sections = PrototypeHead(32, metric=metric), SectionPrototypes(32, (1.0, 0.3))
    for means in (plain, sections.means):
        means.grow(6)
        means.update(near, torch.arange(6))
    for head in (plain, sections):
        exact = head(near)
        with torch.autocast("cpu", torch.bfloat16):
            found = head(near)
        assert torch.equal(found, exact)
        assert head(near.bfloat16()).dtype == torch.float32
        assert len(exact.unique()) > 20
