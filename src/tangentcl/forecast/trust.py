"""How far to believe a local forecast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# Gaps up to which a forecast is believed, and up to which its ranking is. On CLINC150 (docs/forecast.md) it was off by
# 0.5 to 0.7 times the gap, above 0.6 too; but there are networks on which it fails there (docs/planning.md).
HIGH, LOW = 0.25, 0.6


def belief(gap: float) -> float:
    """Weight of the network at the forecast's parameters against the local model, falling from 1 to 0 at a gap of 0.5.

    Two answers whose errors grow at different rates: measured on CLINC150 (docs/forecast.md) the network is better at
    gaps below about 0.2, where both are good, and far worse above 0.5, where parameters have overshot.

    >>> belief(0.0), belief(0.25), belief(2.0)
    (1.0, 0.5, 0.0)
    """
    return max(0.0, 1.0 - 2.0 * gap) if gap == gap else 0.0


@dataclass(frozen=True)
class Trust:
    r"""Three measures of how far the network leaves the model that the forecast was made with.

    With the local model's drift :math:`\hat D` on old samples and the network's own outputs :math:`f` at the moved
    parameters :math:`\theta_0 + \hat\delta`:

    Attributes:
        gap: :math:`\|f(\theta_0+\hat\delta) - f(\theta_0) - \hat D\| / \|\hat D\|` on old samples, D the whole drift
            where a part of it was really trained (``refine``). It costs one forward
            pass of each and follows the error of the forecast best.
        linearisation_error: the same on a probe of new samples.
        kernel_drift: :math:`\|(J(\theta_0+\hat\delta) - J(\theta_0))\hat\delta\| / \|J(\theta_0)\hat\delta\|` on the
            probe, for the features where a head is known.
        pilot_cosine: cosine of the forecast's and the real drift after a short real run; NaN without one (``refine``).
    """

    gap: float
    linearisation_error: float = math.nan
    kernel_drift: float = math.nan
    pilot_cosine: float = math.nan

    @property
    def level(self) -> str:
        """ "high", "medium" or "low", by the gap."""
        if not self.gap <= LOW:
            return "low"
        return "high" if self.gap <= HIGH else "medium"

    @property
    def sentence(self) -> str:
        """What it means, in one sentence."""
        gap = f"the network at the forecast's parameters is off by {100 * self.gap:.0f} % of the drift"
        if self.level == "high":
            return f"Believe it: {gap}."
        if self.level == "medium":
            return f"Believe the ranking, and the size with care: {gap}."
        return f"Do not believe it: {gap}. Take a smaller learning rate, or train a part of it for real (refine)."

    def to_dict(self) -> dict[str, Any]:
        """The measures, level and sentence; what was not measured is None."""
        measured = {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}
        return {**measured, "level": self.level, "sentence": self.sentence}
