"""Valid files of models, and what reading them gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.readable_data import Make, Read
from tangentcl.nn.hf import from_pretrained
from tangentcl.nn.hf_classifier import load_classifier
from tangentcl.nn.vit import BUNDLED, load_bundled
from tangentcl.nn.weights import read_weights

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat and a dog ran home now"


def weights(name: str) -> Make:
    """A maker of a file of weights."""

    def make(folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
        save_file(tensors, folder / name) if name.endswith(".safetensors") else torch.save(tensors, folder / name)

    return make


def weights_of(name: str) -> Read:
    """Reads a file of weights."""
    return lambda folder: {k: (v.dtype, v.tolist()) for k, v in read_weights(folder / name).items()}


def encoder(folder: Path) -> None:
    """A small text encoder as transformers saves it, with the pooling of sentence-transformers."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=16,
        vocab_size=len(WORDS.split()),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    _vocabulary(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')


def classifier(folder: Path) -> None:
    """A small text classifier as transformers saves it."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=16,
        vocab_size=len(WORDS.split()), id2label={0: "animal", 1: "place"}, label2id={"animal": 0, "place": 1},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    _vocabulary(folder)


def _vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")


def vision(folder: Path) -> None:
    """A small vision encoder as transformers saves it."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 16, "width": 16}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))


def read_backbone(folder: Path) -> Any:
    """The card of a backbone and how it sees samples."""
    found = from_pretrained(str(folder))
    transform = found.eval_transform.describe() if found.eval_transform is not None else None
    return found.card.sha256, found.card.pooling, transform


def read_classifier(folder: Path) -> Any:
    """The names and weights of a classifier."""
    found = load_classifier(folder)
    return found.class_names, {key: value.tolist() for key, value in found.model.state_dict().items()}


def bundled(folder: Path) -> None:
    """The bundled backbone."""
    for name in ("card.json", "bundled.safetensors"):
        shutil.copy(BUNDLED / name, folder / name)


def read_bundled(folder: Path) -> Any:
    """The weights of the bundled backbone."""
    return {key: float(value.sum()) for key, value in load_bundled(folder).state_dict().items()}
