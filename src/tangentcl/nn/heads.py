"""Classifiers that grow with the stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ModelError


def _grown(old: nn.Parameter, n_outputs: int, std: float) -> nn.Parameter:
    """``old`` with rows appended up to ``n_outputs``: normal with deviation ``std``, drawn on the CPU."""
    n_new = n_outputs - old.shape[0]
    if n_new < 0:
        raise ModelError(f"a head grows and never shrinks: it has {old.shape[0]} outputs, {n_outputs} were asked for.")
    new = torch.randn(n_new, *old.shape[1:]) * std if std else torch.zeros(n_new, *old.shape[1:])
    rows = torch.cat([old.detach(), new.to(old)])
    return nn.Parameter(rows, requires_grad=old.requires_grad)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor, or half precision as float32: cosines of features lie close together, and bf16 has two digits.

    >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype, at_least_float32(torch.zeros(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class GrowingLinear(nn.Module):
    """A linear classifier whose outputs are appended as classes arrive: ``z W^T + b``.

    Starts without outputs. :meth:`grow` replaces the parameters, so an optimiser has to be made afterwards; old rows
    stay bit-equal, new rows are normal with deviation 0.02 (global torch generator), new biases zero unless `grow` is
    told otherwise. A state dict loads into a head that was grown to the same number of outputs.

    Shapes: features [B, width] -> logits [B, n_outputs].

    >>> head = GrowingLinear(4)
    >>> head.grow(2)
    >>> head(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(0, width))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None

    @property
    def n_outputs(self) -> int:
        return self.weight.shape[0]

    def grow(self, n_outputs: int, bias: float = 0.0) -> None:
        """Append rows until there are ``n_outputs`` in total.

        Args:
            bias: of the new outputs. A low one (about -2) keeps new classes from winning on old samples before
                anything was learned.

        Raises:
            ModelError: fewer outputs than there are, or a bias for a head without.

        >>> head = GrowingLinear(4)
        >>> head.grow(1)
        >>> head.grow(2, bias=-2.0)
        >>> head.bias.tolist()
        [0.0, -2.0]
        """
        if bias and self.bias is None:
            raise ModelError(f"this head was made without a bias, and its new outputs were to start at {bias:g}.")
        if n_outputs == self.n_outputs:
            return
        old = self.n_outputs
        self.weight = _grown(self.weight, n_outputs, std=0.02)
        if self.bias is not None:
            self.bias = _grown(self.bias, n_outputs, std=0.0)
            self.bias.data[old:] = bias

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"width={self.width}, n_outputs={self.n_outputs}, bias={self.bias is not None}"


class CosineLinear(nn.Module):
    """Cosine classifier: ``scale * <z / |z|, w_c / |w_c|>``; grows like :class:`GrowingLinear`.

    Source: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018, equation 2, with a
    fixed scale.

    Shapes: features [B, width] -> logits [B, n_outputs] in [-scale, scale].

    >>> head = CosineLinear(4, scale=10.0)
    >>> head.grow(1)
    >>> round(head(3 * head.weight.detach()).item(), 4)
    10.0
    """

    def __init__(self, width: int, scale: float = 10.0) -> None:
        super().__init__()
        self.width = width
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(0, width))

    @property
    def n_outputs(self) -> int:
        return self.weight.shape[0]

    def grow(self, n_outputs: int) -> None:
        """Append rows until there are ``n_outputs`` in total. Raises ModelError for fewer than there are."""
        if n_outputs != self.n_outputs:
            self.weight = _grown(self.weight, n_outputs, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))

    def extra_repr(self) -> str:
        return f"width={self.width}, n_outputs={self.n_outputs}, scale={self.scale}"


class PrototypeHead(nn.Module):
    """Nearest class mean from running sums: no gradient, no stored sample, any order of arrival.

    Keeps ``s_c = sum of z`` (float64) and ``n_c`` per class; the prototype is ``s_c / n_c``. Scores are the cosine
    ``<z, p_c> / (|z| |p_c|)`` (SimpleCIL: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models",
    IJCV 2024) or ``-|z - p_c|^2``. A class without samples scores minus infinity.

    Scores are in float32 at least, under autocast too.

    Shapes: features [B, width] -> scores [B, n_outputs].

    >>> head = PrototypeHead(2)
    >>> head.grow(2)
    >>> head.update(torch.tensor([[1., 0.], [0., 2.]]), torch.tensor([0, 1]))
    >>> head(torch.tensor([[3., 0.]]))
    tensor([[1., 0.]])
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, metric: str = "cosine") -> None:
        super().__init__()
        if metric not in ("cosine", "euclidean"):
            raise ModelError(f"metric has to be 'cosine' or 'euclidean', not '{metric}'.")
        self.width = width
        self.metric = metric
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    @property
    def n_outputs(self) -> int:
        return self.sums.shape[0]

    def grow(self, n_outputs: int) -> None:
        """Append empty classes until there are ``n_outputs`` in total. Raises ModelError for fewer than there are."""
        n_new = n_outputs - self.n_outputs
        if n_new < 0:
            raise ModelError(f"a head grows and never shrinks: it has {self.n_outputs} outputs, {n_outputs} asked for.")
        self.sums = torch.cat([self.sums, self.sums.new_zeros(n_new, self.width)])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(n_new)])

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add samples: features [n, width], labels [n] below ``n_outputs``. Raises ModelError otherwise."""
        if features.ndim != 2 or features.shape[1] != self.width or labels.shape != features.shape[:1]:
            raise ModelError(
                f"expected features [n, {self.width}] and labels [n], "
                f"got {tuple(features.shape)} and {tuple(labels.shape)}."
            )
        labels = labels.to(self.sums.device)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_outputs:
            raise ModelError(
                f"labels from {int(labels.min())} to {int(labels.max())} do not fit {self.n_outputs} outputs. "
                "Call grow first."
            )
        self.sums.index_add_(0, labels, features.to(self.sums))
        self.counts.index_add_(0, labels, torch.ones_like(labels))

    @torch.no_grad()
    def move(self, means: Tensor) -> None:
        """Put the class means elsewhere, [n_outputs, width]; counts stay, and so do classes without samples.

        Raises:
            ModelError: another shape.
        """
        if means.shape != self.sums.shape:
            raise ModelError(f"expected class means {list(self.sums.shape)}, got {list(means.shape)}.")
        self.sums.copy_(means.to(self.sums) * self.counts[:, None])

    @property
    def prototypes(self) -> Tensor:
        """Class means, float64 [n_outputs, width]; zero for a class without samples."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def forward(self, features: Tensor) -> Tensor:
        features = at_least_float32(features)
        means = self.prototypes.to(features)  # [C, d]
        with torch.autocast(features.device.type, enabled=False):
            if self.metric == "cosine":
                scores = F.linear(F.normalize(features, dim=-1), F.normalize(means, dim=-1))
            else:
                cross = F.linear(features, means)  # -|z - p|^2 = 2 <z, p> - |p|^2 - |z|^2
                scores = 2 * cross - means.square().sum(-1) - features.square().sum(-1, keepdim=True)
        return scores.masked_fill(self.counts == 0, -torch.inf)

    def extra_repr(self) -> str:
        return f"width={self.width}, n_outputs={self.n_outputs}, metric={self.metric}"
