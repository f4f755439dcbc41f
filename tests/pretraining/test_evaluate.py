"""The two classifiers of the transfer test, and the transfer of the bundled weights to digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.nn.vit import BUNDLED, SmallViT, bundled_card, load_bundled
from tangentcl.pretraining.evaluate import (
    POOLINGS,
    digits,
    evaluate,
    fit_logistic,
    linear_probe,
    main,
    nearest_mean,
    tokens,
)


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.eye(3)[y] * 4 + 1 + torch.randn(n, 3, generator=g), y


@pytest.mark.parametrize("cosine", [True, False])
def test_nearest_mean_separates_blobs(cosine: bool) -> None:
    x, y = blobs(60, 0)
    z, labels = blobs(60, 1)
    assert (nearest_mean(x, y, z, cosine=cosine) == labels).float().mean() > 0.9


def test_logistic_regression_is_that_of_sklearn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(90, 0)
    penalty = 0.01
    theirs = linear.LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    ours = fit_logistic(x, y, penalty)(x).softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x.numpy()), atol=2e-3)
    assert (linear_probe(x, y, x) == y).float().mean() > 0.9


def test_digits_split_is_stratified_and_disjoint() -> None:
    pytest.importorskip("sklearn")
    x, y, test, labels = digits()
    assert len(x) + len(test) == 1797
    assert x.shape[1:] == (3, 32, 32)
    assert (torch.bincount(y) / (torch.bincount(y) + torch.bincount(labels)) - 0.7).abs().max() < 0.01
    assert torch.equal(x, digits()[0])


def test_data_that_are_not_there_are_refused(tmp_path, capsys) -> None:
    with pytest.raises(DataError, match="omniglot_small1"):
        evaluate(BUNDLED, tmp_path, ["omniglot"])
    assert main(["--data", str(tmp_path), "--sets", "digit"]) == 2
    assert "Did you mean 'digits'" in capsys.readouterr().err


def test_bundled_features_tell_digits_apart_where_pixels_and_random_weights_do_not() -> None:
    pytest.importorskip("sklearn")
    card = bundled_card()
    x, y, test, labels = digits()
    x, y = x[::3], y[::3]
    pool = list(POOLINGS).index(card["pooling"])

    def accuracy(features: torch.Tensor, test_features: torch.Tensor) -> float:
        found = [(nearest_mean(features, y, test_features, cosine=c) == labels).float().mean() for c in (True, False)]
        return float(max(found))

    def of(model: SmallViT) -> float:
        return accuracy(*(tokens(model, i, card["mean"], card["std"])[:, pool] for i in (x, test)))

    untrained = SmallViT(**card["architecture"]).eval()
    bound = 0.95  # bundled 98.7 %, untrained 73.7 %, pixels 90.5 %
    assert of(load_bundled()) > bound
    assert of(untrained) < bound
    assert accuracy(x.flatten(1), test.flatten(1)) < bound
