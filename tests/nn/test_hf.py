from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from tangentcl.errors import ModelError
from tangentcl.nn import backbone
from tangentcl.nn.hf import from_transformers

VISION = ["vit", "dinov2", "dinov2-swiglu", "dinov2-registers", "clip", "clip-two-towers", "siglip"]
TEXT = ["bert", "distilbert", "roberta", "mpnet", "deberta", "modernbert"]
BEFORE_5 = version("transformers") < "5"
Tiny = Callable[[str], nn.Module]


@pytest.mark.parametrize("kind", VISION)
def test_vision_features(tiny: Tiny, kind: str) -> None:
    made = from_transformers(tiny(kind))
    assert made(torch.randn(3, 3, 32, 32)).shape == (3, made.width) == (3, 32)
    assert made.card.pooling == ("pooled" if kind == "siglip" else "cls")
    assert not any(p.requires_grad for p in made.parameters())
    assert not made.training


@pytest.mark.parametrize(
    ("kind", "prefix"), [("vit", 1), ("dinov2", 1), ("dinov2-registers", 5), ("clip", 1), ("siglip", 0)]
)
def test_mean_pooling_takes_patches_only(tiny: Tiny, kind: str, prefix: int) -> None:
    made, x = from_transformers(tiny(kind), pooling="mean"), torch.randn(2, 3, 32, 32)
    tokens = made.model(pixel_values=x).last_hidden_state  # [B, prefix + 16, d]
    if kind == "clip":
        tokens = made.model.post_layernorm(tokens)
    assert tokens.shape[1] == prefix + 16
    torch.testing.assert_close(made(x), tokens[:, prefix:].mean(1))


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_pooled_is_what_the_model_pools_itself(tiny: Tiny, kind: str) -> None:
    x, model = torch.randn(2, 3, 32, 32), tiny(kind).eval()
    expected = model(pixel_values=x).pooler_output
    torch.testing.assert_close(from_transformers(tiny(kind), pooling="pooled")(x), expected)
    if kind != "siglip":  # the class token after the norm
        torch.testing.assert_close(from_transformers(tiny(kind), pooling="cls")(x), expected)


def test_a_model_without_class_token_says_so(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="class token"):
        from_transformers(tiny("siglip"), pooling="cls")


def test_unused_pooling_heads_are_removed(tiny: Tiny) -> None:
    assert not any("pooler" in name for name in from_transformers(tiny("bert")).state_dict())
    assert not any("pooler" in name for name in from_transformers(tiny("vit")).state_dict())
    assert not any(".head." in name for name in from_transformers(tiny("siglip"), pooling="mean").state_dict())


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip"])
def test_another_image_size(tiny: Tiny, kind: str) -> None:
    made = from_transformers(tiny(kind), image_size=48, pooling="mean")
    assert made(torch.randn(2, 3, 48, 48)).shape == (2, 32)
    assert made.eval_transform.describe()["size"] == 48  # type: ignore[union-attr]


def texts(kind: str) -> dict[str, torch.Tensor]:
    pad = 1 if kind in ("roberta", "mpnet") else 0
    ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 9, 10, 3, pad, pad], [2, 11, 3, pad, pad, pad]])
    return {"input_ids": ids, "attention_mask": (torch.arange(6) < torch.tensor([[6], [4], [3]])).long()}


@pytest.mark.parametrize("kind", TEXT)
def test_text_features_equal_the_plain_call(tiny: Tiny, kind: str) -> None:
    made, x = from_transformers(tiny(kind), pooling="cls"), texts(kind)
    torch.testing.assert_close(made(x), made.model(**x).last_hidden_state[:, 0])
    plain = kind in ("deberta", "modernbert") or BEFORE_5
    assert made.features.additive_mask is not plain  # type: ignore[union-attr]
    assert ("attention mask passed as [B, N]" in " ".join(made.card.notes)) is plain


@pytest.mark.parametrize("kind", TEXT)
def test_padding_does_not_change_a_text(tiny: Tiny, kind: str) -> None:
    made, x = from_transformers(tiny(kind), pooling="mean"), texts(kind)
    alone = {name: tensor[1:2, :4] for name, tensor in x.items()}
    torch.testing.assert_close(made(x)[1:2], made(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 does not take a ready-made mask")
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "mpnet"])
def test_per_sample_jacobians_with_a_padded_batch(tiny: Tiny, kind: str) -> None:
    made, x = from_transformers(tiny(kind)), texts(kind)
    name = next(n for n, p in made.named_parameters() if p.ndim == 2 and ("query" in n or "q_lin" in n or ".q." in n))
    chosen = {name: made.get_parameter(name).detach()}

    def features(weights: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return functional_call(made, weights, ({"input_ids": ids[None], "attention_mask": mask[None]},))[0, :2]

    rows = vmap(jacrev(features), (None, 0, 0))(chosen, x["input_ids"], x["attention_mask"])[name]
    one = jacrev(features)(chosen, x["input_ids"][1, :4], x["attention_mask"][1, :4])[name]
    torch.testing.assert_close(rows[1], one, rtol=1e-4, atol=1e-6)


def test_normalised_features(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"), normalize=True)
    torch.testing.assert_close(made(texts("bert")).norm(dim=1), torch.ones(3))


def test_wrong_inputs_are_named(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="text backbone eats"):
        from_transformers(tiny("bert"))(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ModelError, match=r"image backbone eats tensors \[B, 3, H, W\]"):
        from_transformers(tiny("vit"))(texts("bert"))


def test_a_model_that_is_no_encoder_says_so(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match=r"T5Model could not be used as an encoder .* from_module"):
        from_transformers(tiny("t5"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(tiny: Tiny, dtype: torch.dtype) -> None:
    made, x = from_transformers(tiny("bert")), texts("bert")
    expected = made(x)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(made(x).float(), expected, rtol=0.05, atol=0.05)


def test_a_hub_name_from_the_cache(bert_folder: Path, tmp_path: Path) -> None:
    commit, repository = "0123456789" * 4, tmp_path / "models--us--tiny"
    shutil.copytree(bert_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "from tangentcl.nn import backbone; c = backbone('us/tiny').card; print(c.name, c.source, c.revision)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"us/tiny hub {commit}\n", done.stderr


def test_longest_text(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="exceeds the 510 positions"):  # RoBERTa reserves two of its 512
        from_transformers(tiny("roberta"), max_length=512)


def test_text_folder(bert_folder: Path) -> None:
    made = backbone(str(bert_folder), max_length=5)
    card = made.card
    assert (card.source, card.modality, card.pooling, card.revision) == ("folder", "text", "mean", None)
    assert any("default for texts" in note for note in card.notes)
    x = made.eval_transform.collate(["the cat sat", "the dog ran home and sat on the mat"])  # type: ignore[union-attr]
    assert x["input_ids"].shape == (2, 5)
    assert made(x).shape == (2, 32)
    assert backbone(f"hf:{bert_folder}").card.sha256 == card.sha256
    json.dumps(card.describe())


def test_pooling_and_length_from_sentence_transformers_files(bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "m")
    (folder / "1_Pooling").mkdir()
    about = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(about))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    made = backbone(str(folder))
    assert made.card.pooling == "cls"
    assert made.eval_transform.describe()["max_length"] == 7  # type: ignore[union-attr]
    about |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="Pass pooling="):
        backbone(str(folder))


def test_vision_folder_takes_the_preprocessor(vit_folder: Path, tmp_path: Path) -> None:
    about = backbone(str(vit_folder)).eval_transform.describe()  # type: ignore[union-attr]
    assert about["size"] == 32
    assert about["mean"] == [0.1, 0.2, 0.3]
    assert about["std"] == [0.5, 0.6, 0.7]
    assert about["interpolation"] == "bilinear"
    assert about["crop_ratio"] == pytest.approx(32 / 36)
    folder = shutil.copytree(vit_folder, tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    made = backbone(str(folder))
    assert made.eval_transform.describe()["mean"] == [0.5, 0.5, 0.5]  # type: ignore[union-attr]
    assert any("mean and std 0.5" in note for note in made.card.notes)


def test_torch_weights_are_read_without_running_code(bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    expected = backbone(str(bert_folder))
    torch.save(dict(backbone(str(bert_folder)).model.state_dict()), folder / "pytorch_model.bin")
    assert backbone(str(folder)).card.sha256 == expected.card.sha256
    torch.save({"weight": torch.nn.Linear(1, 1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded"):
        backbone(str(folder))


def test_weights_of_ones_own(bert_folder: Path, tmp_path: Path) -> None:
    state = backbone(str(bert_folder)).model.state_dict()
    path = tmp_path / "own.pt"
    torch.save({name: tensor + 1 for name, tensor in state.items()}, path)
    with pytest.raises(ModelError, match="missing"):
        backbone(str(bert_folder), weights=path)  # the file lacks the pooler of the architecture
    made = backbone(str(bert_folder), weights=bert_folder / "model.safetensors")
    assert made.card.sha256 == backbone(str(bert_folder)).card.sha256
    assert "weights from model.safetensors" in made.card.notes


def test_weights_left_random_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(bert_folder, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith("pooler")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    backbone(str(folder))  # the pooler is not used
    with pytest.raises(ModelError, match="would be random"):
        backbone(str(folder), pooling="pooled")
    del kept["encoder.layer.0.output.dense.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder.layer.0.output.dense.weight"):
        backbone(str(folder))


def test_a_damaged_folder_is_one_clear_error(bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="complete transformers model"):
        backbone(str(folder))
    with pytest.raises(ModelError, match="complete transformers model"):
        backbone(str(tmp_path))
    with pytest.raises(ModelError, match="has no revision"):
        backbone(str(bert_folder), revision="main")


def test_a_hub_name_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ModelError, match=r"couldn't connect to the hub Expected .*local folder.*HF_HUB_OFFLINE=1"):
        backbone("somebody/some-model")
    with pytest.raises(ModelError, match="Did you mean 'bundled'"):
        backbone("bundeld")
    with pytest.raises(ModelError, match=r"prefix 'tim' is unknown. Did you mean 'timm'"):
        backbone("tim:vit_base_patch16_224")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", b"{", r"preprocessor_config\.json cannot be used: it is not JSON"),
        ("preprocessor_config.json", b"[]", r"preprocessor_config\.json must hold a JSON object, got list"),
        ("preprocessor_config.json", b'{"size": "big"}', "an image size from 1 to 16384 pixels, got 'big'"),
        ("preprocessor_config.json", b'{"size": 1000000000}', "an image size from 1 to 16384 pixels, got 1000000000"),
        ("preprocessor_config.json", b'{"image_mean": "x", "size": 8}', "image_mean must be a list of numbers"),
        ("preprocessor_config.json", b'{"image_std": [0, 0, 0], "size": 8}', "could not be loaded"),
        ("config.json", b"[" * 100_000, "could not be loaded"),
        ("config.json", b"null", "could not be loaded"),
    ],
)
def test_damaged_small_files_of_a_model_are_one_error(
    vit_folder: Path, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "m")
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=message) as raised:
        backbone(str(folder))
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("length", ["7", 0, -3, True, 1.5])
def test_a_length_that_is_none_is_refused(bert_folder: Path, tmp_path: Path, length: object) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "m")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(ModelError, match=r"max_seq_length in sentence_bert_config\.json must be 1 or more"):
        backbone(str(folder))
