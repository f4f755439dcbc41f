"""Inputs as a user has them, as the transform of a backbone takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tangentcl.data.inputs import Inputs, decode_image
from tangentcl.errors import DataError

TAKEN = {
    "image": "images: PIL images, paths of image files, or numpy arrays [H, W] or [H, W, 3]",
    "text": "texts",
    "array": "arrays of numbers",
}


class ImageInputs:
    """Images, decoded when asked for where they are given as paths."""

    def __init__(self, given: Sequence[Any]) -> None:
        self.given = given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        image = self.given[index]
        if not isinstance(image, (str, Path)):
            return image
        path = Path(image).expanduser()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read the image {path} ({error.strerror or error}).") from error
        return decode_image(content, str(path))


def raw_inputs(given: Any, modality: str) -> Inputs:
    """What a table holds of the inputs.

    Args:
        given: one input, or several in a list, tuple or array whose first axis counts them, or anything else with a
            length and places. A single array is one input only inside a list.
        modality: of the backbone.

    Raises:
        DataError: no input, or something that is none of this modality.

    >>> raw_inputs("hello", "text")
    ['hello']
    """
    if isinstance(given, (str, Path, Image.Image)):
        given = [given]
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__") or isinstance(given, (dict, bytes)):
        raise DataError(f"Expected a list of {TAKEN[modality]}; got {type(given).__name__}. Try list(...) around it.")
    if isinstance(given, np.ndarray) and given.ndim < (1 if modality == "text" else 2):
        raise DataError(f"Expected a list of {TAKEN[modality]}; got an array of shape {list(given.shape)}.")
    if modality == "image":
        if isinstance(given, np.ndarray) and given.ndim == 2:
            raise DataError(f"An array of shape {list(given.shape)} is one image: put it into a list, [array].")
        return ImageInputs(given)
    if modality == "text":
        _refuse(given, [i for i in range(len(given)) if not isinstance(given[i], str)], modality)
        return [str(given[i]) for i in range(len(given))]
    _refuse(given, [i for i in range(len(given)) if isinstance(given[i], (str, Path, Image.Image))], modality)
    return given


def _refuse(given: Sequence[Any], wrong: list[int], modality: str) -> None:
    if wrong:
        first = given[wrong[0]]
        raise DataError(f"Expected {TAKEN[modality]}; input {wrong[0]} is a {type(first).__name__}, {first!r:.60}.")
