"""The embedded data set: handwritten digits, 8x8 pixels."""

from __future__ import annotations

from importlib import resources

import numpy as np

from tangentcl.data.assemble import Split, assemble
from tangentcl.data.table import Source

LICENCE = "CC BY 4.0"
CITATION = (
    "E. Alpaydin and C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository. "
    "https://doi.org/10.24432/C50P49"
)


def digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """All 1797 images with pixel values 0 to 16, uint8 [1797, 8, 8], and their labels, int64 [1797].

    >>> images, labels = digits_arrays()
    >>> images.shape, int(images.max()), labels[:4].tolist()
    ((1797, 8, 8), 16, [0, 1, 2, 3])
    """
    with (
        resources.files("tangentcl.data").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        return stored["images"], stored["labels"].astype(np.int64)


def digits(*, test_share: float = 0.25, test_seed: int = 0) -> Source:
    """The test part of UCI's optical digits (as in scikit-learn's ``load_digits``), with values stretched to 0 to 255.

    Ten classes of 174 to 183 images. A share of each class is held out as the test split.

    >>> source = digits()
    >>> len(source.train), len(source.test), source.train.inputs[0].shape
    (1347, 450, (8, 8))
    """
    images, labels = digits_arrays()
    pixels = np.rint(images * (255 / 16)).astype(np.uint8)
    return assemble(
        "digits",
        "image",
        {"train": Split(pixels, labels, np.array([f"digits/{i}" for i in range(len(labels))]))},
        class_names=[str(digit) for digit in range(10)],
        test_share=test_share,
        test_seed=test_seed,
        licence=LICENCE,
        citation=CITATION,
    )
