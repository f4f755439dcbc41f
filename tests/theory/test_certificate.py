"""Certificates against hand computation, simulation, and data on which they have to hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tangentcl.errors import ConfigError, DataError
from tangentcl.theory import (
    exact_certificate,
    gaussian_head_error,
    mean_above,
    pac_bayes_bound,
    sampled_certificate,
)
from tangentcl.theory.certificate import SIGMAS


def test_the_bound_by_hand() -> None:
    # sqrt((2 + ln(2 * 10 / 0.1)) / 200) = sqrt((2 + 5.298317) / 200)
    assert pac_bayes_bound(0.25, 2.0, 100, 0.1) == pytest.approx(0.25 + math.sqrt(7.298317366548036 / 200), rel=1e-12)
    for n, kl, delta in ((7, 0.0, 0.1), (100, -1.0, 0.1), (100, 0.0, 1.0)):
        with pytest.raises((ConfigError, DataError)):
            pac_bayes_bound(0.1, kl, n, delta)


def test_the_upper_mean_solves_the_equation_and_covers() -> None:
    p, room = 0.2, math.log(1 / 0.05) / 40
    q = mean_above(p, 40, 0.05)
    assert p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) == pytest.approx(room, rel=1e-9)
    assert mean_above(0.0, 100, 0.05) == pytest.approx(1 - 0.05**0.01, rel=1e-9)
    assert mean_above(1.0, 3, 0.05) == 1.0
    missed = sum(
        mean_above(hits / 30, 30, 0.1) < 0.3
        for hits in torch.distributions.Binomial(30, torch.tensor(0.3)).sample((2000,)).tolist()
    )
    assert missed / 2000 < 0.1


def test_the_error_of_a_noisy_head_for_two_classes_is_a_normal_distribution_function() -> None:
    scores = torch.tensor([[1.0, 0.2], [0.0, 3.0], [0.5, 0.5]], dtype=torch.float64)
    labels, spread = torch.tensor([0, 0, 1]), torch.tensor([0.7, 2.0, 1.0], dtype=torch.float64)
    margins = torch.tensor([0.8, -3.0, 0.0], dtype=torch.float64)
    wrong = torch.special.ndtr(-margins / (math.sqrt(2) * spread)).mean()
    assert gaussian_head_error(scores, labels, spread) == pytest.approx(float(wrong), abs=1e-8)


def test_the_error_of_a_noisy_head_is_that_of_drawn_heads() -> None:
    g = torch.Generator().manual_seed(0)
    h = torch.cat([torch.randn(150, 5, generator=g, dtype=torch.float64), torch.ones(150, 1, dtype=torch.float64)], 1)
    w = torch.randn(6, 7, generator=g, dtype=torch.float64)
    labels = (h @ w + torch.randn(150, 7, generator=g, dtype=torch.float64)).argmax(dim=1)

    def drawn_error(sigma: float) -> float:
        noisy = w + sigma * torch.randn(6, 7, generator=g, dtype=torch.float64)
        return float(((h @ noisy).argmax(dim=1) != labels).double().mean())

    for sigma in (0.05, 0.5, 3.0):
        exact = gaussian_head_error(h @ w, labels, sigma * h.norm(dim=1))
        drawn = [drawn_error(sigma) for _ in range(4000)]
        spread = torch.tensor(drawn).std() / 4000**0.5
        assert exact == pytest.approx(sum(drawn) / 4000, abs=4 * float(spread))
    far = torch.tensor([[1e3, 0.0, -float("inf")]])
    assert gaussian_head_error(far, torch.tensor([0]), torch.tensor([1.0])) == 0.0
    assert gaussian_head_error(far, torch.tensor([1]), torch.tensor([1.0])) == 1.0
    with pytest.raises(DataError, match=r"\[n, C\]"):
        gaussian_head_error(far, torch.tensor([0, 1]), torch.tensor([1.0]))


def test_the_best_of_the_grid_with_its_union_bound() -> None:
    def error(sigma: float) -> float:
        return min(0.9, sigma)

    found = exact_certificate(0.3, 500, error, delta=0.1)
    share = 0.1 / len(SIGMAS)
    by_hand = [error(s) + math.sqrt((0.09 / (2 * s * s) + math.log(2 * math.sqrt(500) / share)) / 1000) for s in SIGMAS]
    assert found.bound == pytest.approx(min(by_hand), rel=1e-12)
    assert found.kl == pytest.approx(0.09 / (2 * found.sigma**2), rel=1e-12)
    assert (found.draws, found.measured, found.vacuous) == (0, found.error, False)
    assert exact_certificate(1e4, 500, error).vacuous


def test_draws_choose_with_others_than_they_measure_by() -> None:
    asked: list[Sequence[tuple[float, int]]] = []

    def errors(pairs: Sequence[tuple[float, int]]) -> list[float]:
        asked.append(pairs)
        return [min(0.9, sigma) for sigma, _ in pairs]

    found = sampled_certificate(0.3, 500, errors, draws=12, seed=7)
    exact = exact_certificate(0.3, 500, lambda s: min(0.9, s))
    assert {seed for _, seed in asked[0]} == {7}
    assert asked[1] == [(found.sigma, 8 + i) for i in range(12)]
    assert len(asked[0]) < len(SIGMAS)  # not those whose divergence alone is too much
    assert found.sigma == exact.sigma
    assert found.measured == pytest.approx(found.sigma)
    assert found.error == pytest.approx(mean_above(found.sigma, 12, 0.025), rel=1e-12)
    assert found.bound > exact.bound
    assert sampled_certificate(1e6, 500, errors, draws=2).vacuous


@pytest.mark.parametrize("seed", range(10))
def test_it_holds_for_new_samples_of_heads_that_were_trained(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(4, 3, generator=g, dtype=torch.float64)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.randn(n, 4, generator=g, dtype=torch.float64)
        return h, (h @ truth + torch.randn(n, 3, generator=g, dtype=torch.float64)).argmax(dim=1)

    h, y = draw(300)
    w = torch.linalg.lstsq(h, torch.nn.functional.one_hot(y, 3).double()).solution
    found = exact_certificate(float(w.norm()), 300, lambda s: gaussian_head_error(h @ w, y, s * h.norm(dim=1)))
    new, labels = draw(4000)
    assert gaussian_head_error(new @ w, labels, found.sigma * new.norm(dim=1)) < found.bound
    assert found.bound < 0.75
