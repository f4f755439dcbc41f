"""Evaluation: the order of samples, the classes that compete, and scores that cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentcl.data import Samples, TaskStream, class_incremental, from_arrays
from tangentcl.errors import ModelError
from tangentcl.methods import Method
from tangentcl.training import Runtime, count_correct, predicted_classes


class Words:
    """Texts as padded numbers, one per letter: the prediction below must not depend on the padding."""

    def __call__(self, raw: str, rng: np.random.Generator | None) -> str:
        return raw

    def collate(self, items: list[str]) -> Tensor:
        longest = max(len(item) for item in items)
        return torch.tensor([[ord(c) - 96 for c in item] + [0] * (longest - len(item)) for item in items])

    def describe(self) -> dict[str, Any]:
        return {"name": "words"}


class Fixed(Method):
    """Scores by a function of the batch; remembers the lengths of what it saw."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores, self.widths = scores, []  # type: ignore[var-annotated]

    def begin_task(self, task: Any) -> None:
        """Nothing."""

    def training_loss(self, x: Any, y: Tensor) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def end_task(self, task: Any) -> None:
        """Nothing."""

    def predict(self, x: Tensor) -> Tensor:
        """Scores of the function."""
        self.widths.append(x.shape[1])
        return self.scores(x)


def by_sum(x: Tensor) -> Tensor:
    """[B, 3]: one for the class that the letters add up to."""
    return torch.nn.functional.one_hot(x.sum(dim=1) % 3, 3).float()


@pytest.fixture
def words() -> Samples:
    rng = np.random.default_rng(3)
    texts = ["".join(chr(97 + int(c)) for c in rng.integers(0, 26, rng.integers(1, 40))) for _ in range(50)]
    labels = np.arange(50) % 3
    source = from_arrays(texts, labels, texts[:1] + [t + "x" for t in texts[1:]], labels, modality="text")
    return class_incremental(source, n_tasks=1).with_transforms(Words(), Words())[0].test


RUNTIME = Runtime(device="cpu")


def test_predictions_come_back_in_the_order_of_the_samples(words: Samples) -> None:
    method = Fixed(by_sum)
    predicted = predicted_classes(method, words, RUNTIME, batch_size=7)
    assert method.widths == sorted(method.widths), "short texts first"
    alone = [int(by_sum(words.subset([i]).batches(1).__next__()[0]).argmax()) for i in range(len(words))]
    assert predicted.tolist() == alone
    assert len(set(alone)) == 3


@pytest.mark.parametrize("batch_size", [1, 8, 50, 1000])
def test_the_batch_size_changes_nothing(words: Samples, batch_size: int) -> None:
    expected = predicted_classes(Fixed(by_sum), words, RUNTIME)
    assert torch.equal(predicted_classes(Fixed(by_sum), words, RUNTIME, batch_size=batch_size), expected)


def test_only_the_classes_among_compete(words: Samples) -> None:
    def rising(x: Tensor) -> Tensor:
        return torch.tensor([0.1, 0.5, 0.3, 0.9]).expand(len(x), 4)

    for among, best in ((None, 3), ([0, 2], 2), ([2, 0], 2), ((1,), 1)):
        assert set(predicted_classes(Fixed(rising), words, RUNTIME, among=among).tolist()) == {best}


def test_a_nan_score_names_its_sample(words: Samples) -> None:
    longest = int(np.argmax([len(words[i][0]) for i in range(len(words))]))

    def nan_for_long(x: Tensor) -> Tensor:
        scores = by_sum(x)
        scores[(x > 0).sum(dim=1) == len(words[longest][0]), 1] = torch.nan
        return scores

    with pytest.raises(ModelError, match=r"Fixed.predict gave NaN for sample '[^']+'\. Training may have diverged"):
        predicted_classes(Fixed(nan_for_long), words, RUNTIME, batch_size=4)


def test_infinite_scores_are_scores(words: Samples) -> None:
    predicted = predicted_classes(Fixed(lambda x: by_sum(x).log()), words, RUNTIME)
    assert torch.equal(predicted, predicted_classes(Fixed(by_sum), words, RUNTIME))


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (lambda x: by_sum(x)[0], r"got \(3,\)"),
        (lambda x: by_sum(x)[:-1], r"got \(6, 3\)"),
        (lambda x: by_sum(x)[:, :2], r"\[7 samples, 3 classes seen\], got \(7, 2\)"),
        (lambda x: None, "got NoneType"),
    ],
)
def test_scores_of_a_wrong_shape_are_refused(words: Samples, scores: Any, got: str) -> None:
    with pytest.raises(ModelError, match=got):
        predicted_classes(Fixed(scores), words, RUNTIME, batch_size=7, n_seen=3)


def test_the_training_mode_is_put_back(tiny_stream: TaskStream) -> None:
    method = Fixed(lambda x: torch.zeros(len(x), 2))
    for mode in (True, False):
        method.train(mode)
        predicted_classes(method, tiny_stream[0].test, RUNTIME)
        assert method.training is mode


def test_counts_by_class() -> None:
    correct, total = count_correct(torch.tensor([2, 0, 2, 1]), torch.tensor([2, 2, 2, 1]), 4)
    assert (correct.tolist(), total.tolist()) == ([0, 1, 2, 0], [0, 1, 3, 0])
