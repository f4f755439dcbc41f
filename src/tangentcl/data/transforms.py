"""Transforms of images, arrays and texts, as the field uses them and without torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tangentcl.errors import ConfigError, DataError, nearest

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_CACHED_TEXTS = 1_000_000


def to_image(raw: Any) -> Image.Image:
    """Any raw image -> a PIL image of mode "L" or "RGB".

    Takes uint8 or bool arrays [H, W], [H, W, 1] or [H, W, 3], float arrays in [0, 1] of the same shapes, and PIL images
    of any mode. 16-bit images are scaled to 8 bits; transparency is dropped, as torchvision's loader does.

    Raises:
        DataError: another type, shape or range of values.

    >>> to_image(np.zeros((4, 5), dtype=np.uint8)).size
    (5, 4)
    """
    if isinstance(raw, Image.Image):
        return _pil_to_8_bits(raw)
    if not isinstance(raw, np.ndarray):
        raise DataError(f"Expected an image as a PIL image or numpy array, got {type(raw).__name__}.")
    array = raw
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        hint = " Try array.transpose(1, 2, 0)." if raw.ndim == 3 and raw.shape[0] in (1, 3) else ""
        raise DataError(f"Expected an image of shape [H, W], [H, W, 1] or [H, W, 3], got {list(raw.shape)}.{hint}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):
            raise DataError(
                f"Expected a float image with values in [0, 1], got {low:.4g} to {high:.4g}. "
                "Try uint8 values 0 to 255, or divide by the largest value."
            )
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"Expected an image of uint8 or of floats in [0, 1], got {array.dtype}. Try astype(np.uint8).")
    return Image.fromarray(np.ascontiguousarray(array))


class ImageTransform:
    """Images -> normalised tensors [3, size, size], random in training and fixed in evaluation.

    Training: RandomResizedCrop (a box with an area share drawn from ``scale`` and the logarithm of its aspect ratio
    drawn from ``ratio``, ten attempts, then the largest central box; Szegedy et al. 2015, "Going deeper with
    convolutions", and the same algorithm as torchvision) and a horizontal flip with probability ``flip``. Evaluation,
    and training transforms called without a generator: the shorter side to ``size / crop_ratio``, then the central
    square.

    Args:
        size: height and width of the result in pixels.
        mean, std: per channel of RGB, on values in [0, 1].
        train: random crop and flip.
        scale: smallest and largest share of the image's area in the crop.
        ratio: smallest and largest width over height of the crop.
        flip: probability of a horizontal flip; 0 for digits and characters.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_ratio: ``size`` over the shorter side before the central crop.

    Raises:
        ConfigError: a setting outside its range.

    >>> transform = ImageTransform(16, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> item = transform(np.full((20, 30), 255, dtype=np.uint8), None)
    >>> item.shape, item.min().item(), item.max().item()
    (torch.Size([3, 16, 16]), 1.0, 1.0)
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        train: bool = False,
        scale: tuple[float, float] = (0.05, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        interpolation: str = "bicubic",
        crop_ratio: float = 224 / 256,
    ) -> None:
        if interpolation not in _INTERPOLATIONS:
            raise ConfigError(f"Unknown interpolation {interpolation!r}.{nearest(interpolation, _INTERPOLATIONS)}")
        if size < 1:
            raise ConfigError(f"Expected a size of at least 1 pixel, got {size}.")
        if not 0 <= flip <= 1:
            raise ConfigError(f"Expected flip as a probability between 0 and 1, got {flip}.")
        if not 0 < crop_ratio <= 1:
            raise ConfigError(f"Expected crop_ratio above 0 and at most 1, got {crop_ratio}.")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"Expected scale as two growing shares above 0 and at most 1, got {tuple(scale)}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ConfigError(f"Expected ratio as two growing positive numbers, got {tuple(ratio)}.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"Expected three means and three positive standard deviations, got {mean} and {std}.")
        self.size, self.train, self.flip, self.crop_ratio = int(size), bool(train), float(flip), float(crop_ratio)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.scale, self.ratio, self.interpolation = tuple(scale), tuple(ratio), interpolation
        # (value / 255 - mean) / std = value * gain + bias
        self._gain = (1 / (255 * np.array(std))).astype(np.float32)[:, None, None]
        self._bias = (-np.array(mean) / np.array(std)).astype(np.float32)[:, None, None]

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        image = to_image(raw)
        image = self._random_crop(image, rng) if self.train and rng is not None else self._central_crop(image)
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = np.broadcast_to(pixels, (3, *pixels.shape))
        else:
            pixels = pixels.transpose(2, 0, 1)
        values = np.multiply(pixels, self._gain, dtype=np.float32, order="C")  # [3, size, size]
        values += self._bias
        return torch.from_numpy(values)

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)  # [B, 3, size, size]

    def describe(self) -> dict[str, Any]:
        shared = {"kind": "image", "size": self.size, "mean": list(self.mean), "std": list(self.std)}
        shared |= {"interpolation": self.interpolation, "train": self.train}
        if self.train:
            return {**shared, "scale": list(self.scale), "ratio": list(self.ratio), "flip": self.flip}
        return {**shared, "crop_ratio": self.crop_ratio}

    def _random_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        left, top, width, height = crop_box(image.width, image.height, self.scale, self.ratio, rng)
        # Cropping first keeps pixels outside the box out of the interpolation, as torchvision's resized_crop does.
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self.size, self.size), _INTERPOLATIONS[self.interpolation])
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < self.flip else crop

    def _central_crop(self, image: Image.Image) -> Image.Image:
        shorter = max(self.size, math.floor(self.size / self.crop_ratio))
        width = shorter if image.width <= image.height else int(shorter * image.width / image.height)
        height = shorter if image.height <= image.width else int(shorter * image.height / image.width)
        if image.size == (self.size, self.size) == (width, height):
            return image
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        # The crop expressed in pixels of the original: only what is kept is computed, with the same result.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + self.size) * across, (top + self.size) * down)
        return image.resize((self.size, self.size), _INTERPOLATIONS[self.interpolation], box=box)


def crop_box(
    width: int, height: int, scale: tuple[float, ...], ratio: tuple[float, ...], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop in an image of this width and height, in pixels.

    >>> crop_box(10, 10, (1.0, 1.0), (1.0, 1.0), np.random.default_rng(0))
    (0, 0, 10, 10)
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


class ArrayTransform:
    """Float arrays -> float32 tensors, unchanged.

    >>> ArrayTransform()(np.arange(3), None)
    tensor([0., 1., 2.])
    """

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(np.array(raw, dtype=np.float32))

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)  # [B, ...]

    def describe(self) -> dict[str, Any]:
        return {"kind": "array"}


class TokenTransform:
    """Texts -> token ids, padded to the longest text of the batch.

    A text stays a string until its batch is made; then all texts of the batch that were not seen before are tokenised
    together and remembered, so that later epochs only look ids up.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: longer texts are cut to this many tokens, special tokens included.

    Raises:
        ConfigError: ``max_length`` below 1.

    A batch is ``{"input_ids": [B, N], "attention_mask": [B, N]}``, both int64.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if max_length < 1:
            raise ConfigError(f"Expected max_length of at least 1 token, got {max_length}.")
        self.tokenizer, self.max_length = tokenizer, int(max_length)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._left = tokenizer.padding_side == "left"
        self._ids: dict[str, np.ndarray] = {}

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> str:
        if not isinstance(raw, str):
            raise DataError(f"Expected a text, got {type(raw).__name__}. Is the backbone one for texts?")
        return raw

    def collate(self, items: list[str]) -> dict[str, Tensor]:
        try:
            rows = [self._ids[text] for text in items]
        except KeyError:
            rows = self._tokenise(items)
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._pad, dtype=np.int64)  # [B, N]
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            kept = slice(longest - len(row), None) if self._left else slice(len(row))
            ids[i, kept] = row
            mask[i, kept] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def describe(self) -> dict[str, Any]:
        return {"kind": "tokens", "tokenizer": type(self.tokenizer).__name__} | {
            "vocabulary": self.tokenizer.vocab_size,
            "max_length": self.max_length,
        }

    def _tokenise(self, items: list[str]) -> list[np.ndarray]:
        new = [text for text in dict.fromkeys(items) if text not in self._ids]
        encoded = self.tokenizer(new, truncation=True, max_length=self.max_length)["input_ids"]
        found = {text: np.array(ids, dtype=np.int64) for text, ids in zip(new, encoded)}
        rows = [found[text] if text in found else self._ids[text] for text in items]
        if len(self._ids) + len(found) <= _MAX_CACHED_TEXTS:
            self._ids.update(found)
        return rows


def _pil_to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode == "F":
        return to_image(np.asarray(image))
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"Expected pixel values of 8 or 16 bits, got {values.min()} to {values.max()}.")
        wide = image.mode != "I" or values.max() > 255
        return Image.fromarray((values // 257 if wide else values).astype(np.uint8))
    return image.convert("RGB")
