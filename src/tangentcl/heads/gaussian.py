"""Classes as Gaussians: one covariance for all of them (streaming LDA), or one for each (FeCAM)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from tangentcl.errors import ConfigError, DataError
from tangentcl.heads.head import AnalyticHead
from tangentcl.heads.sums import add_gram

BLOCK = 4096  # samples turned to float64 at once
COLUMNS = 192  # of a block of the moment
NO_SPREAD = 1e-12  # share of the second moment below which a variance is rounding: deviations of 1e-6 of the size


def oas_strength(covariance: Tensor, n: int) -> float:
    r"""Oracle approximating shrinkage: how much of :math:`\mathrm{tr}(\Sigma)/d \cdot I` to mix into a covariance,

    .. math:: \varepsilon = \min\Big(1, \frac{\mathrm{tr}(\Sigma^2)/d^2 + m^2}
        {(n + 1)\,(\mathrm{tr}(\Sigma^2)/d^2 - m^2/d)}\Big), \quad m = \mathrm{tr}(\Sigma)/d.

    Source: Chen, Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE TSP 2010,
    equation 23 without its terms of order 2/d, as in scikit-learn's ``oas``.

    Args:
        covariance: [d, d], of n samples, divided by n.

    >>> oas_strength(torch.diag(torch.tensor([3.0, 1.0])), 99)
    0.13
    >>> oas_strength(torch.eye(2), 99)
    1.0
    """
    size, mean = float(covariance.square().mean()), float(covariance.diagonal().mean())
    excess = (n + 1) * (size - mean**2 / len(covariance))
    return min(1.0, (size + mean**2) / excess) if excess > 0 else 1.0


def tukey_transform(features: Tensor, power: float) -> Tensor:
    """``sign(z) |z|^power`` for every number: towards a symmetric distribution for the outputs of a ReLU.

    >>> tukey_transform(torch.tensor([4.0, 0.0, -9.0]), 0.5)
    tensor([ 2.,  0., -3.])
    """
    return features if power == 1 else features.sign() * features.abs().pow(power)


def shrunk_correlation(scatter: Tensor, gamma1: float, gamma2: float) -> Tensor:
    r"""A covariance shrunk towards equal variances and equal covariances, then scaled to a diagonal of ones,

    .. math:: \Sigma' = \Sigma + \gamma_1 V_1 I + \gamma_2 V_2 (1 - I), \quad
        \hat\Sigma_{ij} = \Sigma'_{ij} / \sqrt{\Sigma'_{ii} \Sigma'_{jj}},

    with the mean V1 of the diagonal and V2 of all other entries. Any multiple of the covariance gives the same. A
    feature without variance gets a row of the identity.

    Args:
        scatter: [d, d].

    >>> shrunk_correlation(torch.tensor([[4.0, 1.0], [1.0, 0.0]]), gamma1=1.0, gamma2=1.0)
    tensor([[1.0000, 0.5774],
            [0.5774, 1.0000]])
    """
    d = len(scatter)
    diagonal = scatter.diagonal().clamp(min=0)
    v1 = diagonal.mean()
    v2 = (scatter.sum() - scatter.diagonal().sum()) / max(1, d * (d - 1))
    variance = diagonal + gamma1 * v1
    scale = torch.where(variance > 0, variance, math.inf).rsqrt()  # 0 without variance
    correlation = (scatter + gamma2 * v2) * scale[:, None] * scale
    return correlation.fill_diagonal_(1.0)


def whitening(matrix: Tensor, rounding: float) -> Tensor:
    """``W`` [d, d] with ``W W^T`` the inverse of a matrix, or its pseudo-inverse where it has no full rank.

    Args:
        matrix: symmetric [d, d], float64, of unit diagonal. rounding: of its entries; eigenvalues below d times this
            share of the largest count as zero.

    >>> W = whitening(torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double(), 1e-16)
    >>> W @ W.T
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]], dtype=torch.float64)
    """
    d = len(matrix)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed) and float(factor.diagonal().min()) ** 2 > d * rounding:
        eye = torch.eye(d, dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(factor, eye, upper=False).T
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > d * rounding * values[-1]
    return vectors * torch.where(kept, values, math.inf).rsqrt()


def _drop_cache(module: nn.Module, _: Any) -> None:
    """After a state dict was loaded. Not a method: a hook bound to a head would stay bound to it in its copies."""
    assert isinstance(module, (SharedGaussian, FeCAM))
    module._drop()


class SharedGaussian(AnalyticHead):
    r"""Linear discriminant analysis that learns from a stream: class means and one covariance for all classes,

    .. math:: f_c(z) = z \cdot \Lambda\mu_c - \tfrac12 \mu_c^\top \Lambda \mu_c \;(+ \log(n_c/n)), \quad
        \Lambda^{-1} = (1-\varepsilon)\,\Sigma + \varepsilon\,\mathrm{tr}(\Sigma)/d \cdot I, \quad
        n\Sigma = \sum_i z_i z_i^\top - \sum_c s_c s_c^\top / n_c.

    Kept are the sums :math:`s_c` and :math:`\sum z z^\top`, float64, so the order of samples does not matter, and
    merging and forgetting add and subtract. A covariance without spread (one sample per class, constant features) is
    replaced by the identity: the nearest mean decides. Deviations below a millionth of the features' size are lost in
    the subtraction and count as none.

    Source: Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR-W 2020
    (SLDA). Departures:

    - The covariance is the pooled within-class covariance, exactly. The paper's recursion weighs a deviation by the
      count of all samples and not of its class, and the first sample of a class deviates from a mean of zero, so that
      its result depends on the order.
    - The identity is mixed in as ``tr(Sigma)/d I`` and not as ``I``: scaling all features changes no decision.

    Args:
        width: of a feature, d.
        shrinkage: epsilon in (0, 1], or "oas" for `oas_strength` of what was seen so far.
        prior: add the logarithm of a class's share of the samples.

    Shapes: features [n, d], labels int64 [n], scores float64 [n, C]: float32 would round them more coarsely than
    classes differ where means are large.

    >>> z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    >>> head = SharedGaussian(2, shrinkage=1.0).fit_task(z, torch.tensor([0, 0, 1, 1]))
    >>> head(torch.tensor([[1.0, 1.0]]))
    tensor([[ 1.0000, -7.0000]], dtype=torch.float64)
    """

    sums: Tensor
    moment: Tensor

    def __init__(self, width: int, *, shrinkage: float | str = 1e-4, prior: bool = False) -> None:
        super().__init__(width)
        if shrinkage != "oas" and (isinstance(shrinkage, str) or not 0 < shrinkage <= 1):
            raise ConfigError(f"shrinkage has to be 'oas' or a number in (0, 1], got {shrinkage!r}.")
        self.shrinkage = shrinkage
        self.prior = prior
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(width, width, dtype=torch.float64))
        self._linear: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_drop_cache)

    @property
    def means(self) -> Tensor:
        """Of the classes, float64 [C, d]; zero for a class without samples."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @property
    def covariance(self) -> Tensor:
        """Pooled within-class covariance before shrinkage, float64 [d, d]: the scatter divided by the samples."""
        scatter = self.moment - self.means.T @ self.sums
        return (scatter + scatter.T) / (2 * self.counts.sum().clamp(min=1))

    def settings(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage, "prior": self.prior}

    def _append(self, n_new: int) -> None:
        self.sums = torch.cat([self.sums, self.sums.new_zeros(n_new, self.width)])
        self._drop()

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        for z, y in zip(features.split(BLOCK), labels.split(BLOCK)):
            z = z.to(self.sums)
            self.sums.index_add_(0, y, z, alpha=sign)
            add_gram(self.moment, z, sign, COLUMNS)
        self.sums[self.counts == 0] = 0  # what rounding leaves of a class that is gone
        if not int(self.counts.sum()):
            self.moment.zero_()
        self._drop()

    def _take_in(self, other: Self) -> None:
        self.sums += other.sums.to(self.sums)
        self.moment += other.moment.to(self.moment)
        self._drop()

    def _scores(self, features: Tensor) -> Tensor:
        if self._linear is None:
            self._linear = self._solve()
        weight, bias = self._linear
        return F.linear(features.to(weight), weight, bias)

    def _solve(self) -> tuple[Tensor, Tensor]:
        """Weights [C, d] and biases [C]."""
        means, covariance, n = self.means, self.covariance, int(self.counts.sum())
        spread = covariance.diagonal().mean()
        eye = torch.eye(self.width, dtype=means.dtype, device=means.device)
        if abs(float(spread)) * n <= NO_SPREAD * abs(float(self.moment.diagonal().mean())):
            weight = means
        else:
            eps = oas_strength(covariance, n) if isinstance(self.shrinkage, str) else self.shrinkage
            factor, failed = torch.linalg.cholesky_ex((1 - eps) * covariance + eps * spread * eye)
            if int(failed):
                raise DataError(
                    f"the covariance of {n} samples is not positive definite with shrinkage {eps:.1e}: either samples "
                    "were forgotten that had never been learned, or features are far larger than they vary. Try a "
                    "larger shrinkage, or centre the features."
                )
            weight = torch.cholesky_solve(means.T, factor).T
        bias = -(means * weight).sum(1) / 2
        return weight, bias + (self.counts / max(1, n)).to(bias).log() if self.prior else bias

    def _drop(self) -> None:
        self._linear = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._drop()
        return super()._apply(fn, recurse)


class FeCAM(AnalyticHead):
    r"""Mahalanobis distance to class means, with a covariance for every class: classes differ in shape, too,

    .. math:: f_c(z) = -(\bar t(z) - \bar t(\mu_c))^\top \hat\Sigma_c^{+} (\bar t(z) - \bar t(\mu_c)),

    with Tukey's transform :math:`t` (`tukey_transform`), :math:`\bar t = t/\|t\|`, and the covariance
    :math:`\hat\Sigma_c` of the transformed features, shrunk and scaled to a correlation (`shrunk_correlation`). The
    mean is that of the features as they came, transformed afterwards. A class without spread, of one sample for
    instance, has the identity for a covariance.

    Kept for each class are the sums of z and of t(z), float64, and the centred scatter of t(z), float32:
    ``4 C d^2`` bytes (236 MB for 100 classes of width 768), and as much for the factors once scores were asked for.
    The scatter follows the pairwise update of Chan, Golub and LeVeque (1979), where no large numbers cancel: order,
    merging and forgetting matter to its rounding only. ``FeCAM(width).double()`` keeps it in float64.

    Source: Goswami et al., "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual
    Learning", NeurIPS 2023. Departures from the paper or its released code:

    - Negative features keep their sign in Tukey's transform, whose power of a negative number does not exist.
    - The covariance counts from the first task on; the code compares to the trained classifier there.
    - The code shrinks twice. That is once with ``(1 + gamma)^2 - 1``, i.e. 3 for 1. It averages V2 over entries other
      than zero; here over all.
    - ``shared`` pools the covariance within classes, so that the order of tasks does not matter. The code averages
      covariances of tasks, which contain the differences between their class means.
    - The code normalises the outputs of a transformer before anything else, and uses ``tukey=1, gamma2=0`` there.
      Normalise them outside for the same.

    Args:
        width: of a feature, d.
        tukey: power of the transform, in (0, 1]; 1 leaves features as they are.
        gamma1: shrinkage of the variances. gamma2: of the covariances. Not negative; with gamma2 above gamma1 the
            matrix may have negative eigenvalues, which are left out like those that are zero.
        shared: one covariance for all classes, float64.

    Shapes: features [n, d], labels int64 [n], scores [n, C].

    >>> z = torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> FeCAM(2).fit_task(z, torch.tensor([0, 0, 1]))(torch.tensor([[9.0, 0.0]]))
    tensor([[-0., -2.]])
    """

    sums: Tensor
    transformed: Tensor
    scatter: Tensor

    def __init__(
        self, width: int, *, tukey: float = 0.5, gamma1: float = 1.0, gamma2: float = 1.0, shared: bool = False
    ) -> None:
        super().__init__(width)
        if not 0 < tukey <= 1:
            raise ConfigError(f"the power of Tukey's transform has to be in (0, 1], got {tukey}. Try 1 for none.")
        for name, gamma in (("gamma1", gamma1), ("gamma2", gamma2)):
            if not 0 <= gamma < math.inf:
                raise ConfigError(f"{name} has to be a finite number from 0, got {gamma}.")
        self.tukey = tukey
        self.gamma1 = gamma1
        self.gamma2 = gamma2
        self.shared = shared
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("transformed", torch.zeros(0, width, dtype=torch.float64))
        scatter = torch.zeros(1, width, width, dtype=torch.float64) if shared else torch.zeros(0, width, width)
        self.register_buffer("scatter", scatter)
        self._factors: dict[int, Tensor] = {}  # by place in the scatter; a missing one is stale
        self.register_load_state_dict_post_hook(_drop_cache)

    @property
    def means(self) -> Tensor:
        """Of the features as they came, float64 [C, d]; zero for a class without samples."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def settings(self) -> dict[str, Any]:
        return {"tukey": self.tukey, "gamma1": self.gamma1, "gamma2": self.gamma2, "shared": self.shared}

    def _append(self, n_new: int) -> None:
        self.sums = torch.cat([self.sums, self.sums.new_zeros(n_new, self.width)])
        self.transformed = torch.cat([self.transformed, self.transformed.new_zeros(n_new, self.width)])
        if not self.shared:
            self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(n_new, self.width, self.width)])

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        for label in labels.unique().tolist():
            z = features[labels == label].to(self.sums)  # [m, d]
            t = tukey_transform(z, self.tukey)
            total = t.sum(0)
            centred = t - total / len(t)
            n, without = int(self.counts[label]), self.transformed[label]
            if sign < 0:
                n, without = n + len(t), without - total
            self._add(label, centred.T @ centred, _gap(without, n - len(t), total, len(t)), sign)
            self.sums[label] += sign * z.sum(0)
            self.transformed[label] += sign * total
        self._clean()

    def _take_in(self, other: Self) -> None:
        totals, counts = other.transformed.to(self.transformed), other.counts.tolist()
        if self.shared:
            self._add(0, other.scatter[0].to(self.scatter), torch.zeros_like(self.scatter[0, 0]), 1)
        for label, m in enumerate(counts):
            if not m:
                continue
            scatter = torch.zeros_like(self.scatter[0]) if self.shared else other.scatter[label].to(self.scatter)
            gap = _gap(self.transformed[label], int(self.counts[label]) - m, totals[label], m)
            self._add(label, scatter, gap, 1)
        self.sums += other.sums.to(self.sums)
        self.transformed += totals
        self._clean()

    def _add(self, label: int, scatter: Tensor, gap: Tensor, sign: int) -> None:
        """Scatter of samples around their own mean, and of that mean and the mean of all others around both's."""
        place = 0 if self.shared else label
        gain = scatter.double() + gap[:, None] * gap
        self.scatter[place] = (self.scatter[place].double() + sign * gain).to(self.scatter)
        self._factors.pop(place, None)

    def _clean(self) -> None:
        """What rounding leaves of classes that are gone, and of the scatter of a single sample."""
        gone = self.counts == 0
        self.sums[gone] = 0
        self.transformed[gone] = 0
        if not self.shared:
            self.scatter[self.counts <= 1] = 0
        elif bool((self.counts <= 1).all()):
            self.scatter.zero_()

    def _factor(self, place: int) -> Tensor:
        """`whitening` of a class's covariance, [d, d]."""
        if place not in self._factors:
            scatter = self.scatter[place].double()
            own = slice(None) if self.shared else slice(place, place + 1)
            size = (self.transformed[own].square().mean(1) / self.counts[own].clamp(min=1)).sum()  # of n_c means t t^T
            if float(scatter.diagonal().mean()) <= NO_SPREAD * float(size):
                factor = torch.eye(self.width, dtype=scatter.dtype, device=scatter.device)
            else:
                correlation = shrunk_correlation(scatter, self.gamma1, self.gamma2)
                factor = whitening(correlation, torch.finfo(self.scatter.dtype).eps)
            self._factors[place] = factor.to(self.scatter)
        return self._factors[place]

    def _scores(self, features: Tensor) -> Tensor:
        x = F.normalize(tukey_transform(features.to(self.sums.device), self.tukey), dim=1)
        means = F.normalize(tukey_transform(self.means, self.tukey), dim=1).to(x)  # [C, d]
        if self.shared:
            factor = self._factor(0).to(x)
            mode = "donot_use_mm_for_euclid_dist"  # the other one squares and subtracts
            return -torch.cdist(x @ factor, means @ factor, compute_mode=mode).square()
        scores = x.new_zeros(len(x), self.n_outputs)
        for label in self.counts.nonzero().flatten().tolist():  # one class at a time: [n, d] beside the scores
            scores[:, label] = -((x - means[label]) @ self._factor(label).to(x)).square().sum(1)
        return scores

    def _drop(self) -> None:
        self._factors = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._drop()
        return super()._apply(fn, recurse)


def _gap(total_a: Tensor, n_a: int, total_b: Tensor, n_b: int) -> Tensor:
    """``g`` [d] with ``g g^T`` the scatter between the means of two groups, from their sums; zero for an empty one."""
    if not n_a or not n_b:
        return torch.zeros_like(total_a)
    return math.sqrt(n_a * n_b / (n_a + n_b)) * (total_a / n_a - total_b / n_b)
