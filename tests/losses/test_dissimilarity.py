from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tangentcl.losses import released_dissimilarity, supcon_with_prototypes

Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OLD, OLD_LABELS = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=1), torch.arange(4)


def test_supcon_is_its_formula() -> None:
    torch.manual_seed(0)
    z, y = F.normalize(torch.randn(7, 8), dim=1), torch.tensor([5, 5, 5, 6, 6, 7, 3])
    rows = torch.cat([z, OLD])
    total, anchors = 0.0, 0
    for i in range(7):
        others = [k for k in range(11) if k != i and not (k >= 7 and int(OLD_LABELS[k - 7]) == int(y[i]))]
        partners = [j for j in range(7) if j != i and y[j] == y[i]]
        if not partners:
            continue
        anchors += 1
        sums = sum(float(torch.exp(z[i] @ rows[k] / 0.1)) for k in others)
        fractions = [torch.exp(z[i] @ z[j] / 0.1) / sums for j in partners]
        total += float(torch.stack([-f.log() for f in fractions]).mean())
    torch.testing.assert_close(
        supcon_with_prototypes(z, y, OLD, OLD_LABELS), torch.tensor(total / anchors), rtol=1e-5, atol=1e-5
    )


def _cosines_after(term: Term) -> tuple[float, float]:
    torch.manual_seed(0)
    y = torch.arange(12) % 3 + 4
    free = (F.normalize(torch.randn(12, 8), dim=1) + 0.7 * torch.eye(8)[y - 4]).requires_grad_()
    same = (y[:, None] == y[None, :]) & ~torch.eye(12, dtype=torch.bool)

    def cosine() -> float:
        unit = F.normalize(free.detach(), dim=1)
        return float((unit @ unit.T)[same].mean())

    before, optimizer = cosine(), torch.optim.SGD([free], lr=0.5)
    for _ in range(500):
        optimizer.zero_grad()
        term(F.normalize(free, dim=1), y).backward()
        optimizer.step()
    return before, cosine()


def test_supcon_brings_a_class_together_and_the_released_term_drives_it_apart() -> None:
    before, after = _cosines_after(lambda z, y: supcon_with_prototypes(z, y, OLD, OLD_LABELS))
    assert after > 0.85 > 0.5 > before
    before, after = _cosines_after(lambda z, y: released_dissimilarity(z, y, OLD))
    assert after < 0.0 < before


def test_supcon_falls_as_same_class_cosine_rises() -> None:
    values = []
    for angle in (1.2, 0.8, 0.4, 0.1):
        z = torch.tensor([[1.0, 0.0, 0.0], [torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle)), 0.0]])
        old = torch.tensor([[0.0, 0.0, 1.0]])
        values.append(float(supcon_with_prototypes(z, torch.tensor([1, 1]), old, torch.tensor([0]))))
    assert values == sorted(values, reverse=True)


def test_without_a_pair_both_are_zero_with_zero_gradient() -> None:
    z = F.normalize(torch.randn(2, 8), dim=1).requires_grad_()
    y = torch.tensor([4, 5])
    for term in (supcon_with_prototypes(z, y, OLD, OLD_LABELS), released_dissimilarity(z, y, OLD)):
        assert term.item() == 0.0
        assert not bool(torch.autograd.grad(term, z)[0].any())


def test_the_released_sign() -> None:
    torch.manual_seed(0)
    z, y = F.normalize(torch.randn(6, 8), dim=1), torch.tensor([4, 4, 5, 5, 6, 6])
    none = torch.zeros(0, 8)
    e = (z @ z.T / 0.1).exp()
    pairs = [e[i, j] for i in range(6) for j in range(6) if i != j and y[i] == y[j]]
    everything = torch.stack([(e[i].sum() - e[i, i]).log() for i in range(6)]).mean()
    torch.testing.assert_close(released_dissimilarity(z, y, none), torch.stack(pairs).sum().log() - everything)
