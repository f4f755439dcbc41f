"""Second moments of layers' inputs against those of inputs that were written down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tangentcl.data import TaskStream
from tangentcl.nn import Backbone, from_module
from tangentcl.nn.layer_inputs import input_moments, layer_inputs, mask_of


def test_moments_are_those_of_all_tokens(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    features, samples = tiny_backbone(), tiny_stream[0].train_eval
    layers = {name: features.model.get_submodule(name) for name in ("q", "k", "v", "fc2", "o")}
    moments = input_moments(features, layers, samples, batch_size=7)
    assert list(moments) == list(layers)
    x = torch.cat([x for x, _ in samples.batches(100)])
    embedded = features.model.get_submodule("embed")(x).double().flatten(0, 1)  # no dropout in evaluation mode
    for name in ("q", "k", "v"):
        torch.testing.assert_close(moments[name], embedded.T @ embedded, rtol=1e-10, atol=1e-8)
    assert moments["fc2"].shape == (32, 32)
    assert not torch.equal(moments["o"], moments["q"])


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.layer(x["input_ids"]).sum(dim=1)


def test_padding_is_left_out() -> None:
    model = _Masked()
    features = from_module(model, None, 3, name="masked", modality="text")
    ids = torch.arange(8.0).reshape(2, 2, 2)
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 0], [1, 1]])}
    seen: list[Tensor] = []
    counts: list[int] = []

    def keep(name: str, rows: Tensor, n_samples: int) -> None:
        assert name == "layer"
        seen.append(rows)
        counts.append(n_samples)

    with layer_inputs({"layer": model.layer}, keep) as mask:
        mask[:] = mask_of(batch)
        features(batch)
    features(batch)  # the hook is gone
    np.testing.assert_array_equal(torch.cat(seen).numpy(), [[0.0, 1.0], [4.0, 5.0], [6.0, 7.0]])
    assert counts == [2]
