"""A tree of tensors and plain values as one safetensors file, and back without loss."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from tangentcl.errors import ModelError, RecordError
from tangentcl.files import Damaged, metadata, sealed, write_whole

TREE = "tree"


def write_state(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values, in one piece or not at all.

    Raises:
        ModelError: something else among them, with its type. RecordError: the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(tree, tensors))
    content = sealed(save(tensors, metadata={TREE: text}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise RecordError(f"the state of the run cannot be written to {path}: {error.strerror or error}") from error


def read_state(path: Path) -> Any:
    """What `write_state` wrote.

    Raises:
        Damaged: the content is not what was written. OSError: the disk refuses.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state"
    >>> write_state(path, {"step": 3, 0: (torch.ones(2), [None, 0.1])})
    >>> read_state(path)
    {'step': 3, 0: (tensor([1., 1.]), [None, 0.1])}
    """
    content = path.read_bytes()
    about = metadata(content)
    if TREE not in about:
        raise Damaged("it holds no state of a run")
    return _decoded(json.loads(about[TREE]), load(content))


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A container becomes a JSON list that starts with its kind; plain values stay as they are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        columns = value.ndim > 1 and not value.is_contiguous() and value.mT.is_contiguous()
        name, value = str(len(tensors)), value.detach().cpu()
        tensors[name] = (value.mT if columns else value).contiguous().clone()
        return ["tensor", name, columns]  # products of rows and of columns differ in their last bit
    if isinstance(value, dict):
        return ["dict", *([_encoded(k, tensors), _encoded(v, tensors)] for k, v in value.items())]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(_encoded(v, tensors) for v in value)]
    raise ModelError(
        f"a {type(value).__name__} cannot be kept in the state of a run. Keep tensors, numbers, texts, and lists, "
        "tuples and dicts of them (state_dict, get_extra_state)."
    )


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "tensor":
        value = tensors[items[0]].clone()  # aligned as any tensor is
        return value.mT if items[1] else value
    if kind == "dict":
        return {_decoded(k, tensors): _decoded(v, tensors) for k, v in items}
    found = [_decoded(item, tensors) for item in items]
    return tuple(found) if kind == "tuple" else found


def generators(device: torch.device) -> dict[str, Any]:
    """States of every global random generator."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_generators(state: dict[str, Any], device: torch.device) -> None:
    """Back to `generators`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
