"""SLCA: a slowly tuned backbone, and a classifier aligned on Gaussians of all classes (Zhang et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone, extract_features

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of the alignment, as released


class SLCA(OnFinetune):
    r"""Slow Learner with Classifier Alignment: fine-tuning at a low rate, then a head trained on sampled features.

    **Slow learner.** Cross-entropy over the current task's classes trains backbone and head. The backbone has to be
    slow: the paper's rate is a hundredth of the head's, which is the plan's to set, ``plan.lr = plan.head_lr / 100``
    (0.01 for the head, by SGD). With equal rates this is `Finetune` with an aligned head.

    **Gaussians.** At the end of a task the features of each of its classes give a mean :math:`\mu_c` and a covariance
    :math:`\Sigma_c`, which are kept as they were at that time: :math:`4 d (d + 1)` bytes a class.

    **Classifier alignment.** From the second task on, a copy of the head is trained on :math:`S` features
    :math:`z \sim N(\mu_c, \Sigma_c)` for every class c seen, drawn anew in each epoch, under

    .. math:: L = -\log \frac{\exp\big(l_y / (\tau \|l\|)\big)}{\sum_c \exp\big(l_c / (\tau \|l\|)\big)}, \quad
        l = W z + b,

    by SGD with momentum 0.9, weight decay 5e-4 and a cosine over the epochs. The copy predicts; training goes on from
    the head as it was before, as in the released code.

    Source: Zhang, Wang, Kang, Chen and Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
    Pre-trained Model", ICCV 2023. Departures, each with its reason:

    - :math:`\|l\|` is the norm over all classes: the root of the sum over tasks of the squared norms of their logits.
      The code divides by the mean of the tasks' norms, which depends on how classes were dealt into tasks.
    - Means are used as they are. The code moves them towards zero, older ones more, by up to a tenth, which the paper
      does not have.
    - ``tune="lora"`` is an option for backbones whose copy in the optimiser is too large.
    - A class that comes back (domain-incremental streams) has the Gaussian of its latest task, whose features are
      nearest to what the backbone does now.

    Args:
        backbone: adapted in place.
        tune: ``"full"`` as in the paper, ``"lora"``, or ``"head"`` for a frozen backbone.
        rank, alpha, targets, dropout: of LoRA, see `tangentcl.nn.add_lora`.
        align_epochs, align_lr: of the alignment; 0 epochs leave it out. An epoch has as many steps as
            there are classes: few classes may need more epochs, or a higher rate.
        align_samples: S, and the batch size of the alignment.
        temperature: :math:`\tau`.
        ridge: added to the diagonal of covariances, which have no full rank with few samples.
        seed: of the drawn features; they are the same in every process.

    Raises:
        ConfigError: a setting out of range.
    """

    means: Tensor
    factors: Tensor
    counts: Tensor
    aligned_weight: Tensor
    aligned_bias: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        tune: Literal["head", "lora", "full"] = "full",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        align_epochs: int = 5,
        align_lr: float = 0.01,
        align_samples: int = 256,
        temperature: float = 0.1,
        ridge: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, count, least in (("align_epochs", align_epochs, 0), ("align_samples", align_samples, 1)):
            if count < least:
                raise ConfigError(f"{name} must be at least {least}, got {count}")
        for name, value in (("align_lr", align_lr), ("temperature", temperature), ("ridge", ridge)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        self.learner = Finetune(
            backbone, tune=tune, rank=rank, alpha=alpha, targets=targets, dropout=dropout, logits="current"
        )
        self.align_epochs, self.align_lr, self.align_samples = align_epochs, align_lr, align_samples
        self.temperature, self.ridge, self.seed = temperature, ridge, seed
        width = backbone.width
        self.register_buffer("means", torch.zeros(0, width))
        self.register_buffer("factors", torch.zeros(0, width, width))  # lower triangular, L L^T = Sigma + ridge I
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("aligned_weight", torch.zeros(0, width))
        self.register_buffer("aligned_bias", torch.zeros(0))

    def begin_task(self, task: Task) -> None:
        """Room for the new classes in head, aligned head and Gaussians."""
        self.learner.begin_task(task)
        n_new = task.n_seen - len(self.counts)
        for name in ("means", "factors", "counts", "aligned_weight", "aligned_bias"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_zeros(n_new, *old.shape[1:])]))

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` over the current task's classes."""
        return self.learner.training_loss(x, y)

    def end_task(self, task: Task) -> None:
        """Keep the Gaussians of the task's classes, then align a copy of the head to those of all classes."""
        features, labels = extract_features(self.learner.backbone, task.train_eval)
        for c in labels.unique().tolist():
            mean, factor = gaussian(features[labels == c], self.ridge)
            self.means[c], self.factors[c] = mean.to(self.means), factor.to(self.factors)
            self.counts[c] = int((labels == c).sum())
        head = self.learner.head
        assert head.bias is not None
        weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
        if task.index and self.align_epochs:
            weight, bias = self._aligned(weight, bias, task.index)
        self.aligned_weight.copy_(weight)
        self.aligned_bias.copy_(bias)

    def _aligned(self, weight: Tensor, bias: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Weight and bias after training on features of all classes that have a Gaussian."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + index)  # on the CPU: equal on every device
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        optimizer = torch.optim.SGD([weight, bias], lr=self.align_lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for epoch in range(self.align_epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.align_lr * 0.5 * (1 + math.cos(math.pi * epoch / self.align_epochs))
            z, y = self.sample(generator)
            order = torch.randperm(len(y), generator=generator).to(y.device)
            for batch in order.split(self.align_samples):
                optimizer.zero_grad()
                with torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
                    logits = F.linear(z[batch], weight, bias)
                    loss = F.cross_entropy(normalised(logits, self.temperature), y[batch])
                loss.backward()
                optimizer.step()
        return weight.detach(), bias.detach()

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``align_samples`` features of each class that has a Gaussian, class by class, and their labels.

        Args:
            generator: on the CPU.
        """
        known = self.counts.nonzero().flatten().tolist()
        drawn, labels = [], []
        for c in known:
            noise = torch.randn(self.align_samples, self.means.shape[1], generator=generator).to(self.means)
            with torch.autocast(noise.device.type, enabled=False):
                drawn.append(self.means[c] + noise @ self.factors[c].T)  # [S, d]
            labels.append(torch.full((self.align_samples,), c, device=noise.device))
        return torch.cat(drawn), torch.cat(labels)

    @property
    def reads_features(self) -> bool:
        """With ``tune = "head"``."""
        return self.learner.reads_features

    def predict(self, x: Batch) -> Tensor:
        """Logits of the aligned head over all classes seen so far, ``[B, n_seen]``."""
        features = self.learner.backbone(x)
        return F.linear(features, self.aligned_weight.to(features), self.aligned_bias.to(features))


def gaussian(features: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    r"""Mean ``[d]`` and lower factor L ``[d, d]`` with :math:`L L^\top = \Sigma + \epsilon I`, float64.

    The covariance is divided by n - 1, and zero for a single sample.

    Args:
        features: ``[n, d]``. ridge: :math:`\epsilon`.

    >>> mean, factor = gaussian(torch.tensor([[1.0, 0.0], [5.0, 0.0]]), ridge=1.0)
    >>> mean, factor @ factor.T
    (tensor([3., 0.], dtype=torch.float64), tensor([[9., 0.],
            [0., 1.]], dtype=torch.float64))
    """
    z = features.double()
    mean = z.mean(dim=0)
    centred = z - mean
    covariance = centred.T @ centred / max(1, len(z) - 1)
    covariance.diagonal().add_(ridge)
    return mean, torch.linalg.cholesky(covariance)


def normalised(logits: Tensor, temperature: float) -> Tensor:
    r"""Logits of a fixed length, :math:`l / (\tau \|l\|)`, ``[B, C]``: only their direction is trained.

    >>> normalised(torch.tensor([[3.0, 4.0]]), 0.1)
    tensor([[6., 8.]])
    """
    return F.normalize(logits, dim=1) / temperature
