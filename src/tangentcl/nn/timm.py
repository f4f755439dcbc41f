"""Vision Transformers of timm, the optional extra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError, import_extra, nearest
from tangentcl.nn.backbone import Backbone, BackboneCard, frozen, image_transforms, sample_images
from tangentcl.nn.pooling import check_pooling, pool_image
from tangentcl.nn.weights import load_weights


@dataclass(frozen=True)
class TimmFeatures:
    """``features`` of a timm model: its tokens [B, n_prefix + patches, d], pooled here and not by timm."""

    pooling: str
    n_prefix: int

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        tokens = model.forward_features(x)  # type: ignore[operator]
        if self.pooling == "pooled":
            return model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
        if tokens.ndim == 4:
            raise ModelError("this timm model returns a feature map. Try pooling='pooled'.")
        return pool_image(tokens, self.pooling, self.n_prefix)


def from_timm(
    name: str, *, pooling: str | None = None, weights: str | Path | None = None, image_size: int | None = None
) -> Backbone:
    """A frozen timm model without its classifier.

    Args:
        name: e.g. ``"vit_base_patch16_224.augreg_in21k"``; the tag after the dot is recorded.
        pooling: default "cls" where there is a class token, else timm's own ("pooled").
        weights: a state dict to use in place of timm's download; a classifier in it is left out.
        image_size: input size in pixels, for models that can be resized.

    Raises:
        MissingExtra: timm, or the torchvision that it needs, cannot be imported.
        ModelError: an unknown name, no connection, or weights that do not fit.
    """
    timm = import_extra("timm", extra="timm", purpose=f"the backbone 'timm:{name}'")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(f"timm has no model '{architecture}'.{_alike(timm, architecture)}")
    size = {} if image_size is None else {"img_size": image_size}
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0, **size)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"timm:{name} could not be made: {str(error).splitlines()[0]} Without a connection pass weights='FILE'."
        ) from error
    if weights is not None:
        load_weights(model, weights, ignore=model.pretrained_cfg.get("classifier"))
    frozen(model)
    about = timm.data.resolve_model_data_config(model)
    pixels = image_size or about["input_size"][-1]
    n_prefix = getattr(model, "num_prefix_tokens", 0)
    pooling = check_pooling(pooling or ("cls" if n_prefix else "pooled"), n_prefix=n_prefix)
    sample, features = sample_images(pixels), TimmFeatures(pooling, n_prefix)
    with torch.no_grad():
        width = features(model, sample).shape[1]
    card = BackboneCard.of(
        model,
        name=f"timm:{name}",
        source="timm",
        pooling=pooling,
        modality="image",
        revision=tag or (None if weights is not None else model.pretrained_cfg.get("tag")),
        notes=(f"timm {timm.__version__}", *(() if weights is None else (f"weights from {Path(weights).name}",))),
    )
    train, evaluation = image_transforms(
        pixels,
        about["mean"],
        about["std"],
        interpolation=about["interpolation"],
        crop_ratio=about["crop_pct"],
    )
    return Backbone(model, features, width, card, train_transform=train, eval_transform=evaluation, sample=sample)


def _alike(timm: object, architecture: str) -> str:
    prefix = architecture.split("_")[0]
    return nearest(architecture, timm.list_models(f"{prefix}_*")[:20])  # type: ignore[attr-defined]
