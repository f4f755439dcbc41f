"""Training samples in a few fixed random views, each with the features that frozen branches make of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentcl.data import Samples
from tangentcl.errors import ConfigError
from tangentcl.nn.backbone import Batch
from tangentcl.nn.branches import FeaturesOf, TwoBranches
from tangentcl.nn.extract import extract_features
from tangentcl.nn.stem_bank import StoredStem, stem_batch, stored_stems

INPUT, FROZEN = "input", "frozen"  # what a batch of a view bank holds


class FixedView(Samples):
    """One random view of every sample, always the same: it depends on the seed, the view and the sample alone.

    Args:
        samples: under the training transform. seed: of all views. view: which one.

    >>> from tangentcl.data import class_incremental, load
    >>> from tangentcl.nn import backbone
    >>> train = class_incremental(load("digits"), n_tasks=5)[0].train.with_transform(backbone().train_transform)
    >>> first, again, second = FixedView(train, 0, 0), FixedView(train, 0, 0), FixedView(train, 0, 1)
    >>> torch.equal(first[3][0], again[3][0]), torch.equal(first[3][0], second[3][0])
    (True, False)
    """

    def __init__(self, samples: Samples, seed: int, view: int) -> None:
        super().__init__(samples.table, samples.positions, samples.labels, samples.transform)
        self.seed, self.view = seed, view

    def item(self, index: int, rng: np.random.Generator | None) -> tuple[Any, int]:
        """The view of sample ``index`` and its label, whatever the generator."""
        key = np.random.SeedSequence([self.seed, self.view, int(self.positions[index])])
        return super().item(index, np.random.Generator(np.random.Philox(key)))

    def subset(self, positions: np.ndarray | Sequence[int]) -> FixedView:
        """The views of the samples at these positions."""
        return FixedView(super().subset(positions), self.seed, self.view)


class ViewBank(Samples):
    """Samples whose random view is drawn from ``n_views`` fixed ones, with frozen features computed once for each.

    A batch is ``{"input": batch, "frozen": [B, F]}``. Made by `view_bank`.

    Args:
        samples: under the training transform. seed: of the views.
        features: of every view and sample, ``[V, n, F]``.
        stems: of every view and sample, ``V`` lists of ``n``. The input is then a batch of them, and samples are
            neither read nor transformed.
    """

    def __init__(
        self, samples: Samples, seed: int, features: Tensor, stems: Sequence[Sequence[StoredStem]] | None = None
    ) -> None:
        super().__init__(samples.table, samples.positions, samples.labels, samples.transform)
        self.seed, self.features, self.stems = seed, features, stems
        self.views = [FixedView(samples, seed, view) for view in range(len(features))]

    def item(self, index: int, rng: np.random.Generator | None) -> tuple[Any, int]:
        """One of the views of sample ``index`` with its features, and its label; the first without a generator."""
        view = 0 if rng is None else int(rng.integers(len(self.views)))
        if self.stems is not None:
            return (self.stems[view][index], self.features[view, index]), int(self.labels[index])
        x, label = self.views[view].item(index, None)
        return (x, self.features[view, index]), label

    def collate(self, items: Sequence[tuple[Any, int]]) -> tuple[dict[str, Any], Tensor]:
        """Items -> (what is given above, labels [B])."""
        frozen = torch.stack([frozen for (_, frozen), _ in items])
        if self.stems is not None:
            y = torch.tensor([label for _, label in items], dtype=torch.int64)
            return {INPUT: stem_batch([one for (one, _), _ in items]), FROZEN: frozen}, y
        x, y = super().collate([(x, label) for (x, _), label in items])
        return {INPUT: x, FROZEN: frozen}, y

    def subset(self, positions: np.ndarray | Sequence[int]) -> ViewBank:
        """The same views of the samples at these positions."""
        chosen = np.asarray(positions, dtype=np.int64)
        stems = None if self.stems is None else [[view[i] for i in chosen] for view in self.stems]
        return ViewBank(super().subset(positions), self.seed, self.features[:, torch.as_tensor(chosen)], stems)


def view_bank(
    network: TwoBranches,
    samples: Samples,
    n_views: int,
    seed: int,
    *,
    ptm: bool = True,
    keep_stems: bool = False,
    batch_size: int = 256,
) -> ViewBank:
    """Fixed views of samples with the network's frozen features, computed here, in evaluation mode.

    With ``n_views`` below the number of epochs this saves passes: each view is seen several times, and the frozen
    branches are run once for each. Texts, which have one view, lose nothing by ``n_views=1``.

    Args:
        network: its current modules may train on, its frozen ones must stay while the bank is used.
        samples: under the training transform. n_views: V. seed: of the views.
        ptm: whether the pre-trained feature is among the frozen ones.
        keep_stems: keep what the branches have in common, too, ``2 N d`` numbers for each view and sample; in every
            process.

    Raises:
        ConfigError: no view, or a network without frozen features.
    """
    if n_views < 1:
        raise ConfigError(f"a bank needs at least one view of a sample, got {n_views}")
    if not network.n_frozen(ptm=ptm):
        raise ConfigError("the network has no frozen branch whose features could be kept, such as a running mean's")
    width = network.n_frozen(ptm=ptm) * network.backbone.width
    frozen = FeaturesOf(network, partial(network.frozen, ptm=ptm), width)
    views = [FixedView(samples, seed, view) for view in range(n_views)]
    features = torch.stack([extract_features(frozen, view, batch_size)[0] for view in views])
    if not keep_stems:
        return ViewBank(samples, seed, features)
    first, device = network.first_block, network.device
    stems = [stored_stems(network.model, view, first, device, batch_size) for view in views]
    return ViewBank(samples, seed, features, stems)


def unpacked(batch: Any) -> tuple[Batch, Tensor | None]:
    """A batch of a view bank as input and frozen features; any other batch as it is, and None.

    >>> unpacked(torch.ones(1)), unpacked({"input": torch.ones(1), "frozen": torch.zeros(1, 2)})
    ((tensor([1.]), None), (tensor([1.]), tensor([[0., 0.]])))
    """
    if isinstance(batch, dict) and set(batch) == {INPUT, FROZEN}:
        return batch[INPUT], batch[FROZEN]
    return batch, None
