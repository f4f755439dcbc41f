"""InfLoRA: the input side of each task's LoRA is fixed beforehand to directions that old inputs do not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError
from tangentcl.methods.lora_per_task import LoRAPerTask
from tangentcl.nn import Backbone
from tangentcl.nn.layer_inputs import input_moments
from tangentcl.nn.lora_stack import LoRAStack
from tangentcl.theory import main_directions

ROW_LENGTH = 3**-0.5  # of A, about that of LoRA's own random rows
NEGLIGIBLE = 1e-10  # share of the inputs' energy below which a direction is rounding


class InfLoRA(LoRAPerTask[LoRAStack]):
    r"""LoRA that moves no old output beyond what a small share of the old inputs' energy lets through.

    With the inputs h of a layer, :math:`C_t = \sum h h^\top` over the samples of task t, and P the projector on the
    space kept of old inputs (zero before the first task),

    .. math:: W + \sum_{i \le t} B_i A_i, \qquad A_t = \text{first } r \text{ eigenvectors of } (I - P)\, C_t\, (I - P),

    only :math:`B_t` trains. Gradients of W lie in the span of the inputs, so :math:`A_t` spans most of what the new
    task would change and nothing that the old ones use: :math:`A_t h = 0` for h in the range of P. After the task P
    gains the fewest eigenvectors of :math:`(I - P) C (I - P)`, of inputs to the trained layers, with which it holds
    the share

    .. math:: \epsilon_t = \epsilon + (1 - \epsilon)\, t / T

    of the trace of C. Both passes over the samples are in evaluation mode, without padding.

    Source: Liang and Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning", CVPR 2024; the old
    space follows DualGPM of Liang and Li, "Adaptive Plasticity Improvement for Continual Learning", CVPR 2023.

    Args:
        backbone: a frozen feature extractor; it is adapted in place.
        rank, targets: of the LoRA pair of each task, see `tangentcl.nn.add_lora`.
        energy: :math:`\epsilon` in (0, 1]; the paper takes 0.95 to 0.98. 1 keeps every direction of the old inputs.
        logits: see `Finetune`.

    Departures: DualGPM holds a basis of the old space or of its complement, whichever is smaller; here it is the
    projector ``[d, d]``, which is either and has one shape from the start. Directions with less than 1e-10 of the
    inputs' energy are not taken, so rows of A are zero where the new inputs leave the old space in fewer than r
    directions. Like the paper and unlike the released code, energies are of inputs; the code takes singular values of
    C, whose squares are of fourth order, keeps one direction less, and decomposes (I - P) C. The rows' length
    :math:`1/\sqrt 3` is from the code.

    Note:
        When old inputs fill the whole space (many tasks, small d, energy near 1), A is zero and only the head learns.

    Raises:
        ConfigError: an energy outside (0, 1], a rank below 1, or unknown logits.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int = 10,
        targets: Sequence[str] = ("key", "value"),
        energy: float = 0.95,
        logits: Literal["all", "current"] = "current",
    ) -> None:
        if not 0 < energy <= 1:
            raise ConfigError(f"energy is the share of old inputs that is protected, in (0, 1], got {energy}")
        super().__init__(backbone, LoRAStack, rank=rank, targets=targets, logits=logits)
        self.energy = energy
        self.old_spaces = nn.ModuleList(OldSpace(stack.base_layer.in_features) for stack in self.stacks.values())
        self.old_spaces.to(backbone.device)

    def begin_task(self, task: Task) -> None:
        """Merge the last pair and start one whose A is zero until the task's inputs are seen."""
        super().begin_task(task)
        for stack in self.stacks.values():
            stack.pair[0].weight.requires_grad_(False).zero_()

    def training_samples(self, task: Task) -> Samples:
        """The task's samples, after A was chosen by them; it stays as it is once B has moved."""
        pairs = [stack.pair for stack in self.stacks.values()]
        if not any(bool(b.weight.any()) for _, b in pairs):
            for (a, _), space, moment in zip(pairs, self._spaces(), self._moments(task), strict=True):
                a.weight.data.copy_(ROW_LENGTH * space.unused(moment, self.rank))
        return task.train

    def end_task(self, task: Task) -> None:
        """Add what the trained layers saw of this task to the old space."""
        share = self.energy + (1 - self.energy) * task.index / task.n_tasks
        for space, moment in zip(self._spaces(), self._moments(task), strict=True):
            space.extend(moment, share)

    def _moments(self, task: Task) -> list[Tensor]:
        return list(input_moments(self.learner.backbone, self.stacks, task.train_eval).values())

    def _spaces(self) -> list[OldSpace]:
        return [space for space in self.old_spaces if isinstance(space, OldSpace)]


class OldSpace(nn.Module):
    """The directions that inputs of a layer had so far, as an orthogonal projector.

    Args:
        width: d, of the inputs.

    Attributes:
        projector: P, ``[d, d]``, float32.

    >>> space = OldSpace(3)
    >>> space.extend(torch.diag(torch.tensor([4.0, 1.0, 0.0])), share=0.7)
    >>> space.projector.diagonal().tolist()
    [1.0, 0.0, 0.0]
    >>> space.unused(torch.ones(3, 3), rank=2).abs()
    tensor([[0.0000, 0.7071, 0.7071],
            [0.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """

    projector: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("projector", torch.zeros(width, width))

    def unused(self, moment: Tensor, rank: int) -> Tensor:
        """Main directions of a second moment outside the space, orthonormal rows float64 [rank, d]; zero if fewer."""
        rows = torch.zeros(rank, len(moment), dtype=torch.float64)
        found = self._outside(moment, 1.0, rank)
        rows[: len(found)] = found
        return rows

    def extend(self, moment: Tensor, share: float) -> None:
        """Add the fewest directions with which the space holds ``share`` of the trace of a second moment [d, d]."""
        moment = moment.double()
        total, inside = float(moment.trace()), float((self._projector() * moment).sum())
        missing = share * total - inside
        left = total - inside
        if missing <= 0 or left <= NEGLIGIBLE * total:
            return
        found = self._outside(moment, min(missing / left, 1.0), None)
        self.projector.copy_(self._projector() + found.T @ found)

    def _outside(self, moment: Tensor, share: float, most: int | None) -> Tensor:
        """Orthonormal rows [k, d] with that share of what is left of a second moment outside the space."""
        moment = moment.double()
        off = torch.eye(len(moment), dtype=torch.float64) - self._projector()
        left = off @ moment @ off
        found = main_directions((left + left.T) / 2, energy=share, most=most).T
        energies = ((found @ left) * found).sum(dim=1)
        rows = found[energies > NEGLIGIBLE * float(moment.trace())]
        rows = torch.linalg.qr((rows @ off).T).Q.T  # what the projector's rounding mixed into weak directions goes out
        # The largest entry is positive: what a library gives for the sign is chance.
        return rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()

    def _projector(self) -> Tensor:
        return self.projector.detach().to("cpu", torch.float64)
