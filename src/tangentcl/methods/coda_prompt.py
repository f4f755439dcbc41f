"""CODA-Prompt: prompts that are sums of components, weighted by attention to the input (Smith et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError, ModelError
from tangentcl.losses import orthonormality
from tangentcl.methods.method import Batch
from tangentcl.methods.prompted import Prompted
from tangentcl.nn import Backbone
from tangentcl.nn.blocks import Tokens
from tangentcl.nn.heads import at_least_float32
from tangentcl.nn.prefix import PrefixPool, check_blocks, first_blocks

BLOCKS = 5  # of 12
FLOOR = 1e-24  # of squared norms


class CODAPrompt(Prompted):
    r"""Every prefix is a weighted sum of all components; each task brings new ones and freezes the old.

    In each block l of the first five, M components :math:`P_m \in R^{L_p \times d}` have keys :math:`K_m` and attention
    vectors :math:`A_m` in :math:`R^d`. With the query q(x), the feature of the backbone without prompts,

    .. math:: p_l(x) = \sum_m \alpha_m P_m, \qquad \alpha_m = \cos(q(x) \odot A_m, K_m),

    whose first half is keys, and the second half values, beside the block's own (`tangentcl.nn.prefix`). Weights are
    not normalised over m, and everything has a gradient, from end to end. Each task trains M / T components, its share,
    next to frozen ones of earlier tasks, all of which are in the sum, and the classifier, and minimises

    .. math:: L = \mathrm{CE} + \lambda \sum_l \big(\Omega(P) + \Omega(K) + \Omega(A)\big), \qquad
        \Omega(T) = \frac{1}{M^2} \|T T^\top - I\|_F^2,

    over the components so far, P as rows of :math:`L_p d`. Source: Smith et al., "CODA-Prompt: COntinual Decomposed
    Attention-based Prompting for Rehearsal-Free Continual Learning", CVPR 2023, arXiv 2211.13218, and its code.

    Args:
        n_components: M, of the whole stream; each of its T tasks has M // T.
        length: :math:`L_p`, even: half are keys, half values.
        blocks: with prefixes. None: the first five of twelve blocks and more; in shallower networks the same share of
            the depth, rounded up, so three of the six of the bundled network.
        orthogonality: :math:`\lambda`. The released commands have 0: with the initial values below it does little.
        logits: see `Prompted`.

    Departures, each with its reason:

    - New components start orthonormal to each other and to the span of the old ones, as in the release (after the
      paper, which draws all before the first task), but by a QR decomposition in float64: the release subtracts
      projections on old rows one by one, which is exact only while those are orthogonal.
    - :math:`\alpha` is computed as :math:`\langle q, A \odot \hat K \rangle / \sqrt{\langle q^2, A^2 \rangle}`, the
      same number without a tensor of B M d entries.
    - Cross-entropy over the task's own classes is that of the release; its weights for unequal classes are one here.

    Note:
        The release trains with Adam at 1e-3, to zero by a cosine, for 20 (CIFAR-100) or 50 (ImageNet-R) epochs per task
        at batch size 128. Initial components have norm one as a whole, so they hardly show: short training wants larger
        rates.

    Raises:
        ConfigError: an odd length, blocks that do not exist, fewer components than tasks, or more than d.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        n_components: int = 100,
        length: int = 8,
        blocks: Sequence[int] | None = None,
        orthogonality: float = 0.1,
        logits: Literal["all", "current"] = "current",
    ) -> None:
        super().__init__(backbone, logits=logits)
        width, depth = self.trunk.width, self.trunk.depth
        if length < 2 or length % 2:
            raise ConfigError(f"length is of keys and values together and must be even, got {length}")
        if not 1 <= n_components <= width:
            raise ConfigError(f"n_components must be from 1 to the width of the backbone, {width}, got {n_components}")
        chosen = check_blocks("blocks", range(first_blocks(depth, BLOCKS)) if blocks is None else blocks, depth)
        self.n_components, self.orthogonality = n_components, orthogonality
        self.components = PrefixPool(width, chosen, length // 2)
        self.keys, self.attention = nn.ParameterList(), nn.ParameterList()  # [m, L, d] for each task

    def begin_task(self, task: Task) -> None:
        """New components, keys and attention vectors; those of earlier tasks are frozen.

        Raises:
            ConfigError: fewer components than tasks.
        """
        super().begin_task(task)
        if self.n_components < task.n_tasks:
            raise ConfigError(f"n_components must be at least the {task.n_tasks} tasks, got {self.n_components}")
        m, pool, device = self.n_components // task.n_tasks, self.components, self.trunk.backbone.device
        n_blocks, shape = len(pool.blocks), (2, pool.length, pool.width)
        old = pool.all.flatten(2) if len(pool) else torch.zeros(0, n_blocks, 2 * pool.length * pool.width)
        pool.append(_orthonormal(old, m).unflatten(2, shape).to(device))
        for vectors in (self.keys, self.attention):
            old = torch.cat(list(vectors)) if len(vectors) else torch.zeros(0, n_blocks, pool.width)
            vectors.requires_grad_(False)
            vectors.append(nn.Parameter(_orthonormal(old, m).to(device)))

    def weights(self, query: Tensor) -> Tensor:
        r""":math:`\alpha`, ``[B, d] -> [B, M, L]``, in float32 at least."""
        if not len(self.components):
            raise ModelError("CODAPrompt needs begin_task(task) first, which makes the task's components")
        keys, attention = torch.cat(list(self.keys)), torch.cat(list(self.attention))  # [M, L, d]
        with torch.autocast(query.device.type, enabled=False):
            query = at_least_float32(query)
            unit = nn.functional.normalize(keys, dim=-1)
            along = torch.einsum("bd,mld->bml", query, attention * unit)
            norm = torch.einsum("bd,mld->bml", query.square(), attention.square()).clamp(min=FLOOR).sqrt()
            return along / norm

    def _features(self, tokens: Tokens) -> Tensor:
        return self.trunk.prefixed(tokens, self.components.mixed(self.weights(self.trunk.query(tokens))))

    def prompted(self, x: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Features, and the term ``orthogonality`` unless its weight is zero."""
        features = self._features(self.trunk.embed(x))
        return features, {"orthogonality": self.orthogonality * self.penalty()} if self.orthogonality else {}

    def penalty(self) -> Tensor:
        r""":math:`\sum_l \Omega(P) + \Omega(K) + \Omega(A)` over the components so far."""
        together = (self.components.all.flatten(2), torch.cat(list(self.keys)), torch.cat(list(self.attention)))
        return torch.stack([orthonormality(rows[:, i]) for rows in together for i in range(rows.shape[1])]).sum()

    def features(self, x: Batch) -> Tensor:
        """As in training: no choice is made."""
        return self._features(self.trunk.embed(x))


def _orthonormal(old: Tensor, m: int) -> Tensor:
    """``m`` random rows per block, orthonormal and orthogonal to the old ones, ``[M, L, n] -> [m, L, n]``.

    Drawn by the global generator, computed in float64 on the CPU.
    """
    n_old, n_blocks, n = old.shape
    drawn = torch.randn(m, n_blocks, n, dtype=torch.float64)
    both = torch.cat([old.detach().cpu().double(), drawn]).permute(1, 2, 0)  # [L, n, M + m]
    return torch.linalg.qr(both).Q[..., n_old:].permute(2, 0, 1).float().contiguous()
