"""Vision and text encoders of Hugging Face transformers, by hub name, local folder or object."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone, BackboneCard, Batch, frozen, image_transforms, sample_images
from tangentcl.nn.hf_features import ImageFeatures, TextFeatures, described
from tangentcl.nn.hf_files import (
    Files,
    empty_model,
    guarded,
    load_config,
    load_model,
    load_tokenizer,
    trained_pooling,
)
from tangentcl.nn.pooling import check_pooling
from tangentcl.nn.weights import load_weights, reason

if TYPE_CHECKING:
    from tangentcl.data.samples import Transform

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as the files hold them
HALF = (0.5, 0.5, 0.5)
LARGEST = 1 << 14  # pixels a side


def from_pretrained(
    name: str,
    *,
    pooling: str | None = None,
    revision: str | None = None,
    weights: str | Path | None = None,
    max_length: int | None = None,
    image_size: int | None = None,
    normalize: bool = False,
    trust_remote_code: bool = False,
) -> Backbone:
    """A frozen encoder from a local folder or from the hub; the arguments are those of ``backbone``.

    Weights are read in float32 from safetensors where there are such files, else from torch files with
    ``weights_only=True``. Of a two-tower model (CLIP, SigLIP) the vision tower is kept.

    Raises:
        ModelError: nothing there, no connection, unusable weights, or layers that the files leave uninitialised.
    """
    local = Path(name).is_dir()
    if revision is not None and local:
        raise ModelError(f"'{name}' is a local folder and has no revision. Leave revision out.")
    files = guarded(name, Files.of, name, revision)
    commit = files.revision
    config = guarded(name, load_config, name, commit, trust_remote_code)
    if weights is None:
        model, missing = guarded(name, load_model, name, commit, trust_remote_code)
    else:
        model, missing = guarded(name, empty_model, config, trust_remote_code), ()
        load_weights(model, weights)
    tokenizer = None
    if not _is_vision(config):
        tokenizer = guarded(name, load_tokenizer, name, commit, trust_remote_code)
        trained_length = _trained_length(files)
        tokenizer.model_max_length = min(trained_length or tokenizer.model_max_length, tokenizer.model_max_length)
    made = guarded(
        name,
        from_transformers,
        model,
        name=Path(name).name if local else name,
        pooling=pooling or trained_pooling(files),
        tokenizer=tokenizer,
        max_length=max_length,
        image_size=image_size,
        preprocessor=files.json("preprocessor_config.json") if tokenizer is None else None,
        normalize=normalize,
        uninitialised=missing,
    )
    notes = () if weights is None else (f"weights from {Path(weights).name}",)
    made.card = replace(made.card, source="folder" if local else "hub", revision=commit, notes=made.card.notes + notes)
    return made


def _trained_length(files: Files) -> int | None:
    length = (files.json("sentence_bert_config.json") or {}).get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise ModelError(
            f"{files.name}: max_seq_length in sentence_bert_config.json must be 1 or more, got {length!r:.80}"
        )
    return length


def from_transformers(
    model: nn.Module,
    *,
    name: str | None = None,
    pooling: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    image_size: int | None = None,
    preprocessor: dict[str, Any] | None = None,
    normalize: bool = False,
    uninitialised: tuple[str, ...] = (),
) -> Backbone:
    """A backbone from a transformers model object; the model itself is frozen.

    Args:
        model: an encoder, or a two-tower model whose vision tower is taken.
        name: for the record; None takes the class name.
        pooling: see ``backbone``. Default: "mean" for texts; for images "cls", without a class token "pooled" where the
            encoder has a pooling head (SigLIP), else "mean". Heads that the pooling does not use are removed.
        tokenizer: for texts; without one the backbone has no transforms.
        max_length: tokens kept of a text; None takes what the model can hold.
        image_size: input size in pixels; None takes the preprocessor's, then the config's.
        preprocessor: content of ``preprocessor_config.json``.
        normalize: scale text features to length one.
        uninitialised: names of weights that no file provided.

    Raises:
        ModelError: a pooling the model does not have, or an uninitialised weight that is used.
    """
    notes: list[str] = []
    while isinstance(getattr(model, "vision_model", None), nn.Module):
        model = model.vision_model  # type: ignore[assignment]
        uninitialised = tuple(k.split("vision_model.", 1)[-1] for k in uninitialised)
    frozen(model.float())
    name = name or type(model).__name__
    attention = getattr(model.config, "_attn_implementation", None)
    notes.append(f"attention: {attention}")
    if _is_vision(model.config):
        built = _image_backbone(model, pooling, image_size, preprocessor, notes)
    else:
        built = _text_backbone(model, pooling, tokenizer, max_length, normalize, notes)
    left = set(uninitialised) & set(model.state_dict())
    if left:
        raise ModelError(
            f"{name}: the files hold no weights for {', '.join(sorted(left)[:4])}, so they would be random. "
            "Try another pooling, or a complete checkpoint."
        )
    card = BackboneCard.of(
        model, name=name, source="module", pooling=built.features.pooling, modality=built.modality, notes=tuple(notes)
    )
    return Backbone(
        model,
        built.features,
        built.width,
        card,
        train_transform=built.transforms[0],
        eval_transform=built.transforms[1],
        sample=built.sample,
    )


@dataclass(frozen=True)
class _Built:
    features: ImageFeatures | TextFeatures
    width: int
    modality: str
    sample: Batch
    transforms: tuple[Transform | None, Transform | None] = field(default=(None, None))


def _image_backbone(
    model: nn.Module, pooling: str | None, size: int | None, preprocessor: dict[str, Any] | None, notes: list[str]
) -> _Built:
    own_size = _side(getattr(model.config, "image_size", None))
    about = _preprocessing(preprocessor, own_size, notes)
    size = size or about.pop("size")
    about.pop("size", None)
    norm = "post_layernorm" if getattr(model.config, "model_type", "").startswith("clip") else None
    norm = norm if hasattr(model, norm or "") else None
    resizable = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    features = ImageFeatures("mean", 0, norm, interpolate=resizable and own_size not in (None, size))
    sample = sample_images(size, getattr(model.config, "num_channels", 3))
    tokens = _probed(features.tokens, model, sample[:1])
    patch = _side(getattr(model.config, "patch_size", None))
    n_patches = (size // patch) ** 2 if patch else tokens.shape[1]
    n_prefix = max(tokens.shape[1] - n_patches, 0)
    head = [h for h in ("head", "pooler") if isinstance(getattr(model, h, None), nn.Module)]
    if pooling is None:
        pooling = "cls" if n_prefix else ("pooled" if "head" in head else "mean")
        notes.append(f"pooling {pooling}: no file says which, the default for this architecture")
    features = replace(features, pooling=check_pooling(pooling, n_prefix=n_prefix), n_prefix=n_prefix)
    _drop_unused_head(model, pooling, head)
    width = _probed(features, model, sample[:1]).shape[1] if pooling == "pooled" else tokens.shape[2]
    return _Built(features, width, "image", sample, image_transforms(size, **about))


def _drop_unused_head(model: nn.Module, pooling: str, heads: list[str]) -> None:
    """Remove the pooling head that ``pooling`` does not use: often random, and without a gradient."""
    if pooling == "pooled":
        return
    for head in heads:
        setattr(model, head, None)
        if head == "head" and hasattr(model, "use_head"):
            model.use_head = False  # type: ignore[assignment]


def _text_backbone(
    model: nn.Module,
    pooling: str | None,
    tokenizer: Any,
    max_length: int | None,
    normalize: bool,
    notes: list[str],
) -> _Built:
    if pooling is None:
        pooling = "mean"
        notes.append("pooling mean: no file says which, the default for texts")
    check_pooling(pooling)
    pooler = [h for h in ("pooler",) if isinstance(getattr(model, h, None), nn.Module)]
    if pooling == "pooled" and not pooler:
        raise ModelError(f"{type(model).__name__} has no pooler. Try pooling='mean' or 'cls'.")
    _drop_unused_head(model, pooling, pooler)
    sample = _sample_texts(model.config)
    features = TextFeatures(pooling, normalize)
    plain = replace(features, additive_mask=False)
    expected = _probed(plain, model, sample)
    refused = _refuses_additive_mask(features, model, sample, expected)
    if refused:
        notes.append(f"attention mask passed as [B, N]: {refused}")
        features = plain
    positions = position_limit(model)
    if max_length is not None and positions is not None and max_length > positions:
        raise ModelError(f"max_length {max_length} exceeds the {positions} positions of {type(model).__name__}.")
    limits = [positions, getattr(tokenizer, "model_max_length", None)]
    limit = min((n for n in limits if n is not None and 0 < n < 1e9), default=512)
    transforms: tuple[Transform | None, Transform | None] = (None, None)
    if tokenizer is not None:
        from tangentcl.data.transforms import TokenTransform

        transform = TokenTransform(tokenizer, max_length or limit)
        transforms = (transform, transform)
    return _Built(features, expected.shape[1], "text", sample, transforms)


def _sample_texts(config: Any) -> dict[str, Tensor]:
    """Two texts of made-up tokens, six and four long, padded at the end."""
    pad = getattr(config, "pad_token_id", None) or 0
    tokens = [t for t in range(min(config.vocab_size, 32)) if t != pad]
    ids = torch.tensor([[tokens[(7 * i + j) % len(tokens)] for i in range(6)] for j in (1, 3)])
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


def _probed(features: Any, model: nn.Module, sample: Batch) -> Tensor:
    """``features(model, sample)``, or an error that says this is not an encoder of the expected kind."""
    try:
        with torch.no_grad():
            return features(model, sample)
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{type(model).__name__} could not be used as an encoder of {described(sample)}: {reason(error)} "
            "Wrap it yourself with from_module."
        ) from error


def _refuses_additive_mask(features: TextFeatures, model: nn.Module, sample: Batch, expected: Tensor) -> str:
    """Why the model cannot be given its additive mask ready made; empty if it can."""
    windows = ("sliding_window", "local_attention", "attention_window")
    if any(getattr(model.config, window, None) for window in windows):
        return "it has windowed attention, which builds a mask of its own"
    try:
        same = torch.allclose(_probed(features, model, sample), expected, atol=1e-5)
    except ModelError as error:
        return f"it does not take the additive form ({reason(error.__cause__ or error)})"
    return "" if same else "the additive form gives other features"


def position_limit(model: nn.Module) -> int | None:
    """Tokens that the position embedding holds, minus the places that RoBERTa reserves before the first."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    return positions


def _preprocessing(preprocessor: dict[str, Any] | None, own_size: int | None, notes: list[str]) -> dict[str, Any]:
    """Size, mean, std, interpolation and crop ratio, from the preprocessor's file where there is one."""
    if preprocessor is None:
        if own_size is None:
            raise ModelError("neither preprocessor_config.json nor the config says the image size. Pass image_size.")
        notes.append(f"no preprocessor_config.json: size {own_size} from the config, mean and std 0.5")
        return {"size": own_size, "mean": HALF, "std": HALF}
    resized = _side(preprocessor.get("size")) or own_size
    cropped = _side(preprocessor.get("crop_size")) if preprocessor.get("do_center_crop") else None
    size = cropped or resized
    if size is None or resized is None:
        raise ModelError("preprocessor_config.json says no image size. Pass image_size.")
    normalised = preprocessor.get("do_normalize", True)
    return {
        "size": size,
        "mean": _channels(preprocessor, "image_mean") if normalised else (0.0, 0.0, 0.0),
        "std": _channels(preprocessor, "image_std") if normalised else (1.0, 1.0, 1.0),
        "interpolation": INTERPOLATIONS.get(preprocessor.get("resample", 3), "bicubic"),
        "crop_ratio": min(size / resized, 1.0),
    }


def _channels(preprocessor: dict[str, Any], key: str) -> tuple[float, ...]:
    values = preprocessor.get(key) or HALF
    if not isinstance(values, (list, tuple)) or any(not isinstance(v, (int, float)) for v in values):
        raise ModelError(f"preprocessor_config.json: {key} must be a list of numbers, got {values!r:.80}")
    return tuple(values)


def _side(size: Any) -> int | None:
    """One side in pixels from the forms in which the files hold a size."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, (list, tuple)):
        size = size[0]
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 1 <= size <= LARGEST:
        raise ModelError(f"the files should say an image size from 1 to {LARGEST} pixels, got {size!r:.80}")
    return math.floor(size)


def _is_vision(config: Any) -> bool:
    return hasattr(config, "vision_config") or not hasattr(config, "vocab_size")
