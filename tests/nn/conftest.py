"""Tiny random models of the architectures the backbones are promised for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = {"image_size": 32, "patch_size": 8}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "cat", "sat", "on", "mat", "and", "a", "dog", "ran", "home", "now"]


def make(kind: str) -> nn.Module:
    import transformers as t

    torch.manual_seed(0)
    no_width = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    config = {
        "vit": lambda: t.ViTConfig(**SIZES, **IMAGES),
        "dinov2": lambda: t.Dinov2Config(**no_width, **IMAGES, mlp_ratio=2),
        "dinov2-swiglu": lambda: t.Dinov2Config(**no_width, **IMAGES, mlp_ratio=2, use_swiglu_ffn=True),
        "dinov2-registers": lambda: t.Dinov2WithRegistersConfig(**no_width, **IMAGES, mlp_ratio=2),
        "clip": lambda: t.CLIPVisionConfig(**SIZES, **IMAGES),
        "clip-two-towers": lambda: t.CLIPConfig(
            vision_config={**SIZES, **IMAGES}, text_config={**SIZES, "bos_token_id": 1, "eos_token_id": 2}
        ),
        "siglip": lambda: t.SiglipVisionConfig(**SIZES, **IMAGES),
        "bert": lambda: t.BertConfig(**SIZES, vocab_size=len(WORDS)),
        "distilbert": lambda: t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=len(WORDS)),
        "roberta": lambda: t.RobertaConfig(**SIZES, vocab_size=len(WORDS)),
        "mpnet": lambda: t.MPNetConfig(**SIZES, vocab_size=len(WORDS)),
        "modernbert": lambda: t.ModernBertConfig(
            **SIZES,
            vocab_size=len(WORDS),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        "t5": lambda: t.T5Config(d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=16, vocab_size=len(WORDS)),
        "deberta": lambda: t.DebertaV2Config(
            **SIZES, vocab_size=len(WORDS), relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]
        ),
    }[kind]()
    return t.AutoModel.from_config(config)


@pytest.fixture
def tiny() -> Callable[[str], nn.Module]:
    """``tiny(kind)``: a small transformers model with random weights, the same each time."""
    return make


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` leaves it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    make("bert").save_pretrained(folder)  # type: ignore[operator]
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-vit")
    make("vit").save_pretrained(folder)  # type: ignore[operator]
    about = {
        "size": {"shortest_edge": 36},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder
