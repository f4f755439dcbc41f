"""A source of what is in memory already: arrays, lists of texts, lists of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tangentcl.data.assemble import Split, assemble
from tangentcl.data.table import MODALITIES, Source
from tangentcl.errors import ConfigError, DataError, nearest


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    x_validation: Any = None,
    y_validation: Any = None,
    domains_train: Sequence[Any] | None = None,
    domains_test: Sequence[Any] | None = None,
    domains_validation: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    modality: str | None = None,
    name: str = "arrays",
    test_share: float = 0.25,
    test_seed: int = 0,
) -> Source:
    """A source of samples in memory.

    Args:
        x_train: arrays or tensors [n, ...], a list of texts, or a list of images (PIL or uint8 arrays).
        y_train: labels: class names, or integers; with ``class_names`` the integer i is the class ``class_names[i]``.
        x_test, y_test: without them a share of the training samples is held out.
        x_validation, y_validation: a validation split, if there is one.
        domains_train, domains_test, domains_validation: domain of each sample, for domain-incremental streams.
        class_names: None takes the training labels, sorted.
        groups: group name -> names of its classes.
        modality: "image", "text" or "array"; None decides by the samples: texts, uint8 arrays [n, H, W] or
            [n, H, W, 3] and PIL images are what they look like, everything else is "array".
        name: for the record.
        test_share, test_seed: what is held out when there is no test split.

    Raises:
        DataError: lengths that differ, NaN or infinity, unknown labels, samples without labels.
        ConfigError: an unknown modality.

    >>> source = from_arrays(np.eye(4), ["a", "a", "b", "b"], test_share=0.5)
    >>> source.class_names, len(source.train), source.modality
    (('a', 'b'), 2, 'array')
    """
    given = {
        "train": (x_train, y_train, domains_train),
        "test": (x_test, y_test, domains_test),
        "validation": (x_validation, y_validation, domains_validation),
    }
    splits = {key: read for key, values in given.items() if (read := _split(key, *values)) is not None}
    if "train" not in splits:
        raise DataError("Expected training samples, got None.")
    if modality is None:
        modality = _guess(splits["train"].inputs)
    elif modality not in MODALITIES:
        raise ConfigError(f"Unknown modality {modality!r}.{nearest(modality, MODALITIES)}")
    return assemble(
        name,
        modality,
        splits,
        class_names=class_names,
        groups=groups,
        test_share=test_share,
        test_seed=test_seed,
    )


def _split(name: str, x: Any, y: Any, domains: Sequence[Any] | None) -> Split | None:
    if (x is None) != (y is None):
        raise DataError(f"Expected samples and labels of the {name} split together, got only one of them.")
    if x is None:
        return None
    inputs = _inputs(x)
    if domains is not None and len(domains) != len(inputs):
        raise DataError(f"Expected one domain per sample of the {name} split, got {len(domains)} for {len(inputs)}.")
    return Split(inputs, _numpy(y), None, None if domains is None else [str(d) for d in _numpy(domains)])


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _inputs(x: Any) -> Any:
    x = _numpy(x)
    if isinstance(x, (str, np.generic)) or not hasattr(x, "__len__") or getattr(x, "shape", None) == ():
        raise DataError(f"Expected an array or a list with one entry per sample, got a single {type(x).__name__}.")
    if isinstance(x, np.ndarray):
        return x.astype(str).tolist() if x.dtype.kind == "U" else list(x) if x.dtype == object else x
    samples = list(x)
    if samples and not isinstance(samples[0], (str, Image.Image)):
        rows = [np.asarray(_numpy(sample)) for sample in samples]
        return np.stack(rows) if len({row.shape for row in rows}) == 1 else rows
    return samples


def _guess(inputs: Any) -> str:
    if not len(inputs):
        raise DataError("Expected at least one training sample, got none.")
    first = inputs[0]
    if isinstance(first, str):
        return "text"
    if isinstance(first, Image.Image):
        return "image"
    grey_or_colour = first.ndim == 2 or (first.ndim == 3 and first.shape[2] in (1, 3))
    return "image" if first.dtype == np.uint8 and grey_or_colour else "array"
