from __future__ import annotations

import pytest
import torch

from tangentcl.errors import ModelError
from tangentcl.nn.pooling import check_pooling, pool_image, pool_text

TOKENS = torch.arange(24.0).reshape(2, 4, 3)  # [B, N, d]


def test_text_pooling_leaves_padding_out() -> None:
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.equal(pool_text(TOKENS, right, "mean")[1], TOKENS[1, :2].mean(0))
    assert torch.equal(pool_text(TOKENS, right, "last"), torch.stack([TOKENS[0, 3], TOKENS[1, 1]]))
    assert torch.equal(pool_text(TOKENS, right, "cls"), TOKENS[:, 0])


def test_last_token_with_padding_on_the_left() -> None:
    left = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert torch.equal(pool_text(TOKENS, left, "last"), TOKENS[:, 3])


def test_image_mean_leaves_class_token_and_registers_out() -> None:
    assert torch.equal(pool_image(TOKENS, "mean", n_prefix=2), TOKENS[:, 2:].mean(1))
    assert torch.equal(pool_image(TOKENS, "last", n_prefix=2), TOKENS[:, 3])


def test_unknown_pooling_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'maen' is unknown. Did you mean 'mean'"):
        check_pooling("maen")
    with pytest.raises(ModelError, match="class token"):
        check_pooling("cls", n_prefix=0)
