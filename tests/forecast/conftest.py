"""Small linear problems, and real training of them by torch: the truth of every forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_OLD, WIDTH, OLD, CLASSES = 9, 12, 3, 5  # samples, features, old and all outputs


@dataclass
class Case:
    """Old and new features, a head with random old and small new rows, labels, and the outputs in the loss."""

    features_old: Tensor
    features_new: Tensor
    labels: Tensor
    head: nn.Linear
    columns: list[int] | None

    def loss(self, name: str, outputs: Tensor, labels: Tensor) -> Tensor:
        """What training minimises, written with torch's own functions."""
        shown = labels
        if self.columns is not None:
            outputs = outputs[:, self.columns]
            shown = torch.tensor([self.columns.index(int(y)) for y in labels])
        if name == "cross_entropy":
            return F.cross_entropy(outputs, shown)
        one_hot = F.one_hot(shown, outputs.shape[1]).to(outputs)
        return 0.5 * F.mse_loss(outputs, one_hot, reduction="sum") / len(outputs)

    def copy_of_head(self) -> nn.Linear:
        head = nn.Linear(WIDTH, CLASSES, bias=self.head.bias is not None).to(self.head.weight.dtype)
        head.load_state_dict(self.head.state_dict())
        return head

    def train(
        self,
        make: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
        loss: str,
        rates: Sequence[float],
        batches: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Really train a copy of the head; the drift of the old outputs."""
        head = self.copy_of_head()
        before = head(self.features_old).detach()
        optimizer = make(list(head.parameters()))
        for step, rate in enumerate(rates):
            rows = list(range(len(self.labels))) if batches is None else list(batches[step])
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            self.loss(loss, head(self.features_new[rows]), self.labels[rows]).backward()
            optimizer.step()
        return head(self.features_old).detach() - before


@pytest.fixture
def make_case() -> Callable[..., Case]:
    def make(
        n: int = 20, bias: bool = True, masked: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> Case:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        head = nn.Linear(WIDTH, CLASSES, bias=bias).to(dtype)
        with torch.no_grad():
            head.weight.copy_(torch.cat([draw(OLD, WIDTH), 0.02 * draw(CLASSES - OLD, WIDTH)]))
            if bias:
                head.bias.copy_(torch.cat([draw(OLD), torch.zeros(CLASSES - OLD, dtype=dtype)]))
        labels = torch.randint(OLD, CLASSES, (n,), generator=g)
        columns = [4, 3] if masked else None  # not in order, so that a mix-up shows
        return Case(draw(N_OLD, WIDTH), draw(n, WIDTH), labels, head, columns)

    return make
