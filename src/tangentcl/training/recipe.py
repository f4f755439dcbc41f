"""A training plan as the recipe of a forecast: what the library's own loop is going to do, step by step."""

from __future__ import annotations

from tangentcl.forecast import SGD, AdamW, Dynamics, batch_order
from tangentcl.training.order import BatchOrder
from tangentcl.training.plan import TrainingPlan


def recipe(plan: TrainingPlan, n: int, task: int) -> Dynamics:
    """The steps that `TaskFit` takes with ``plan``: learning rate and samples of each are known beforehand.

    What no recipe describes (clipped gradients, mixed precision) is left out; `recipe_notes` says so. The loss is
    cross-entropy.

    Args:
        plan: of the training.
        n: number of samples trained on.
        task: index of the task, on which their order depends.

    >>> plan = TrainingPlan(epochs=2, batch_size=2, optimizer="sgd", lr=0.1, schedule="step", gamma=0.5)
    >>> found = recipe(plan, 3, task=1)
    >>> [sorted(batch) for batch in (found.batches[0] + found.batches[1], found.batches[2] + found.batches[3])]
    [[0, 1, 2], [0, 1, 2]]
    >>> found.lr, found.momentum
    ((0.1, 0.1, 0.05, 0.025), 0.9)
    """
    order = BatchOrder(n, batch_size=plan.batch_size, accumulate=plan.accumulate, seed=plan.seed, task=task)
    batches = batch_order(order.permutation, order.window, epochs=plan.epochs, steps_per_epoch=order.steps_per_epoch)
    factors = [plan.factor(step, len(batches)) for step in range(len(batches))]
    lr = tuple(plan.lr * factor for factor in factors)
    head_lr = None if plan.head_lr is None else tuple(plan.head_lr * factor for factor in factors)
    if plan.optimizer == "adamw":
        return AdamW(lr=lr, head_lr=head_lr, batches=batches, betas=plan.betas, weight_decay=plan.weight_decay)
    return SGD(
        lr=lr,
        head_lr=head_lr,
        batches=batches,
        momentum=plan.momentum,
        nesterov=plan.nesterov and plan.momentum > 0,
        weight_decay=plan.weight_decay,
    )


def recipe_notes(plan: TrainingPlan) -> tuple[str, ...]:
    """What the recipe of a plan leaves out, one sentence each; none where it is complete.

    >>> recipe_notes(TrainingPlan(clip_norm=1.0))
    ('gradients longer than 1 are clipped in training, in the forecast none is',)
    """
    notes = []
    if plan.clip_norm is not None:
        notes.append(f"gradients longer than {plan.clip_norm:g} are clipped in training, in the forecast none is")
    if plan.precision != "fp32":
        notes.append(f"training computes in {plan.precision}, the forecast in float32")
    return tuple(notes)
