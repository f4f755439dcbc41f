"""The adapter of an export is one that peft loads by itself, onto the model that transformers loads by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl import export_run, load_predictor

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat and a dog ran home now"
TEXTS = ["the cat sat", "a dog ran home", "the cat ran", "the dog ran", "a cat sat now", "a dog sat on the mat"]


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with a tokenizer, as ``save_pretrained`` leaves it."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        vocab_size=len(WORDS.split()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three classes of texts."""
    rows = [f"{text} {extra},{label}" for text in TEXTS for extra, label in (("now", "x"), ("home", "y"), ("mat", "z"))]
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def features_of_peft(base: Path, adapter: Path, texts: list[str]) -> np.ndarray:
    """Mean-pooled features, with peft and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).eval()
    batch = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    return ((tokens * mask).sum(1) / mask.sum(1)).numpy()


def features_of_tangentcl(export: Path, texts: list[str]) -> np.ndarray:
    predictor = load_predictor(export, device="cpu")
    with torch.no_grad():
        return predictor.method.backbone(predictor.transform.collate(texts)).numpy()


def test_peft_gives_the_same_features(learn: Any, text_encoder: Path, texts: Path, tmp_path: Path) -> None:
    run = learn(
        {"name": "finetune", "rank": 2, "alpha": 8.0},
        source={"name": str(texts)},
        stream={"kind": "class_incremental", "n_tasks": 3},
        backbone={"name": str(text_encoder), "pooling": "mean"},
        plan={"lr": 0.05},
    )
    made = export_run(run.folder, tmp_path / "export")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(made.sizes)
    assert set(made.description.files) == {"learner.safetensors", "adapter_config.json", "adapter_model.safetensors"}
    ours = features_of_tangentcl(made.folder, TEXTS)
    np.testing.assert_allclose(features_of_peft(text_encoder, made.folder, TEXTS), ours, atol=1e-6)
    plain = features_of_peft(text_encoder, made.folder, TEXTS[:1])
    from transformers import AutoModel

    assert not np.allclose(plain, AutoModel.from_pretrained(text_encoder).embeddings.word_embeddings.weight[0].detach())
    about = json.loads((made.folder / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["inference_mode"]) == (2, 8.0, True)
    assert about["base_model_name_or_path"] == str(text_encoder)
    assert about["target_modules"] == sorted(about["target_modules"])
    assert about["revision"] is None
    from dataclasses import replace

    from tangentcl.serving.adapter import _base

    hub = {**made.description.pretrained, "source": "hub", "name": "org/model", "revision": "abc"}
    assert _base(replace(made.description, pretrained=hub)) == ("org/model", "abc")
    card = (made.folder / "README.md").read_text()
    assert 'base_model: "tiny-bert"' in card
    assert "# a BertModel" in card
    predictor = load_predictor(made.folder, device="cpu")
    for task in range(3):
        np.testing.assert_array_equal(predictor.scores(run.raw(task)), run.scores(task))


def test_an_image_encoder_is_adapted_likewise(learn: Any, tmp_path: Path) -> None:
    import transformers
    from peft import PeftModel

    base = tmp_path / "tiny-vit"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(base)
    run = learn({"name": "ranpac", "n_units": 20, "first_session": "lora", "rank": 2}, backbone={"name": str(base)})
    made = export_run(run.folder, tmp_path / "export")
    model = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(base), made.folder).eval()
    predictor = load_predictor(made.folder, device="cpu")
    x = predictor.transform.collate([predictor.transform(image, None) for image in run.raw(0)[:3]])
    with torch.no_grad():
        ours, theirs = predictor.method.backbone(x), model(pixel_values=x).last_hidden_state[:, 0]
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)


def test_what_has_no_adapter_of_transformers_has_no_adapter_files(
    learn: Any, small_backbones: None, tmp_path: Path
) -> None:
    for keywords in ({"name": "finetune", "rank": 2}, {"name": "ncm"}):
        made = export_run(learn({**keywords, "label": keywords["name"]}).folder, tmp_path / keywords["name"])
        assert not (made.folder / "adapter_config.json").exists()


def test_minilm_with_lora_is_the_same_in_peft(
    learn: Any, data_folder: Path, models_folder: Path, tmp_path: Path
) -> None:
    base = models_folder / "all-MiniLM-L6-v2"
    run = learn(
        {"name": "finetune", "rank": 4},
        source={"name": "clinc150"},
        stream={"kind": "class_incremental", "n_tasks": 2, "train_per_class": 1, "test_per_class": 1},
        backbone={"name": str(base), "pooling": "mean"},
        plan={"lr": 1e-3, "batch_size": 32},
    )
    made = export_run(run.folder, tmp_path / "export")
    texts = ["what is my balance", "set an alarm for seven tomorrow morning", "book a flight"]
    theirs = features_of_peft(base, made.folder, texts)
    np.testing.assert_allclose(theirs, features_of_tangentcl(made.folder, texts), atol=1e-5)
