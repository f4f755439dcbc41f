"""Samples in any form, read in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentcl.data import Samples, Task, TaskStream
from tangentcl.errors import DataError
from tangentcl.forecast.inputs import Inputs, mapped

X = torch.arange(14.0).view(7, 2)
Y = torch.arange(7) % 3

BATCHES: dict[str, Any] = {
    "tensor": X,
    "dict": {"a": X, "b": X + 1, "flag": True},
    "tuple": (X, X + 1, X + 2),
    "list": [X, "same for all", X + 1],
}


def _sum(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x.sum(dim=1, keepdim=True)
    parts = [v for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, Tensor)]
    return torch.stack(parts).sum(dim=(0, 2))[:, None]


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("labelled", [False, True])
def test_batches_of_tensors(kind: str, labelled: bool) -> None:
    given = BATCHES[kind]
    inputs = Inputs.of((given, Y) if labelled else given, "new")
    assert len(inputs) == 7
    assert (inputs.labels is None) is not labelled
    if labelled:
        assert torch.equal(inputs.labels, Y)  # type: ignore[arg-type]
    part = inputs.take(torch.tensor([4, 1]))
    assert type(part) is type(given)
    assert torch.equal(_sum(part), _sum(given)[[4, 1]])
    if kind == "dict":
        assert part["flag"] is True
    if kind == "list":
        assert part[1] == "same for all"
    sizes = [(len(_sum(x)), positions.tolist()) for x, positions in inputs.parts(3)]
    assert sizes == [(3, [0, 1, 2]), (3, [3, 4, 5]), (1, [6])]
    assert torch.equal(mapped(_sum, inputs, 3), _sum(given))
    assert not inputs.is_random


def test_a_pair_without_labels_and_values() -> None:
    assert Inputs.of((X, None), "old").labels is None
    values = torch.randn(7, 4, requires_grad=True)
    kept = Inputs.of((X, values), "new").labels
    assert kept is not None
    assert torch.equal(kept, values)
    assert not kept.requires_grad


def test_what_is_no_batch_is_refused() -> None:
    for given, message in (
        (torch.zeros(0, 3), "old: expected a batch"),
        ([], "old: expected a batch"),
        ("text", "or a pair"),
        ({"a": X, "b": X[:3]}, r"\[3, 7\] rows"),
        ((X, Y[:5]), "old has 7 samples and 5 labels"),
        (torch.tensor(1.0), "expected a batch"),
    ):
        with pytest.raises(DataError, match=message):
            Inputs.of(given, "old")


def test_samples_of_a_stream(tiny_stream: TaskStream) -> None:
    samples = tiny_stream[1].train
    inputs = Inputs.of(samples, "new")
    assert len(inputs) == len(samples)
    assert inputs.labels is not None
    assert inputs.labels.tolist() == list(samples.labels)
    positions = torch.tensor([11, 0, 30])
    expected = torch.stack([samples.item(i, None)[0] for i in positions.tolist()])
    assert torch.equal(inputs.take(positions), expected)
    whole = torch.stack([samples.item(i, None)[0] for i in range(len(samples))])
    assert torch.equal(mapped(lambda x: x.flatten(1), inputs, 7), whole.flatten(1))
    with pytest.raises(DataError, match="new holds no sample"):
        Inputs.of(samples.subset(np.zeros(0, dtype=np.int64)), "new")


class _Texts:
    """A transform whose items have lengths, padded when collated."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.arange(float(np.asarray(raw).ravel()[0] * 10 % 5 // 1) + 1)

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-1.0)

    def describe(self) -> dict[str, Any]:
        return {}


def test_order_changes_the_batches_and_not_the_result(tiny_stream: TaskStream, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tiny_stream[0].train.with_transform(_Texts())
    inputs = Inputs.of(samples, "old")
    lengths = np.array([len(samples.item(i, None)[0]) for i in range(len(samples))])
    monkeypatch.setattr(Samples, "short_first", lambda self: np.argsort(lengths, kind="stable"))
    assert [len(samples.item(i, None)[0]) for i in inputs.order().tolist()] == sorted(lengths.tolist())
    seen: list[int] = []

    def count(x: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return (x >= 0).sum(dim=1, keepdim=True)

    assert mapped(count, inputs, 8).flatten().tolist() == lengths.tolist()
    assert seen == sorted(seen)
    assert [p.tolist() for _, p in inputs.parts(2, torch.tensor([5, 1, 2]))] == [[5, 1], [2]]


class _Draws:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Any:
        shift = 0.0 if rng is None or self.kind == "fixed" else float(rng.normal())
        x = torch.as_tensor(np.asarray(raw)) + shift
        return {"x": x} if self.kind == "dict" else x.numpy() if self.kind == "numpy" else x

    def collate(self, items: list[Any]) -> Any:
        return items

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("kind", "random"), [("fixed", False), ("tensor", True), ("dict", True), ("numpy", True)])
def test_transforms_that_draw_are_noticed(tiny_stream: TaskStream, kind: str, random: bool) -> None:
    task: Task = tiny_stream[0]
    make: Callable[[str], Any] = _Draws
    assert Inputs.of(task.train.with_transform(make(kind)), "new").is_random is random
