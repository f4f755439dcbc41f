"""What all branches have in common, stored sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tangentcl.data import Samples
from tangentcl.nn.backbone import Batch, to_device
from tangentcl.nn.blocks import Tokens, Transformer
from tangentcl.nn.trunks import Stem, stem

ATTENDED, UPDATE, MASK, LAYOUT = "attended", "update", "mask", "layout"


@dataclass(frozen=True)
class StoredStem:
    """A `Stem` of one sample, without padding.

    Attributes:
        attended, update: ``[N, d]``, on the CPU, in the precision that they were made in.
        masked: whether the samples have a mask, as texts do.
        grid, n_prefix: see `Tokens`.
    """

    attended: Tensor
    update: Tensor
    masked: bool
    grid: tuple[int, int] | None
    n_prefix: int


@torch.no_grad()
def stored_stems(
    model: Transformer, samples: Samples, first: int, device: torch.device, batch_size: int = 256
) -> list[StoredStem]:
    """The stems of all samples in order: ``2 N d`` numbers for each.

    Args:
        model: frozen, in evaluation mode. samples: in one view. first: the first adapted block.
    """
    found = []
    for x, _ in samples.batches(batch_size):
        start = stem(model, to_device(x, device), first)
        mask, tokens = start.tokens.mask, start.tokens
        for i, (attended, update) in enumerate(zip(start.attended.cpu(), start.update.cpu())):
            real = slice(None) if mask is None else mask[i].cpu() > 0
            parts = attended[real].clone(), update[real].clone()
            found.append(StoredStem(*parts, mask is not None, tokens.grid, tokens.n_prefix))
    return found


def stem_batch(stems: Sequence[StoredStem]) -> dict[str, Tensor]:
    """Stems as a batch of tensors, which `stem_of` reads; texts are padded behind.

    The layout is a tensor without elements, whose shape says rows, columns (0 x 0 without a grid) and tokens before the
    patches: so a device need not be asked for it.
    """
    rows, columns = stems[0].grid or (0, 0)
    batch = {
        ATTENDED: pad_sequence([one.attended for one in stems], batch_first=True),
        UPDATE: pad_sequence([one.update for one in stems], batch_first=True),
        LAYOUT: torch.empty(rows, columns, stems[0].n_prefix, 0),
    }
    if not stems[0].masked:
        return batch
    lengths = torch.tensor([len(one.attended) for one in stems])
    return {**batch, MASK: (torch.arange(int(lengths.max())) < lengths[:, None]).long()}


def stem_of(batch: Batch | Mapping[str, Tensor], first: int) -> Stem | None:
    """The stem that a batch of `stem_batch` holds; None for any other batch.

    >>> stem_of(torch.zeros(1, 3), 0) is None
    True
    """
    if isinstance(batch, Tensor) or ATTENDED not in batch:
        return None
    rows, columns, n_prefix, _ = batch[LAYOUT].shape
    grid = (rows, columns) if rows else None
    tokens = Tokens(batch[ATTENDED], mask=batch.get(MASK), grid=grid, n_prefix=n_prefix)
    return Stem(tokens, batch[ATTENDED], batch[UPDATE], first)
