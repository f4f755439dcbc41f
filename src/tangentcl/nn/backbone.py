"""One small interface over any feature extractor: images or texts in, one vector per sample out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError, nearest
from tangentcl.nn.known import known_features
from tangentcl.nn.pooling import check_pooling, pool_image
from tangentcl.nn.weights import load_weights, tensor_digest, tensor_digests, weights_sha256

if TYPE_CHECKING:
    from tangentcl.data.samples import Transform

Batch = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class BackboneCard:
    """What a record keeps of a backbone.

    ``sha256`` is over the weights that are used (:func:`tangentcl.nn.weights.weights_sha256`), before any adapter;
    ``notes`` says in words every choice that was made for the user.

    >>> BackboneCard("toy", "module", None, "0" * 64, "own", "array", 10).describe()["n_parameters"]
    10
    """

    name: str
    source: str  # "bundled" | "hub" | "folder" | "timm" | "module"
    revision: str | None
    sha256: str
    pooling: str
    modality: str  # "image" | "text" | "array"
    n_parameters: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        name: str,
        source: str,
        pooling: str,
        modality: str,
        revision: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> BackboneCard:
        """The card of a model with the weights it has now."""
        n_parameters = sum(p.numel() for p in model.parameters())
        return cls(name, source, revision, weights_sha256(model), pooling, modality, n_parameters, notes)

    def describe(self) -> dict[str, Any]:
        """The card as JSON values."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}


class Backbone(nn.Module):
    """A pre-trained model with one way in and one way out: batch -> features [B, width]; made in evaluation mode.

    Made by :func:`backbone` or :func:`from_module`; final, to change it wrap the model. ``features(model, batch)`` is
    called with the current ``model``, so adapters that replace ``model`` are seen.
    Known features of a batch (`tangentcl.nn.known`) are handed on.
    ``passes`` counts the samples that went through it.

    Shapes: images [B, 3, H, W], or texts ``{"input_ids": [B, N], "attention_mask": [B, N]}`` -> [B, width].

    Raises:
        ModelError: features that are not [B, width].
    """

    def __init__(
        self,
        model: nn.Module,
        features: Callable[[nn.Module, Any], Tensor],
        width: int,
        card: BackboneCard,
        *,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        sample: Batch | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.width = width
        self.card = card
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self._sample = sample
        self._pretrained = tensor_digests(model)
        self.passes = 0
        self.eval()

    def forward(self, x: Batch) -> Tensor:
        known = known_features(x)
        if known is not None:
            return known
        if not torch.compiler.is_compiling():  # a length asked for in tracing would stand for every later batch's
            self.passes += len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))
        features = self.features(self.model, x)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ModelError(f"expected features [B, {self.width}] from {self.card.name}, got {tuple(features.shape)}.")
        return features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def holds_pretrained(self, name: str) -> bool:
        """Whether ``name`` in ``model.state_dict()`` is a tensor that the backbone was made with, whatever wraps it."""
        return _original_name(name) in self._pretrained

    def changed(self, name: str, value: Tensor) -> bool:
        """Whether a tensor of ``model.state_dict()`` is new, or differs from what the backbone was made with."""
        return self._pretrained.get(_original_name(name)) != tensor_digest(value)

    def sample_input(self) -> Batch:
        """A small valid batch on the device of the weights; what :func:`tangentcl.nn.peft.linear_roles` traces.

        Raises:
            ModelError: the backbone was made by :func:`from_module` without ``sample``.
        """
        if self._sample is None:
            raise ModelError(f"{self.card.name} has no sample input. Pass sample=... (a small batch) to from_module.")
        return to_device(self._sample, self.device)

    def train(self, mode: bool = True) -> Backbone:
        """Training mode only where something trains, so that frozen layers stay deterministic.

        With ``mode=True`` a submodule is in training mode if all parameters in it are trainable, or it is an adapter
        layer (it wraps a ``base_layer``) with trainable parameters; a module without parameters, such as dropout,
        follows the module that holds it. So LoRA's own dropout is active, the frozen model's dropout and batch
        statistics are not, and full fine-tuning is in training mode throughout.
        """
        super().train(mode)
        if mode:
            train_where_trainable(self.model, parent=False)
        return self


def _original_name(name: str) -> str:
    """Name of a tensor before peft wrapped the model and its layers."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def train_where_trainable(module: nn.Module, parent: bool = False) -> None:
    """Set the modes of a module and all below it as `Backbone.train` says.

    Args:
        parent: mode of what holds the module.
    """
    trainable = [p.requires_grad for p in module.parameters()]
    adapter = isinstance(getattr(module, "base_layer", None), nn.Module)
    module.training = (any(trainable) if adapter else all(trainable)) if trainable else parent
    for child in module.children():
        train_where_trainable(child, module.training)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A tensor or a dictionary of tensors on another device.

    >>> to_device({"a": torch.zeros(1)}, torch.device("cpu"))
    {'a': tensor([0.])}
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def frozen(model: nn.Module) -> nn.Module:
    """The same model without gradients and in evaluation mode."""
    return model.requires_grad_(False).eval()


def backbone(
    name: str = "bundled",
    *,
    pooling: str | None = None,
    revision: str | None = None,
    weights: str | Path | None = None,
    max_length: int | None = None,
    image_size: int | None = None,
    normalize: bool = False,
    trust_remote_code: bool = False,
) -> Backbone:
    """A frozen pre-trained backbone by name.

    Args:
        name: ``"bundled"``; a local folder with a Hugging Face model; a name on the Hugging Face hub, with or without
            the prefix ``"hf:"``; ``"timm:NAME"``.
        pooling: ``"cls" | "mean" | "last" | "pooled"``; None takes what the model was trained with where its files say
            so, else the mean for texts, the class token for images (``card.pooling`` says which).
        revision: tag, branch or commit on the hub; the commit it resolves to is recorded.
        weights: a state dict to use in place of the named weights (safetensors, or a torch file of plain tensors).
        max_length: tokens kept of a text.
        image_size: height and width of the input in pixels.
        normalize: scale features to length one, as sentence-transformers' Normalize module does.
        trust_remote_code: run Python code that comes with a hub model.

    Returns:
        the backbone with every parameter frozen, in evaluation mode, with its transforms.

    Raises:
        ModelError: nothing under that name, weights that do not fit, or an option that the backbone does not have.
        MissingExtra: ``"timm:..."`` without timm.
    """
    for option, number in (("max_length", max_length), ("image_size", image_size)):
        if number is not None and number < 1:
            raise ModelError(f"backbone '{name}': {option} must be at least 1, got {number}.")
    kind, _, rest = name.partition(":")
    texts: dict[str, object] = {"max_length": max_length, "normalize": normalize or None}
    remote: dict[str, object] = {"revision": revision, "trust_remote_code": trust_remote_code or None}
    if name == "bundled":
        _refuse(name, {**texts, **remote, "image_size": image_size})
        return _bundled(pooling, weights)
    if kind == "timm":
        _refuse(name, {**texts, **remote})
        from tangentcl.nn.timm import from_timm

        return from_timm(rest, pooling=pooling, weights=weights, image_size=image_size)
    if kind not in ("hf", name) and not Path(name).exists():
        raise ModelError(f"backbone '{name}': prefix '{kind}' is unknown.{nearest(kind, ['hf', 'timm', 'bundled'])}")
    from tangentcl.nn.hf import from_pretrained

    return from_pretrained(
        rest if kind == "hf" else name,
        pooling=pooling,
        revision=revision,
        weights=weights,
        max_length=max_length,
        image_size=image_size,
        normalize=normalize,
        trust_remote_code=trust_remote_code,
    )


def _refuse(name: str, options: dict[str, object]) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise ModelError(f"backbone '{name}' has no option {', '.join(given)}. Leave it out.")


@dataclass(frozen=True)
class PooledTokens:
    """``features`` of a model that returns tokens [B, n_prefix + patches, width]."""

    pooling: str
    n_prefix: int = 1

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        return pool_image(model(x), self.pooling, self.n_prefix)


def _bundled(pooling: str | None, weights: str | Path | None) -> Backbone:
    from tangentcl.nn.vit import bundled_card, load_bundled

    about, model = bundled_card(), load_bundled()
    pooling = check_pooling(pooling or about["pooling"], n_prefix=1)
    if pooling == "pooled":
        raise ModelError("the bundled backbone has no pooler of its own. Try pooling='mean' or 'cls'.")
    if weights is not None:
        load_weights(model, weights)
    card = BackboneCard.of(
        model,
        name="bundled",
        source="bundled",
        pooling=pooling,
        modality="image",
        revision=None if weights is not None else about["sha256"],
        notes=() if weights is None else (f"weights from {Path(weights).name}",),
    )
    # Mild: at 32 pixels a crop of 5 % shows nothing, and a mirrored character is another character.
    train, evaluation = image_transforms(model.image_size, about["mean"], about["std"], scale=(0.7, 1.0), flip=0.0)
    sample = sample_images(model.image_size)
    features = PooledTokens(pooling)
    return Backbone(
        frozen(model), features, model.width, card, train_transform=train, eval_transform=evaluation, sample=sample
    )


def image_transforms(
    size: int,
    mean: Any,
    std: Any,
    *,
    scale: tuple[float, float] = (0.05, 1.0),
    flip: float = 0.5,
    interpolation: str = "bicubic",
    crop_ratio: float = 1.0,
) -> tuple[Transform, Transform]:
    """The training and the evaluation transform of an image backbone, see ``tangentcl.data.transforms``."""
    from tangentcl.data.transforms import ImageTransform

    train = ImageTransform(
        size, mean, std, train=True, scale=scale, flip=flip, interpolation=interpolation, crop_ratio=crop_ratio
    )
    return train, ImageTransform(size, mean, std, interpolation=interpolation, crop_ratio=crop_ratio)


def sample_images(size: int, channels: int = 3) -> Tensor:
    """Two images of noise [2, channels, size, size], always the same."""
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def from_module(
    module: nn.Module,
    features: Callable[[nn.Module, Any], Tensor] | None,
    width: int,
    *,
    name: str,
    modality: str,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    sample: Batch | None = None,
) -> Backbone:
    """A backbone from any module. The module itself is frozen and set to evaluation mode.

    Args:
        module: any ``nn.Module``.
        features: ``features(module, batch) -> [B, width]``; None calls ``module(batch)``.
        width: length of a feature vector.
        name: for the record.
        modality: ``"image" | "text" | "array"``.
        train_transform, eval_transform: how raw samples become batches; None leaves it to the stream.
        sample: a small batch, needed to find layers by their role for LoRA.

    Raises:
        ModelError: an unknown modality, or features of the wrong shape for ``sample``.

    >>> layer = nn.Linear(4, 3)
    >>> toy = from_module(layer, lambda m, x: m(x).relu(), 3, name="toy", modality="array", sample=torch.ones(2, 4))
    >>> toy(torch.ones(5, 4)).shape, layer.weight.requires_grad
    (torch.Size([5, 3]), False)
    """
    if modality not in ("image", "text", "array"):
        raise ModelError(f"modality '{modality}' is unknown.{nearest(modality, ['image', 'text', 'array'])}")
    card = BackboneCard.of(module, name=name, source="module", pooling="own", modality=modality)
    made = Backbone(
        frozen(module),
        features or call_module,
        width,
        card,
        train_transform=train_transform,
        eval_transform=eval_transform,
        sample=sample,
    )
    if sample is not None:
        with torch.no_grad():
            made(made.sample_input())
    return made


def call_module(module: nn.Module, x: Any) -> Tensor:
    """``features`` of a module that already returns [B, width]."""
    return module(x)
