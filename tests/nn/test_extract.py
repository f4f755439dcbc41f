from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tangentcl.data.samples import Samples
from tangentcl.data.table import Table
from tangentcl.data.transforms import ArrayTransform
from tangentcl.errors import ModelError
from tangentcl.nn import Backbone, backbone, extract_features, from_module


def samples(n: int) -> Samples:
    inputs = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return Samples(Table(inputs, np.arange(n) % 3, np.arange(n)), transform=ArrayTransform())


def toy() -> Backbone:
    torch.manual_seed(0)
    return from_module(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)), None, 5, name="toy", modality="array")


def test_features_in_order() -> None:
    made, data = toy(), samples(7)
    features, labels = extract_features(made, data, batch_size=3)
    x, y = next(data.batches(7))
    torch.testing.assert_close(features, made(x))
    assert torch.equal(labels, y)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_modes_are_restored_also_after_an_error() -> None:
    made = toy()
    made.requires_grad_(True)
    made.train()
    modes = [module.training for module in made.modules()]
    assert all(modes)
    first, _ = extract_features(made, samples(4))
    second, _ = extract_features(made, samples(4))
    assert torch.equal(first, second)  # no dropout
    assert [module.training for module in made.modules()] == modes
    made.features = lambda model, x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        extract_features(made, samples(4))
    assert [module.training for module in made.modules()] == modes


def test_texts_of_any_length_come_back_in_order(bert_folder: Path) -> None:
    made = backbone(str(bert_folder))
    texts = ["the cat sat on the mat and ran", "a dog", "the dog ran home now", "cat"]
    data = Samples(Table(texts, np.arange(4), np.arange(4)), transform=made.eval_transform)
    features, labels = extract_features(made, data, batch_size=2)
    assert labels.tolist() == [0, 1, 2, 3]
    for i in range(4):
        alone = made(made.eval_transform.collate([texts[i]]))[0]  # type: ignore[union-attr]
        torch.testing.assert_close(features[i], alone, rtol=1e-5, atol=1e-5)


def test_no_samples() -> None:
    features, labels = extract_features(toy(), samples(3).subset([]))
    assert features.shape == (0, 5)
    assert labels.dtype == torch.int64


def test_a_sample_whose_features_are_not_finite_is_named() -> None:
    data = samples(7)
    made = toy()
    made.features = lambda model, x: torch.where(x[:, :1] == float(data.table.inputs[4][0]), torch.nan, model(x))
    with pytest.raises(ModelError, match=r"1 of 7 samples .* the first is sample 4 \(label 1\)"):
        extract_features(made, data, batch_size=3)


def worker(folder: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        for n in (7, 1):
            torch.save(extract_features(toy(), samples(n), batch_size=2), Path(folder) / f"{n}-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_two_processes_each_get_everything_in_order(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for n in (7, 1):
        features, labels = extract_features(toy(), samples(n), batch_size=2)
        for rank in range(2):
            got = torch.load(tmp_path / f"{n}-{rank}.pt", weights_only=True)
            torch.testing.assert_close(got[0], features)
            assert torch.equal(got[1], labels)


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
