"""What is kept of a forecast whose outputs were never all in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast import verdicts
from tangentcl.forecast.forecast import Cost
from tangentcl.forecast.vulnerability import Vulnerability, eigenspaces


@dataclass(frozen=True)
class StreamedForecast:
    """A forecast for a linear head with a few numbers per old sample instead of all outputs and their drift.

    Attributes:
        labels: of the old samples, int64 [n].
        right: whether each is right (now, after), bool [n] each.
        margin: output of the true class minus the largest other (now, after), [n] each.
        drift_norm: length of each sample's drift, [n].
        change: of the head, float64 [d, C]; the last row is the bias where there is one.
        moment: sum of phi phi^T over old samples, float64 [d, d], or None.
        drift_energy: squared length of the whole drift.
        seen: outputs that count now.
        residual: relative residual of the linear solve behind it; 0 where nothing was solved.
        cost: of the forecast.
    """

    labels: Tensor = field(repr=False)
    right: tuple[Tensor, Tensor] = field(repr=False)
    margin: tuple[Tensor, Tensor] = field(repr=False)
    drift_norm: Tensor = field(repr=False)
    change: Tensor = field(repr=False)
    moment: Tensor | None = field(repr=False)
    drift_energy: float
    seen: int
    residual: float = 0.0
    cost: Cost = field(default_factory=Cost)

    form = "exact"
    exact = True

    def accuracy(self) -> tuple[float, float]:
        """Share of old samples that are right (now, after)."""
        now, after = self.right
        return float(now.double().mean()), float(after.double().mean())

    def per_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """The classes that occur, int64 [K], and the accuracy on each (now, after), float64 [K]."""
        return verdicts.per_class(self.labels, *self.right)

    def margins(self) -> tuple[Tensor, Tensor]:
        """Output of the true class minus the largest other (now, after), [n]; negative where wrong."""
        return self.margin

    def flips(self) -> Tensor:
        """Samples that are right now and will be wrong, bool [n]."""
        return self.right[0] & ~self.right[1]

    def samples_at_risk(self, k: int = 10) -> Tensor:
        """Positions of the samples that are right now and end with the lowest margins, lowest first, int64 [<= k]."""
        return verdicts.samples_at_risk(self.right[0], self.margin[1], k)

    def classes_at_risk(self, k: int = 5) -> Tensor:
        """Classes by predicted loss of accuracy, then of mean margin, worst first, int64 [<= k]."""
        return verdicts.classes_at_risk(self.labels, self.right, self.margin, k)

    @cached_property
    def vulnerability(self) -> Vulnerability:
        """Energy of the drift in the eigenspaces of the old kernel; decomposed when first asked for.

        Raises:
            DataError: the second moment was not kept.
        """
        if self.moment is None:
            raise DataError("this forecast was made without the second moment of the old features (moment=False)")
        return moment_vulnerability(self.moment, self.change, len(self.labels), self.drift_energy)

    def vulnerable_rank(self, share: float = 0.95) -> int:
        """Fewest eigenspaces of the old kernel that hold this share of the drift's energy."""
        return self.vulnerability.rank(share)

    def to_dict(self) -> dict[str, Any]:
        """A summary in plain values, as that of `tangentcl.forecast.Forecast`."""
        n, n_outputs = len(self.labels), self.change.shape[1]
        now, after = self.accuracy()
        found: dict[str, Any] = {
            "form": self.form,
            "exact": self.exact,
            "n_old": n,
            "n_outputs": n_outputs,
            "drift_rms": (self.drift_energy / (n * n_outputs)) ** 0.5,
            "residual": self.residual,
            "accuracy_now": now,
            "accuracy_after": after,
            "flips": int(self.flips().sum()),
            "cost": asdict(self.cost),
        }
        if self.moment is not None:
            found["vulnerable_rank"] = {str(share): self.vulnerable_rank(share) for share in (0.9, 0.95, 0.99)}
        return found


def moment_vulnerability(moment: Tensor, change: Tensor, n: int, energy: float | None = None) -> Vulnerability:
    r"""Energy of a linear head's drift per eigenspace, without the old features.

    :math:`K = \Phi\Phi^\top \otimes I_C` has the non-zero eigenvalues s of :math:`M = \Phi^\top\Phi = V s V^\top`, with
    eigenvectors :math:`u_e = \Phi v_e / \sqrt{s_e}`. So the drift :math:`\Phi\,\Delta W` has in eigenspace e the energy
    :math:`\|u_e^\top \Phi \Delta W\|^2 = s_e \|v_e^\top \Delta W\|^2`.

    Args:
        moment: M, float64 [d, d]. change: of the head, [d, C].
        n: number of old samples.
        energy: of the whole drift, where it was measured; None = the sum over eigenspaces.

    >>> found = moment_vulnerability(torch.diag(torch.tensor([4.0, 1.0])).double(), torch.ones(2, 3).double(), 5)
    >>> found.energy.tolist(), found.multiplicity.tolist()
    ([12.0, 3.0], [3, 3])
    """
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > max(n, len(moment)) * torch.finfo(torch.float64).eps * values[:1].clamp(min=0)
    values, vectors = values[kept], vectors[:, kept]
    space = eigenspaces(values, n)
    m = int(space[-1]) + 1 if len(space) else 0
    counts, empty = torch.bincount(space, minlength=m), torch.zeros(m, dtype=torch.float64)
    per_space = empty.index_add(0, space, values * (vectors.T @ change).square().sum(dim=1))
    return Vulnerability(
        values=empty.index_add(0, space, values) / counts,
        multiplicity=counts * change.shape[1],
        energy=per_space,
        outside=0.0 if energy is None else max(0.0, energy - float(per_space.sum())),
    )
