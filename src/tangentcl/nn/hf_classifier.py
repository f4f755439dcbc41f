"""Sequence classifiers of Hugging Face transformers from a local folder, with a peft adapter where there is one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.data.samples import Transform
from tangentcl.data.transforms import TokenTransform
from tangentcl.documents import Malformed, parse_json
from tangentcl.errors import ModelError
from tangentcl.nn.hf import position_limit
from tangentcl.nn.hf_files import quietly
from tangentcl.nn.weights import reason

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)  # without one transformers makes a tokenizer that knows no word
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # not given, transformers asks on the terminal
NEW_ROWS = 0.02  # standard deviation of rows added to a classifier, as transformers draws a fresh one


@dataclass(frozen=True)
class HFClassifier:
    """A model that maps token ids to logits, as it was saved.

    Attributes:
        model: called as ``model(input_ids=..., attention_mask=...).logits`` -> [B, C]; in evaluation mode.
        transform: texts -> batches.
        class_names: of the C outputs; "0", "1", ... where the folder names none.
        adapter: whether a peft adapter lies on top, whose parameters alone require grad.
    """

    model: nn.Module
    transform: Transform
    class_names: tuple[str, ...]
    adapter: bool


def load_classifier(folder: str | Path) -> HFClassifier:
    """The classifier in a folder that ``save_pretrained`` wrote: a whole model, or a peft adapter for a local one.

    Nothing is downloaded, and no code that comes with a model is run. The tokenizer comes from the same folder, or from
    that of the adapter's base model.

    Raises:
        ModelError: no such folder, an incomplete or damaged one, a model that is not a classifier with one label per
            text, or an adapter whose base model is not a local folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {folder}. Expected a local folder with a transformers model; a model on the hub has "
            "to be downloaded first: hf download NAME --local-dir FOLDER"
        )
    base = _base_of(folder) if (folder / ADAPTER).is_file() else folder
    adapter = base is not folder
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
            rows = _adapter_rows(folder) if adapter else None
            config = _config(folder, base, rows)
            model = _model(base, config, fresh_head=rows is not None)
            if adapter:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
            tokenizer = _tokenizer(folder, base)
    except Exception as error:  # of damaged files transformers raises AttributeError, TypeError, IndexError and others
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"the classifier in {folder} could not be loaded: {reason(error)} Nothing is downloaded: check that the "
            "folder holds config.json, model.safetensors and the tokenizer's files."
        ) from error
    lengths = (position_limit(model), tokenizer.model_max_length)
    length = min((int(n) for n in lengths if n is not None and n < 1e9), default=512)
    return HFClassifier(model.float().eval(), TokenTransform(tokenizer, length), _class_names(config), adapter)


@torch.no_grad()
def classifier_layer(model: nn.Module, batch: Any) -> nn.Linear | None:
    """The linear layer whose output is the model's logits on ``batch``, whatever its name; None if there is none."""
    calls: dict[nn.Linear, Tensor] = {}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda layer, _, output: calls.update({layer: output})) for layer in layers]
    try:
        logits = model(**batch).logits
    finally:
        for hook in hooks:
            hook.remove()
    found = [layer for layer, output in calls.items() if output.shape == logits.shape and torch.equal(output, logits)]
    return found[-1] if found else None


def extend_rows(layer: nn.Linear, n_outputs: int) -> None:
    """Append rows to a classifier in place, as `tangentcl.nn.GrowingLinear.grow` does it for its own kind.

    New weights are normal with deviation 0.02 (global torch generator), new biases zero; old rows stay bit-equal.

    >>> layer = nn.Linear(4, 2)
    >>> extend_rows(layer, 3)
    >>> layer(torch.zeros(1, 4)).shape, layer.bias[2].item()
    (torch.Size([1, 3]), 0.0)
    """
    new = torch.randn(n_outputs - layer.out_features, layer.in_features) * NEW_ROWS
    rows = torch.cat([layer.weight.detach(), new.to(layer.weight)])
    layer.weight = nn.Parameter(rows, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        biases = torch.cat([layer.bias.detach(), layer.bias.new_zeros(len(new))])
        layer.bias = nn.Parameter(biases, requires_grad=layer.bias.requires_grad)
    layer.out_features = n_outputs


def _base_of(folder: Path) -> Path:
    """Folder of the model that the adapter in ``folder`` is for."""
    try:
        about = parse_json((folder / ADAPTER).read_bytes())
    except (OSError, Malformed) as error:
        raise ModelError(f"{folder / ADAPTER} is damaged: {error}") from error
    name = about.get("base_model_name_or_path") if isinstance(about, dict) else None
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / ADAPTER} names no base model (base_model_name_or_path).")
    for place in (Path(name), folder / name):
        if place.is_dir():
            return place
    raise ModelError(
        f"the adapter in {folder} is for the model {name!r}, which is no local folder. Download it, and write the "
        f"folder's path as base_model_name_or_path into {ADAPTER}."
    )


def _config(folder: Path, base: Path, rows: int | None) -> Any:
    """The config of the classifier; with ``rows`` outputs, where an adapter brings a head of its own."""
    from transformers import AutoConfig

    if folder is base or (folder / "config.json").is_file():
        config = AutoConfig.from_pretrained(str(folder), **LOCAL)
    else:
        config = AutoConfig.from_pretrained(str(base), **LOCAL)
        if rows is not None and rows != config.num_labels:
            config.num_labels = rows
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or f"{config.num_labels} output"
        raise ModelError(f"the model in {folder} does not choose one of several classes ({kind}), which is needed.")
    return config


def _adapter_rows(folder: Path) -> int | None:
    """Rows of the classifier saved with an adapter, None where it brings none."""
    from safetensors import safe_open

    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder} holds an adapter's config but no {ADAPTER_WEIGHTS}.")
    with safe_open(path, framework="pt") as file:
        heads = [k for k in file.keys() if k.endswith(("classifier.weight", "score.weight", "out_proj.weight"))]  # noqa: SIM118
        return file.get_slice(heads[-1]).get_shape()[0] if heads else None


def _model(base: Path, config: Any, *, fresh_head: bool) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        str(base),
        config=config,
        **LOCAL,
        weights_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=fresh_head,  # of the head alone, which the adapter brings
    )
    missing = sorted(map(str, info["missing_keys"]))
    if missing and not fresh_head:
        raise ModelError(
            f"the files in {base} hold no weights for {', '.join(missing[:3])}, so the answers would be random. "
            "Expected a classifier that was trained and saved; an encoder alone is none."
        )
    if info.get("error_msgs"):
        raise ModelError(f"the weights in {base} do not fit its config: {info['error_msgs'][0]}")
    return model


def _tokenizer(folder: Path, base: Path) -> Any:
    from transformers import AutoTokenizer

    for place in (folder, base):
        if any((place / name).is_file() for name in VOCABULARIES):
            return AutoTokenizer.from_pretrained(str(place), **LOCAL)
    raise ModelError(
        f"there is no vocabulary of a tokenizer in {folder} ({', '.join(VOCABULARIES[:3])}, ...). Save it beside the "
        "model: tokenizer.save_pretrained(folder)"
    )


def _class_names(config: Any) -> tuple[str, ...]:
    """Names of the outputs; numbers where the config has none but transformers' own LABEL_0, LABEL_1, ..."""
    names = tuple(str(config.id2label.get(i, i)) for i in range(config.num_labels))
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return tuple(map(str, range(len(names)))) if unnamed else names
