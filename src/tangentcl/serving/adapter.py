"""The adapter of a learner as peft keeps adapters, for programs that know nothing of tangentcl."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from tangentcl.files import write_whole
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.nn.hf_classifier import ADAPTER, ADAPTER_WEIGHTS
from tangentcl.serving.description import Description


def peft_model(method: Method) -> Any:
    """The peft model around a transformers model that a method adapts; None where there is none, or more than one.

    An adapter file holds one adapter: None for pairs of several tasks, too, which are not what they are alone.
    """
    found: list[Any] = [m.model for m in method.modules() if isinstance(m, Backbone)]
    found = [model for model in found if hasattr(model, "peft_config")]
    if len(found) != 1 or set(found[0].peft_config) != {"default"}:
        return None
    from transformers import PreTrainedModel

    return found[0] if isinstance(found[0].get_base_model(), PreTrainedModel) else None


def write_adapter(model: Any, folder: Path, about: Description) -> list[str]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; returns the names of the files.

    Args:
        model: of `peft_model`.
        folder: where they go.
        about: what is exported; names the pre-trained model, for programs that look it up.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings that peft would save as well, were they resized
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_whole(folder / ADAPTER_WEIGHTS, save(tensors, metadata={"format": "pt"}))
    config = model.peft_config["default"]
    kept = config.base_model_name_or_path, config.revision, config.inference_mode
    config.base_model_name_or_path, config.revision = _base(about)
    config.inference_mode = True
    try:
        config.save_pretrained(str(folder))  # writes adapter_config.json
    finally:
        config.base_model_name_or_path, config.revision, config.inference_mode = kept
    _in_order(folder / ADAPTER)
    return [ADAPTER, ADAPTER_WEIGHTS]


def _base(about: Description) -> tuple[str, str | None]:
    """Name and revision on the hub, or the folder, of the pre-trained model."""
    if about.pretrained.get("source") == "hub":
        return str(about.pretrained["name"]), about.pretrained.get("revision")
    return str(about.backbone["name"]), None


def _in_order(path: Path) -> None:
    """peft keeps layer names in a set, and so writes them in another order each time."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content.get("target_modules"), list):
        content["target_modules"].sort()
    write_whole(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def base_class(model: Any) -> str:
    """Name of the class of the model that an adapter is for."""
    base: nn.Module = model.get_base_model()
    return type(base).__name__
