"""ONNX files give the scores of the learner, in batches of any size; what cannot be traced is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl import export_run, load_predictor
from tangentcl.errors import MissingExtra, ModelError
from tangentcl.serving.onnx_file import _difference

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat and a dog ran home now"


@pytest.fixture
def runtime() -> Any:
    """onnxruntime, with what writes its files."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="ONNX files need the extra 'onnx'")
    return pytest.importorskip("onnxruntime", reason="ONNX files need the extra 'onnx'")


METHODS = {
    "finetune": {"rank": 2},
    "ncm": {},
    "ranpac": {"n_units": 50},
    "slda": {},
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_bundled_network_on_digits(name: str, learn: Any, runtime: Any, tmp_path: Path) -> None:
    run = learn({"name": name, **METHODS[name]})
    made = export_run(run.folder, tmp_path / "export", onnx=True)
    predictor = load_predictor(made.folder, device="cpu")
    raw = [image for task in range(3) for image in run.raw(task)]
    x = predictor.transform.collate([predictor.transform(image, None) for image in raw]).numpy()
    session = runtime.InferenceSession(made.folder / "model.onnx")
    expected = predictor.scores(raw)
    tolerance = 1e-4 * max(1.0, np.abs(expected).max())
    for n in (1, 5, len(x)):
        found = session.run(None, {"pixels": x[:n]})[0]
        assert found.shape == (n, 10)
        np.testing.assert_allclose(found, expected[:n], atol=tolerance, rtol=0)
        assert found.argmax(1).tolist() == expected[:n].argmax(1).tolist()
    about = made.description.onnx
    assert about is not None
    assert (about["checked"], about["on"]) == (30, "test samples of the run")
    assert about["largest_difference"] <= tolerance
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == predictor.class_names
    assert json.loads(facts["transform"])["size"] == 32
    assert "model.onnx" in made.description.files


@pytest.mark.parametrize(
    "name", ["joint", "replay", "loranpac", "ntk_fscil", "ntkcl", "l2p", "dualprompt", "coda_prompt"]
)
def test_further_methods_pass_the_check_of_the_export(
    name: str, learn: Any, runtime: Any, small_backbones: None, tmp_path: Path
) -> None:
    small = {
        "ntkcl": {"rank": 2, "n_prompts": 2},
        "ntk_fscil": {"rank": 2, "n_units": 20},
        "loranpac": {"n_units": 30},
        "l2p": {"n_prompts": 4, "length": 2, "n_chosen": 2},
        "dualprompt": {"expert_length": 3},
        "coda_prompt": {"n_components": 6, "length": 4},
    }
    run = learn({"name": name, **small.get(name, {"rank": 2})})
    made = export_run(run.folder, tmp_path / "export", onnx=True)
    assert made.description.onnx is not None
    assert made.description.onnx["largest_difference"] < 1e-4


@pytest.mark.parametrize("name", ["finetune", "ranpac"])
def test_a_text_encoder_with_batches_and_texts_of_any_length(
    name: str, learn: Any, runtime: Any, tmp_path: Path
) -> None:
    import transformers

    base = tmp_path / "tiny-bert"
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        vocab_size=len(WORDS.split()),
    )
    transformers.BertModel(config).save_pretrained(base)
    (base / "vocab.txt").write_text(WORDS.replace(" ", "\n"), encoding="utf-8")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    texts = ["the cat sat", "a dog ran home now", "the cat ran on the mat and sat", "dog", "a cat sat now on a mat"]
    rows = [f"{text} {extra},{label}" for text in texts for extra, label in (("now", "x"), ("home", "y"), ("mat", "z"))]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    run = learn(
        {"name": name, **METHODS[name]},
        source={"name": str(tmp_path / "texts.csv")},
        stream={"kind": "class_incremental", "n_tasks": 3},
        backbone={"name": str(base)},
        plan={"lr": 0.02},
    )
    made = export_run(run.folder, tmp_path / "export", onnx=True)
    predictor = load_predictor(made.folder, device="cpu")
    session = runtime.InferenceSession(made.folder / "model.onnx")
    for given in (texts, texts[:1], texts[1:3]):
        batch = {key: value.numpy() for key, value in predictor.transform.collate(given).items()}
        found = session.run(None, batch)[0]
        expected = load_predictor(made.folder, device="cpu", batch_size=8).scores(given)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        assert found.argmax(1).tolist() == expected.argmax(1).tolist()


def test_what_depends_on_values_is_refused_and_an_earlier_export_stays(
    learn: Any, runtime: Any, small_backbones: None, tmp_path: Path
) -> None:
    run = learn({"name": "fecam"})
    made = export_run(run.folder, tmp_path / "export")
    with pytest.raises(
        ModelError, match=r"FeCAM cannot be written as ONNX: .* \(data-dependent control flow\)\. Serve"
    ):
        export_run(run.folder, tmp_path / "export", onnx=True, overwrite=True)
    assert load_predictor(made.folder).class_names


def test_what_onnxruntime_lacks_is_refused(learn: Any, runtime: Any, small_backbones: None, tmp_path: Path) -> None:
    run = learn({"name": "nystrom", "n_landmarks": 10})
    with pytest.raises(ModelError, match=r"Nystrom cannot be run by onnxruntime: NotImplemented: .*Acos"):
        export_run(run.folder, tmp_path / "export", onnx=True)
    assert not (tmp_path / "export").exists()


def test_made_up_inputs_stand_in_for_data_that_are_gone(
    learn: Any, runtime: Any, small_backbones: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tangentcl.errors import DataError

    def gone(*_: Any) -> None:
        raise DataError("gone")

    run = learn({"name": "ncm"})
    monkeypatch.setattr("tangentcl.serving.export.build_source", gone)
    made = export_run(run.folder, tmp_path / "export", onnx=True)
    assert made.description.onnx is not None
    assert made.description.onnx["on"] == "made-up inputs"


def test_missing_packages_are_named(
    learn: Any, small_backbones: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = learn({"name": "ncm"})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r"writing an ONNX file needs the package 'onnx'.*tangentcl\[onnx\]"):
        export_run(run.folder, tmp_path / "export", onnx=True)
    assert not (tmp_path / "export").exists()


def test_another_arg_max_is_a_difference_unless_it_is_a_tie() -> None:
    scores = np.array([[1.0, 0.9], [0.0, -np.inf]])
    assert _difference(scores, scores) == 0
    assert _difference(scores[:1, ::-1], scores[:1]) == pytest.approx(0.1)  # as large as what tells them apart
    assert _difference(np.array([[1.0, 1.0 + 1e-6]]), np.array([[1.0 + 1e-6, 1.0]])) < 1e-5
    assert _difference(scores[:1], scores) == np.inf
    assert _difference(np.array([[0.0, 1.0]]), np.array([[0.0, -np.inf]])) == np.inf
    assert torch.isfinite(torch.tensor(_difference(scores + 1e-7, scores)))
