"""Ridge regression on one-hot labels over a stream: the same weights as on all samples at once."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from tangentcl.errors import ConfigError, ModelError
from tangentcl.heads.head import AnalyticHead, in_full_precision
from tangentcl.heads.holdout import HeldOut
from tangentcl.heads.lift import Lift
from tangentcl.heads.strength import Rule, Strength, by_holdout, by_spectrum, by_task, checked_rule, held_out
from tangentcl.heads.sums import EXACT_WIDTH, SETTLED, RidgeSums

POWER_STEPS = 8


class RidgeHead(AnalyticHead):
    r""":math:`s(x) = W^\top h(x)` with :math:`W = (G + \lambda I)^{-1} Q`, sums over all samples of all tasks.

    .. math:: G = \sum_i w_i h_i h_i^\top \in R^{M \times M}, \quad Q = \sum_i w_i h_i y_i^\top \in R^{M \times C},
        \quad h = \mathrm{lift}(z), \quad y \text{ one-hot}.

    A sum knows no order: for a fixed strength the weights are those of joint training on all tasks, in whatever order,
    batches or heads the samples came, and taking samples out again is exact. Old labels are zero for new classes, so
    that classes are appended at no cost. What this does *not* say is that accuracy on old classes stays: they gain
    competitors, as they do in joint training.

    While there are fewer samples than M, their rows are kept and systems are solved in their number; after that G, of
    8 M^2 bytes. Products are taken in float64 up to M = 2048, above in the features' precision, with sums in float64.

    Args:
        lift: of the features.
        strength: a number, in units of tr(G) / n, the mean squared length of a lifted feature, alike for every
            width; or the rule it is chosen by anew at each update: ``"holdout"`` (squared error on samples
            kept aside from all tasks, which also count in the weights), ``"gcv"``, ``"evidence"`` (both an
            eigen-decomposition of G for each update) or ``"task"`` (RanPAC's: on the current task alone).
        holdout: share of the samples that ``"holdout"`` keeps aside.
        balanced: let every class weigh the same, by 1 / n_c; n_c is what came with the class's first task.
        constant: value of a constant feature beside the lifted ones, 0 for none: a bias.
        seed: of the split of ``"task"``.

    Raises:
        ConfigError: settings out of range.

    >>> from tangentcl.heads import NoLift
    >>> head = RidgeHead(NoLift(2), strength=1e-6)
    >>> _ = head.fit_task(torch.eye(2), torch.tensor([0, 1]))
    >>> head.predict(torch.tensor([[1.0, 0.0]])).argmax(1)
    tensor([0])
    """

    scale: Tensor
    last: Tensor

    def __init__(
        self,
        lift: Lift,
        *,
        strength: float | Rule = "holdout",
        holdout: float = 0.1,
        balanced: bool = False,
        constant: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(lift.width_in)
        checked_rule(strength)
        if not 0 < holdout < 1:
            raise ConfigError(f"holdout must lie between 0 and 1, got {holdout!r}")
        self.lift = lift
        self.rule = strength
        self.holdout = holdout if strength == "holdout" else 0.0
        self.balanced, self.constant, self.seed = balanced, float(constant), seed
        width = lift.width + bool(constant)
        self.fitted, self.held = RidgeSums(width), RidgeSums(width)
        self.register_buffer("scale", torch.zeros(0, dtype=torch.float64))  # weight of a sample of each class
        self.register_buffer("last", torch.zeros((), dtype=torch.float64))  # relative strength of the last choice
        self._weights: Tensor | None = None
        self._strength: Strength | None = None
        self.register_load_state_dict_post_hook(_stale)

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {"lift": f"{type(self.lift).__name__}({self.lift.extra_repr()})", "strength": self.rule}
        if self.rule == "holdout":
            found["holdout"] = self.holdout
        return {**found, "balanced": self.balanced, "constant": self.constant}

    def _append(self, n_new: int) -> None:
        self.fitted.append(n_new)
        self.held.append(n_new)
        self.scale = torch.cat([self.scale, self.scale.new_zeros(n_new)])
        self._stale()

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self.lift.fit(features)
        self._stale()
        rows = self.lifted(features)
        weights = self._sample_weights(labels)
        aside = held_out(features, self.holdout)
        for sums, chosen in ((self.fitted, ~aside), (self.held, aside)):
            sums.add(rows[chosen], labels[chosen], weights[chosen], sign)
        if self.rule == "task" and sign > 0:
            unit = float(rows.double().square().sum()) / len(rows)
            self.last.fill_(by_task(rows, F.one_hot(labels, self.n_outputs), unit, self.seed).relative)

    def _take_in(self, other: Self) -> None:
        ours, theirs = self.lift.state_dict(), other.lift.state_dict()
        if any(ours[k].shape != v.shape or not torch.equal(ours[k], v.to(ours[k])) for k, v in theirs.items()):
            raise ModelError("heads with different lifts cannot be merged: give both the same seed and landmarks.")
        self.fitted.take_in(other.fitted)
        self.held.take_in(other.held)
        self.scale = torch.where(self.scale > 0, self.scale, other.scale.to(self.scale))
        self.last = torch.maximum(self.last, other.last)
        self._stale()

    def _sample_weights(self, labels: Tensor) -> Tensor:
        """Float64 [n]; a class that is new gets its weight here."""
        if not self.balanced:
            return self.scale.new_ones(len(labels))
        n = torch.bincount(labels, minlength=self.n_outputs)
        self.scale = torch.where((self.scale == 0) & (n > 0), 1.0 / n.clamp(min=1).double(), self.scale)
        return self.scale[labels]

    def lifted(self, features: Tensor) -> Tensor:
        """h, [n, M], with the constant last where there is one."""
        rows = self.lift(features)
        return F.pad(rows, (0, 1), value=self.constant) if self.constant else rows

    def _stale(self) -> None:
        self._weights = self._strength = None

    @property
    def strength(self) -> Strength:
        """What is added to the diagonal of G, chosen when first asked for after an update."""
        if self._strength is None:
            self._solve()
        assert self._strength is not None
        return self._strength

    @property
    def weights(self) -> Tensor:
        """W, float64 [M, C], solved for when first asked for after an update."""
        if self._weights is None:
            self._solve()
        assert self._weights is not None
        return self._weights.to(self.counts.device)

    @torch.no_grad()
    def _solve(self) -> None:
        apart = self.rule == "holdout" and bool(self.held.n) and bool(self.fitted.n)
        sums: RidgeSums | HeldOut = HeldOut(self.fitted, self.held) if apart else self._everything()
        unit = sums.trace / max(int(self.fitted.n) + int(self.held.n), 1)
        if not unit > 0:  # all features are zero, and so is every score
            self._strength = Strength(1.0, 1.0, float("nan"), False)
            self._weights = (self.fitted.cross + self.held.cross).T.clone()
            return
        self._strength = self._chosen(sums, unit)
        self._weights = sums.weights(self._strength.value)
        if isinstance(self.rule, str) and self.rule != "task":
            self.last.fill_(self._strength.relative)

    def _everything(self) -> RidgeSums:
        return self.fitted.joined(self.held) if int(self.held.n) else self.fitted

    def _chosen(self, sums: RidgeSums | HeldOut, unit: float) -> Strength:
        if not isinstance(self.rule, str):
            return Strength(unit * self.rule, self.rule, float("nan"), False)
        floor = self._floor(sums)
        if self.rule == "task":
            relative = max(float(self.last), floor / unit)
            return Strength(unit * relative, relative, float("nan"), False)
        if isinstance(sums, HeldOut):
            return by_holdout(sums.curve, unit, float(self.last) or None, floor)
        values, energy = sums.spectrum()
        rule: Literal["gcv", "evidence"] = "evidence" if self.rule == "evidence" else "gcv"
        return by_spectrum(values, energy, float(sums.mass), int(sums.n), unit, rule, floor)

    def _floor(self, sums: RidgeSums | HeldOut) -> float:
        """Below this a strength drowns in the rounding of G: 4 eps times its largest eigenvalue."""
        rounded = (self.fitted.is_dense or self.held.is_dense) and self.fitted.width > EXACT_WIDTH
        eps = torch.finfo(torch.float32 if rounded else torch.float64).eps
        return 4 * eps * max(sums.largest(POWER_STEPS), 1e-300)

    def _scores(self, features: Tensor) -> Tensor:
        return self.lifted(features) @ self.weights.to(features)

    @in_full_precision
    def posterior_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`k(x, x') = h(x)^\top (G + \lambda I)^{-1} h(x')`, float64 [n, m].

        What is left of the kernel once all samples are learned: times the noise variance, the scores' covariance under
        the Gaussian process with this kernel. Small where features like x were seen often.

        Args:
            x: features [n, d]. y: features [m, d].
        """
        left, right = self.lifted(x).double(), self.lifted(y).double()
        return left @ self._everything().system(self.strength.value)(right.T, SETTLED)

    @in_full_precision
    def update_drift(self, old: Tensor, new: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        r"""The change of old scores by learning new samples at the present strength, exact, before anything is learned.

        .. math:: \Delta F(X_o) = k(X_o, X_n)\,[I + k(X_n, X_n)]^{-1}\,(Y_n - F(X_n))

        with the posterior kernel k. Its rank is at most the number of new samples and of classes.

        Args:
            old: features [n, d]. new: features [m, d]. labels: theirs [m]; new labels append columns.

        Returns:
            drift, float64 [n, C], and the eigenvalues of :math:`k(X_n, X_n)`, descending [m].
        """
        head = copy.deepcopy(self) if int(labels.max()) >= self.n_outputs or self.balanced else self
        strength = self.strength
        head.grow(max(self.n_outputs, int(labels.max()) + 1))
        head._strength, head._weights = strength, head._everything().weights(strength.value)
        root = head._sample_weights(labels).sqrt()[:, None]
        kernel = root * head.posterior_kernel(new, new) * root.T
        target = F.one_hot(labels, head.n_outputs).double()
        residual = root * (target - head.lifted(new).double() @ head.weights)
        values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
        inner = vectors @ ((vectors.T @ residual) / (1 + values.clamp(min=0))[:, None])
        return (head.posterior_kernel(old, new) * root.T) @ inner, values.flip(0)


def _stale(head: nn.Module, _: object) -> None:
    head._stale()  # type: ignore[operator]
