"""Whether training stayed where the theory holds: kernel change, alignment, linearisation error (Q9)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.trust import HIGH, LOW

LIGHTS = ("green", "amber", "red")
WORDS = {"green": "holds", "amber": "with care", "red": "does not hold"}


def kernel_change(before: Tensor, after: Tensor) -> float:
    r"""Q9: :math:`\|K_{after} - K_{before}\|_F / \|K_{before}\|_F`, on the same samples.

    >>> kernel_change(torch.eye(2), 3 * torch.eye(2))
    2.0
    """
    _same_shape(before, after)
    return _ratio(float((after.double() - before.double()).norm()), float(before.double().norm()))


def kernel_alignment(before: Tensor, after: Tensor) -> float:
    r"""Q9: :math:`\langle K_{before}, K_{after}\rangle / (\|K_{before}\|\|K_{after}\|)`; blind to a change of scale.

    Source: Cristianini et al., "On Kernel-Target Alignment", NeurIPS 2001.

    >>> kernel_alignment(torch.eye(2), 3 * torch.eye(2))
    1.0
    """
    _same_shape(before, after)
    a, b = before.double().flatten(), after.double().flatten()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else math.nan


def linearisation_error(start: Tensor, linear: Tensor, moved: Tensor) -> float:
    r"""Q9: :math:`\|f_p - f_{lin}\| / \|f_p - f_{p_0}\|` with :math:`f_{lin} = f_{p_0} + J(p_0)(p - p_0)`.

    Args:
        start, moved: outputs before and after, [n, C]. linear: J (p - p_0), [n, C].

    >>> linearisation_error(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([[2.0]]))
    0.5
    """
    _same_shape(start, moved)
    _same_shape(start, linear)
    real = moved.double() - start.double()
    return _ratio(float((real - linear.double()).norm()), float(real.norm()))


def _ratio(part: float, whole: float) -> float:
    """Their ratio; nothing of nothing is nothing."""
    return part / whole if whole > 0 else 0.0 if part == 0 else math.inf


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise DataError(f"expected two tensors of one shape, got {list(a.shape)} and {list(b.shape)}")


@dataclass(frozen=True)
class Laziness:
    """The gauges of one task on a probe of its samples, and the traffic light that they make.

    Kernels are compared around their means (`centred_kernel`): next to the mean that all features share, a change of
    what tells samples apart would not show.

    **The rule.** The worst of feature change, tangent change and linearisation error decides: green up to 0.25, amber
    up to 0.6, red above, or where one is not finite. A forecast's trust has the same limits (`forecast.trust`), for the
    same reason: a relative error of the model is one of what is derived from it. Alignments do not count, since they
    do not see a change of scale.

    Attributes:
        feature_change, feature_alignment: of the kernel of the features, which most quantities are made of.
        tangent_change, tangent_alignment: of the tangent kernel of all that trains; 0 and 1 where nothing does.
        linearisation_error: of the outputs; 0 where nothing trains.
        function: what was linearised, "outputs" or "features".

    >>> Laziness(0.1, 0.99, 0.3, 0.98, 0.2).light
    'amber'
    """

    feature_change: float
    feature_alignment: float
    tangent_change: float = 0.0
    tangent_alignment: float = 1.0
    linearisation_error: float = 0.0
    function: str = "outputs"

    @property
    def worst(self) -> tuple[str, float]:
        """The gauge that decides, in words, and its value."""
        gauges = {
            "the kernel of the features changed": self.feature_change,
            "the tangent kernel changed": self.tangent_change,
            f"the {self.function} left their linearisation": self.linearisation_error,
        }
        return max(gauges.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)

    @property
    def light(self) -> str:
        """ "green", "amber" or "red"."""
        value = self.worst[1]
        if not value <= LOW:
            return "red"
        return "green" if value <= HIGH else "amber"

    @property
    def sentence(self) -> str:
        """What the light means, in one sentence."""
        what, value = self.worst
        if value < 0.005:
            return "The theory holds: kernels stayed as they were, and outputs are linear in what was trained."
        by = "beyond measure" if not math.isfinite(value) else f"by {100 * value:.0f} %"
        by = by if not 10 <= value < math.inf else f"by {value:.0f} times as much as there was"
        if self.light == "green":
            return f"The theory holds: at most, {what} {by}."
        if self.light == "amber":
            return f"Take derived numbers with care: {what} {by}."
        return f"The theory does not hold, and derived numbers are no more than hints: {what} {by}."

    def to_dict(self) -> dict[str, Any]:
        """Gauges, light and sentence; what is not finite is None."""
        gauges = {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in asdict(self).items()}
        return {**gauges, "light": self.light, "sentence": self.sentence}


def frozen(features_before: Tensor, features_after: Tensor) -> Laziness:
    """The gauges where nothing trains by gradients: those of the features alone, [n, d] each."""
    before, after = feature_kernel(features_before), feature_kernel(features_after)
    return Laziness(kernel_change(before, after), kernel_alignment(before, after))


def feature_kernel(features: Tensor) -> Tensor:
    r"""The kernel :math:`\Phi\Phi^\top` of some samples around their mean, float64 [n, n].

    >>> feature_kernel(torch.tensor([[9.0], [7.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    rows = features.to(torch.float64)
    rows = rows - rows.mean(dim=0)
    return rows @ rows.T


def centred_kernel(kernel: Tensor, n: int) -> Tensor:
    r""":math:`(H \otimes I_C) K (H \otimes I_C)` with :math:`H = I - 1 1^\top / n`: what is left without the mean.

    Args:
        kernel: of n samples with C outputs each, sample-major, [n C, n C].

    >>> centred_kernel(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 2).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    blocks = kernel.reshape(n, -1, n, kernel.shape[1] // n)
    blocks = blocks - blocks.mean(dim=0, keepdim=True)
    return (blocks - blocks.mean(dim=2, keepdim=True)).reshape(kernel.shape)
