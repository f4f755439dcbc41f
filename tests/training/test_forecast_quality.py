"""Measures of a forecast against their definitions written out in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.training.forecast_quality import Quality, drift_quality, ranks, roc_auc, spearman


def test_drift_quality_against_numpy() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(30, 4))
    predicted = 0.7 * real + 0.3 * rng.normal(size=real.shape)
    cosine, r2, rank, relative = drift_quality(torch.from_numpy(predicted).float(), torch.from_numpy(real).float())
    off = np.linalg.norm(predicted - real) / np.linalg.norm(real)
    assert cosine == pytest.approx(
        np.sum(predicted * real) / np.linalg.norm(predicted) / np.linalg.norm(real), rel=1e-6
    )
    assert (r2, relative) == pytest.approx((1 - off**2, off), rel=1e-6)
    places = [np.argsort(np.argsort(np.linalg.norm(d, axis=1))) for d in (predicted, real)]
    assert rank == pytest.approx(np.corrcoef(*places)[0, 1], rel=1e-9)


def test_ties_share_their_rank() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 2.0, 5.0])
    assert ranks(x).tolist() == [1, 3, 3, 3, 5]
    y = torch.tensor([2.0, 1.0, 4.0, 4.0, 3.0])
    assert spearman(x, y) == pytest.approx(np.corrcoef([1, 3, 3, 3, 5], [2, 1, 4.5, 4.5, 3])[0, 1])


def test_the_area_counts_pairs() -> None:
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 5, 40), rng.random(40) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert roc_auc(torch.from_numpy(scores).float(), torch.from_numpy(positive)) == pytest.approx(np.mean(pairs))


def test_what_is_not_defined_is_not_a_number() -> None:
    nothing, some = torch.zeros(3, 2), torch.ones(3, 2)
    cosine, r2, rank, relative = drift_quality(nothing, some)
    assert (r2, relative) == (0.0, 1.0)
    assert math.isnan(cosine)
    assert math.isnan(rank)
    assert math.isnan(roc_auc(torch.ones(3), torch.zeros(3, dtype=torch.bool)))
    assert Quality(cosine, r2, rank, relative, 0.1, math.nan).to_dict() == {
        "cosine": None,
        "r2": 0.0,
        "spearman": None,
        "relative_error": 1.0,
        "accuracy_error": 0.1,
        "flip_auc": None,
    }
    with pytest.raises(DataError, match=r"two drifts \[n, C\], got \[3, 2\] and \[3\]"):
        drift_quality(some, torch.ones(3))
