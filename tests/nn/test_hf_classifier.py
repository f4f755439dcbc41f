"""Classifiers of transformers from a folder: the same logits as transformers gives, and folders that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tangentcl.errors import ModelError
from tangentcl.nn.hf_classifier import classifier_layer, extend_rows, load_classifier

TEXTS = ["the cat sat on the mat", "a dog ran home"]


@pytest.fixture
def copy(classifier_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier_folder, tmp_path / "copy"))


def adapted(folder: Path, out: Path, *, n_labels: int = 3) -> nn.Module:
    """A LoRA adapter with a trained head of its own for the model in ``folder``, saved in ``out``."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = n_labels
    base = AutoModelForSequenceClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    model.save_pretrained(out)
    return model.eval()


def test_logits_and_names_are_those_of_transformers(classifier_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = load_classifier(classifier_folder)
    assert (found.class_names, found.adapter, found.model.training) == (("animal", "place"), False, False)
    tokens = AutoTokenizer.from_pretrained(classifier_folder)(TEXTS, padding=True, return_tensors="pt")
    expected = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()(**tokens).logits
    assert torch.equal(found.model(**found.transform.collate(TEXTS)).logits, expected)
    assert all(p.requires_grad for p in found.model.parameters())
    assert found.transform.collate(["cat " * 100])["input_ids"].shape == (1, 24)  # what its positions hold


def test_an_adapter_lies_on_its_base_and_alone_trains(classifier_folder: Path, tmp_path: Path) -> None:
    model = adapted(classifier_folder, tmp_path / "adapter")
    found = load_classifier(tmp_path / "adapter")
    assert (found.class_names, found.adapter) == (("0", "1", "2"), True)
    batch = found.transform.collate(TEXTS)
    torch.testing.assert_close(found.model(**batch).logits, model(**batch).logits)
    trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
    assert all("lora" in name or "modules_to_save" in name for name in trained)
    head = classifier_layer(found.model, batch)
    assert head is not None
    assert (head.weight.shape, head.weight.requires_grad) == ((3, 16), True)


def test_an_adapter_whose_base_is_not_here_says_so(classifier_folder: Path, tmp_path: Path) -> None:
    adapted(classifier_folder, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "someone/model"}))
    with pytest.raises(ModelError, match="is for the model 'someone/model', which is no local folder"):
        load_classifier(tmp_path)
    path.write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json is damaged"):
        load_classifier(tmp_path)


def test_rows_are_added_and_the_old_ones_stay(classifier_folder: Path) -> None:
    found = load_classifier(classifier_folder)
    batch = found.transform.collate(TEXTS)
    before = found.model(**batch).logits
    head = classifier_layer(found.model, batch)
    assert head is not None
    torch.manual_seed(0)
    extend_rows(head, 40)
    after = found.model(**batch).logits
    assert after.shape == (2, 40)
    torch.testing.assert_close(after[:, :2], before)
    assert 0.015 < head.weight[2:].std().item() < 0.025
    assert not head.bias[2:].any()


def test_a_model_whose_logits_no_layer_makes_has_no_classifier_layer() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> object:
            return type("Out", (), {"logits": 2 * self.layer(x)})()

    assert classifier_layer(Odd(), {"x": torch.ones(1, 2)}) is None


def test_a_folder_that_is_not_there_or_no_classifier_is_one_clear_error(copy: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere.*hf download"):
        load_classifier(copy / "nowhere")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    with pytest.raises(ModelError, match="does not choose one of several classes \\(multi_label_classification\\)"):
        load_classifier(copy)
    weights = copy / "model.safetensors"
    (copy / "config.json").write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"could not be loaded: .*Nothing is downloaded"):
        load_classifier(copy)
    weights.unlink()
    with pytest.raises(ModelError, match=r"could not be loaded: .*Nothing is downloaded"):
        load_classifier(copy)


def test_an_encoder_without_a_trained_head_is_refused(copy: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(copy).save_pretrained(copy)
    with pytest.raises(ModelError, match=r"no weights for classifier.bias, classifier.weight.*encoder alone is none"):
        load_classifier(copy)


def test_a_folder_without_tokenizer_says_so(copy: Path) -> None:
    (copy / "vocab.txt").unlink()
    with pytest.raises(ModelError, match=r"no vocabulary of a tokenizer in .*copy"):
        load_classifier(copy)


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (copy / "own.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Own: ...\n")

    def asked(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_classifier(copy)
    assert not (copy / "ran").exists()
