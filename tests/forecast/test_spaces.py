"""Sample and feature space describe the same training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tangentcl.forecast import linear_problem
from tangentcl.forecast.recursion import recurse
from tangentcl.forecast.rules import SGDRule
from tangentcl.forecast.spaces import FeatureSpace, SampleSpace, cheaper_space


@pytest.mark.parametrize("n", [20, 7])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_both_spaces_agree(make_case: Callable[..., Any], n: int, loss: str) -> None:
    case = make_case(n)
    problem = linear_problem(case.features_new, case.head.weight, case.head.bias, case.labels)
    batches: list[slice | torch.Tensor] = [slice(None), torch.tensor([1, 2]), slice(2, 5)] * 5
    changes = [
        recurse(problem, space(problem), SGDRule(0.9, True, 0.1), loss, [0.05] * 15, batches)
        for space in (FeatureSpace, SampleSpace)
    ]
    torch.testing.assert_close(changes[1], changes[0], rtol=1e-11, atol=1e-12)
    assert isinstance(cheaper_space(problem), SampleSpace if n < 13 else FeatureSpace)
