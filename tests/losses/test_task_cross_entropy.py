"""Cross-entropy over the classes of a task is that over all with the others at minus infinity."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tangentcl.losses import task_cross_entropy


def test_other_classes_count_as_minus_infinity_and_get_no_gradient() -> None:
    torch.manual_seed(0)
    logits, y, classes = torch.randn(6, 5, requires_grad=True), torch.tensor([4, 1, 3, 1, 4, 3]), (4, 1, 3)
    masked = logits.detach().clone()
    masked[:, [0, 2]] = -torch.inf
    found = task_cross_entropy(logits, y, classes)
    torch.testing.assert_close(found, F.cross_entropy(masked, y))
    found.backward()
    assert logits.grad is not None
    assert not logits.grad[:, [0, 2]].any()
    assert bool(logits.grad[:, [1, 3, 4]].all())
    torch.testing.assert_close(task_cross_entropy(logits, y), F.cross_entropy(logits, y))
    assert task_cross_entropy(logits.bfloat16(), y, classes).dtype == torch.float32
