"""A model as a deterministic function of batch and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tangentcl.errors import ModelError, nearest
from tangentcl.kernels.batch import n_samples, samples, tensors, with_tensors

Outputs = Callable[[nn.Module, Any], Tensor]
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention written out. The fused kernels have neither forward-mode derivatives nor rules for `torch.vmap`."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Call(nn.Module):
    """A module whose forward is the output function, so that its parameters can be replaced in a call."""

    def __init__(self, model: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, x: Any) -> Tensor:
        return self.outputs(self.model, x)


def _of_model(model: nn.Module, x: Any) -> Tensor:
    return model(x)


class Network:
    """The map from a batch to outputs [n, C], and the parameters that are thought to move.

    Args:
        model: any module; it is never changed.
        outputs: ``outputs(model, batch) -> [n, ...]``, flattened per sample; None calls ``model(batch)``.
        parameters: names in ``model.named_parameters()``; None takes those that require grad; () moves nothing.

    Raises:
        ModelError: a name without a parameter, or nothing that moves.
    """

    def __init__(
        self, model: nn.Module, outputs: Outputs | None = None, parameters: Sequence[str] | None = None
    ) -> None:
        known = dict(model.named_parameters())
        names = [name for name, p in known.items() if p.requires_grad] if parameters is None else list(parameters)
        for name in names:
            if name not in known:
                raise ModelError(f"{type(model).__name__} has no parameter '{name}'.{nearest(name, known)}")
        if parameters is None and not names:
            raise ModelError(f"nothing of {type(model).__name__} trains: no parameter requires grad. Name some.")
        self.model = model
        self.parameters = {name: known[name] for name in names}
        self.n_parameters = sum(p.numel() for p in self.parameters.values())
        self._call = _Call(model, outputs or _of_model)

    @property
    def values(self) -> dict[str, Tensor]:
        """Detached parameters, for `at`."""
        return {name: p.detach() for name, p in self.parameters.items()}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, gradients for the chosen parameters alone, attention written out; all restored after."""
        modes = [(module, module.training) for module in self.model.modules()]
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        chosen = {id(p) for p in self.parameters.values()}
        try:
            self.model.eval()
            for p, _ in flags:
                p.requires_grad_(id(p) in chosen)
            with torch.enable_grad(), plain_attention():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for p, flag in flags:
                p.requires_grad_(flag)

    def __call__(self, x: Any) -> Tensor:
        """Outputs [n, C], finite."""
        return self._checked(self._call(x), n_samples(x))

    @property
    def drops_in_training(self) -> bool:
        """Whether the model runs dropout in training mode, as its own ``train()`` switches it on."""
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            self.model.train()
            return any(isinstance(m, DROPOUTS) and m.p > 0 and m.training for m in self.model.modules())
        finally:
            for module, mode in modes:
                module.training = mode

    @property
    def output_function(self) -> Outputs:
        """``outputs(model, batch)``, as given."""
        return self._call.outputs

    def call(self, x: Any) -> Tensor:
        """What the output function gives, unchecked; under `at` with the replaced parameters."""
        return self._call.outputs(self._call.model, x)

    def at(self, values: dict[str, Tensor], x: Any) -> Tensor:
        """Outputs [n, C] with other values of the parameters, in their dtype; for torch.func transforms."""
        replaced = {f"model.{name}": value.to(self.parameters[name].dtype) for name, value in values.items()}
        return torch.func.functional_call(self._call, replaced, (x,)).flatten(1)

    def _checked(self, f: Any, n: int) -> Tensor:
        if not isinstance(f, Tensor) or f.ndim < 2 or len(f) != n:
            what = list(f.shape) if isinstance(f, Tensor) else type(f).__name__
            raise ModelError(
                f"expected outputs [{n}, C] (or [{n}, tokens, C]), got {what}. Pass outputs=, e.g. "
                "outputs=lambda model, batch: model(**batch).logits"
            )
        f = f.flatten(1)
        if not f.shape[1]:
            raise ModelError(
                f"{type(self.model).__name__} has no outputs: its head has to be grown to the classes first"
            )
        finite = f.detach().isfinite().all(dim=1)
        if not bool(finite.all()):
            raise ModelError(f"the outputs of {int((~finite).sum())} of {n} samples are not finite")
        return f

    @torch.no_grad()
    def check(self, x: Any) -> Tensor:
        """Outputs of a few samples, or a refusal of a model that is not a function of each sample alone.

        Raises:
            ModelError: outputs that differ between two calls, or that depend on the rest of the batch.
        """
        few = samples(x, 0, 2)
        first = self(few)
        twice = self(with_tensors(few, [t[:1].repeat_interleave(len(t), dim=0) for t in tensors(few)]))
        scale, eps = float(first.abs().max()), torch.finfo(first.dtype).eps
        off = float((first[0] - twice).abs().max())  # of the first sample, beside another one and beside itself
        if off > 16 * eps * scale and float((first - self(few)).abs().max()) > 16 * eps * scale:
            raise ModelError(
                f"{type(self.model).__name__} is not deterministic: outputs differ between two calls with the same "
                f"batch in evaluation mode. Likely: {self._suspects()}. Switch it off."
            )
        if off > eps**0.5 * scale:
            raise ModelError(
                f"outputs of {type(self.model).__name__} for a sample depend on the other samples of the batch. "
                f"Likely: {self._suspects()}. Give batch norms running statistics, or replace them."
            )
        return first

    def _suspects(self) -> str:
        found = []
        for name, module in self.model.named_modules():
            statistics = isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None)
            if statistics or (isinstance(module, DROPOUTS) and module.training):
                found.append(f"'{name}' ({type(module).__name__})")
        return ", ".join(found) or "a random function inside forward"
