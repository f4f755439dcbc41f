"""Adapters of the peft library on any backbone: LoRA by role, everything else by its own config."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangentcl.errors import ModelError, nearest
from tangentcl.nn.backbone import Backbone
from tangentcl.nn.roles import ROLES, linear_layers, linear_roles
from tangentcl.nn.weights import trainable_parameters

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.nn import Linear

__all__ = ["Adapted", "add_lora", "add_peft", "linear_roles", "newest_pair", "stack_lora"]


@dataclass(frozen=True)
class Adapted:
    """What an adapter changed: names of the adapted layers inside the original model, trainable parameters it added."""

    layers: tuple[str, ...]
    n_parameters: int

    def __str__(self) -> str:
        return f"{len(self.layers)} layers adapted with {self.n_parameters:,} trainable parameters"


def add_lora(
    backbone: Backbone,
    rank: int = 8,
    *,
    alpha: float | None = None,
    targets: Sequence[str] = ("query", "value"),
    dropout: float = 0.0,
) -> Adapted:
    """Low-rank adapters ``W + (alpha / rank) B A`` on some linear layers; nothing else of the backbone trains.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. ``B`` starts at zero, so the
    features do not change; ``A`` is drawn from the global torch generator. ``backbone.model`` becomes a peft model,
    so ``backbone.model.save_pretrained(folder)`` writes a standard adapter.

    Args:
        backbone: changed in place.
        rank: of the product B A.
        alpha: numerator of the scale; None takes ``rank``, a scale of 1.
        targets: roles ("query", "key", "value", "output", "qkv", "fc1", "fc2", see :func:`linear_roles`) or names of
            linear layers, whole or the last parts. Where one layer makes query, key and value together, each of these
            roles means that layer.
        dropout: on the adapter's input, in training mode.

    Returns:
        which layers were adapted, and the number of trainable parameters.

    Raises:
        ModelError: a target without a layer, a rank below 1, or a backbone that already has adapters.

    >>> import torch
    >>> from tangentcl.nn.backbone import from_module
    >>> from tangentcl.nn.vit import SmallViT
    >>> vit = SmallViT(width=24, depth=2, heads=3)
    >>> toy = from_module(vit, lambda m, x: m(x)[:, 0], 24, name="v", modality="image", sample=torch.ones(1, 3, 32, 32))
    >>> print(add_lora(toy, rank=4))
    4 layers adapted with 768 trainable parameters
    """
    if rank < 1:
        raise ModelError(f"rank has to be at least 1, not {rank}.")
    _refuse_adapted(backbone)
    from peft import LoraConfig

    layers = _resolve(backbone, targets)
    scale: Any = rank if alpha is None else alpha  # annotated as a whole number in peft, and used as a factor
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=layers, lora_dropout=dropout)
    return add_peft(backbone, config)


def stack_lora(backbone: Backbone) -> Adapted:
    r"""Another pair of low-rank factors beside those of `add_lora`, which stay as they are and train no more.

    A layer then computes :math:`W + s \sum_t B_t A_t`; the new B is zero, so the features do not change. Dropout on the
    inputs of the earlier pairs is off from now on: they are part of the frozen model. Cost and memory grow by one pair
    per layer and call.

    Returns:
        the adapted layers, and the number of parameters of the new pairs.

    Raises:
        ModelError: a backbone that `add_lora` was not called on.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from torch import nn

    model: Any = backbone.model
    configs = dict(getattr(model, "peft_config", {}))
    if not configs or not all(isinstance(config, LoraConfig) for config in configs.values()):
        raise ModelError(f"{backbone.card.name} has no LoRA to put another pair beside. Call add_lora first.")
    name = f"pair_{len(configs)}"
    model.add_adapter(name, copy.deepcopy(next(iter(configs.values()))))
    model.base_model.set_adapter([*configs, name])
    layers = {key: m for key, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    for layer in layers.values():
        for earlier in configs:
            layer.lora_A[earlier].requires_grad_(False)
            layer.lora_B[earlier].requires_grad_(False)
            layer.lora_dropout[earlier] = nn.Identity()
    model.to(backbone.device)
    backbone.train(backbone.training)
    return Adapted(tuple(layers), trainable_parameters(backbone))


def newest_pair(layer: Any) -> tuple[Linear, Linear] | None:
    """A [r, d_in] and B [d_out, r] of the pair that trains in a layer with LoRA; None for any other layer."""
    if not hasattr(layer, "lora_A"):
        return None
    name = layer.active_adapters[-1]
    return layer.lora_A[name], layer.lora_B[name]


def add_peft(backbone: Backbone, config: PeftConfig) -> Adapted:
    """Any adapter of peft that changes layers in place (IA3, LoHa, DoRA, VeRA, OFT, ...), by its own config.

    Only the adapter's parameters train afterwards. ``config.target_modules`` holds layer names; take them from
    :func:`linear_roles`.

    Returns:
        which layers were adapted, and the number of trainable parameters.

    Raises:
        ModelError: peft refused the config, nothing was adapted, it is one of prompt learning, or the backbone
            already has adapters.
    """
    _refuse_adapted(backbone)
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    name = type(config).__name__
    if isinstance(config, peft.PromptLearningConfig):
        raise ModelError(f"{name} changes the inputs and not the layers of a model; that is not supported.")
    try:
        with warnings.catch_warnings():  # peft asks transformers for a name that transformers is about to drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            model = peft.get_peft_model(backbone.model, config)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{name} could not be added to {backbone.card.name}: {error}") from error
    base = model.get_base_model()
    layers = tuple(name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))
    if not trainable_parameters(model):
        raise ModelError(f"{name} added nothing that trains to {backbone.card.name}. Check its target_modules.")
    model.to(backbone.device)
    backbone.model = model
    backbone.train(backbone.training)
    return Adapted(layers, trainable_parameters(backbone))


def _refuse_adapted(backbone: Backbone) -> None:
    if hasattr(backbone.model, "peft_config"):
        raise ModelError(
            f"{backbone.card.name} already has an adapter. "
            "Make a new backbone, or use backbone.model.add_adapter of peft."
        )


def _resolve(backbone: Backbone, targets: Sequence[str]) -> list[str]:
    """Names of the layers that the targets mean, in the model's order."""
    if isinstance(targets, str) or not targets:
        raise ModelError(f"targets has to be a list of roles or layer names, not {targets!r}.")
    layers = list(linear_layers(backbone.model))
    roles = linear_roles(backbone) if any(target in ROLES for target in targets) else {}
    chosen: set[str] = set()
    for target in targets:
        found = roles.get(target, [])
        if not found and target in ("query", "key", "value"):
            found = roles.get("qkv", [])
        if not found:
            found = [name for name in layers if name == target or name.endswith("." + target)]
        if not found:
            raise ModelError(
                f"LoRA target '{target}' matches no linear layer of {backbone.card.name}."
                f"{nearest(target, {*ROLES, *(name.rsplit('.', 1)[-1] for name in layers)})}"
            )
        chosen.update(found)
    return [name for name in layers if name in chosen]
