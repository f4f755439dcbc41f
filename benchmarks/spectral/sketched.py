"""A linear head held by the sketch of one second moment, of any kind: what the choice of the sketch is worth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentcl.data import Task
from tangentcl.linalg import Sketch, with_constant
from tangentcl.methods import Finetune, Method
from tangentcl.nn import Backbone, extract_features


class Sketched(Method):
    r"""Cross-entropy and :math:`\frac{\lambda t}{2 n} (\|S \Delta\|_F^2 + \sum_i r_i \|\Delta_i\|^2)` after t tasks.

    The sketch stands for the second moment of n old features, a constant last, and :math:`\Delta` is what the head has
    moved since the task began. `tangentcl.methods.Spectral` is this with low rank plus diagonal.

    Args:
        sketch: empty, of width d + 1.
        strength: lambda. new_bias: of the rows of new classes.
    """

    def __init__(self, backbone: Backbone, sketch: Sketch, *, strength: float, new_bias: float) -> None:
        super().__init__()
        self.learner = Finetune(backbone, tune="head", new_bias=new_bias)
        self.sketch, self.strength, self.n_old = sketch, strength, 0

    def begin_task(self, task: Task) -> None:
        self.learner.begin_task(task)
        self.start = self._head().detach().clone()  # [C, d + 1]
        rows, diagonal = self.sketch.factors()
        n = max(self.sketch.n, 1)
        self.rows, self.diagonal = (rows / n**0.5).float(), (diagonal / n).float()

    def training_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        terms = self.learner.training_loss(x, y)
        moved = self._head() - self.start
        energy = (moved @ self.rows.T).square().sum() + (moved.square() @ self.diagonal).sum()
        return {**terms, "drift": 0.5 * self.strength * self.n_old * energy}

    def end_task(self, task: Task) -> None:
        self.sketch.update(with_constant(extract_features(self.learner.backbone, task.train_eval)[0], 1.0))
        self.n_old += 1

    def predict(self, x: Tensor) -> Tensor:
        return self.learner.predict(x)

    def _head(self) -> Tensor:
        head = self.learner.head
        assert head.bias is not None
        return torch.cat([head.weight, head.bias[:, None]], dim=1)


class ClosedForm(Method):
    r"""Squared error on one-hot targets and the sketch of what came before, solved: no gradient step.

    .. math:: W \leftarrow W + (\Phi^\top\Phi + S^\top S + \mathrm{diag}(r) + \mu I)^{-1} \Phi^\top (Y - \Phi W)

    With the exact second moment it is the ridge solution on all samples seen, whatever the number of tasks.

    Args:
        sketch: empty, of width d + 1.
        strength: mu.
    """

    def __init__(self, backbone: Backbone, sketch: Sketch, *, strength: float) -> None:
        super().__init__()
        self.backbone, self.sketch, self.strength = backbone, sketch, strength
        self.weight = torch.zeros(backbone.width + 1, 0, dtype=torch.float64)

    def begin_task(self, task: Task) -> None:
        self.weight = F.pad(self.weight, (0, task.n_seen - self.weight.shape[1]))

    def training_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {}

    def end_task(self, task: Task) -> None:
        from tangentcl.forecast import ProtectedRidge
        from tangentcl.forecast.problem import linear_problem

        features, labels = extract_features(self.backbone, task.train_eval)
        weight, bias = self.weight[:-1].T, self.weight[-1]
        problem = linear_problem(features.double(), weight, bias, labels)
        ridge = ProtectedRidge(moment=self.sketch.matrix(), strength=self.strength)
        self.weight = self.weight + ridge.learn(problem)[0]
        self.sketch.update(with_constant(features, 1.0))

    def predict(self, x: Tensor) -> Tensor:
        return (self.backbone(x).double() @ self.weight[:-1] + self.weight[-1]).float()
