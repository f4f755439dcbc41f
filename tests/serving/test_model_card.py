"""The model card: front matter that YAML reads, and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tangentcl import export_run
from tangentcl.serving.model_card import model_card

pytestmark = pytest.mark.usefixtures("small_backbones")


def test_a_card_says_what_was_learned_and_how_well(learn: Any, tmp_path: Path) -> None:
    run = learn({"name": "ncm", "label": 'mean: "nearest" | class'}, save="tasks")
    made = export_run(run.folder, tmp_path / "export")
    text = (made.folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "tangentcl",
        "pipeline_tag": "image-classification",
        "tags": ["continual-learning", "class-incremental", "ncm"],
        "metrics": ["accuracy"],
    }
    about = made.description
    last = 100 * about.metrics["last_accuracy"]
    assert f"| last accuracy: all test samples after the last task | {last:.1f} |" in body
    assert "10 classes, learned from 50 training samples in 3 tasks, one after another." in body
    assert "| T2 | 4, 5, 6 |" in body
    assert "Most often wrong: " in body
    assert "Licence of the data: CC BY 4.0." in body
    assert 'load_predictor("export")' in body
    assert "peft" not in body
    early = export_run(run.folder, tmp_path / "early", after_task=0)
    card = (early.folder / "README.md").read_text()
    assert "in 1 task, one after another (of 3; this is the learner as it was then)" in card
    assert "last accuracy" not in card


def test_names_of_base_models_and_adapters(learn: Any) -> None:
    from dataclasses import replace

    from tangentcl.records import Record
    from tangentcl.serving.description import Description

    about = Description.of_record(Record.read(learn({"name": "ncm"}).folder))
    hub = replace(about, pretrained={**about.pretrained, "source": "hub", "name": "org/model", "revision": "abc"})
    text = model_card(hub, "e", adapter_for="BertModel")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "org/model"
    assert front["tags"][-2:] == ["peft", "lora"]
    assert "`org/model`, revision abc" in text
    assert 'PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), "e")  # a BertModel' in text
    many = replace(about, tasks=about.tasks * 5, accuracy=about.accuracy * 5, data={"name": "x"}, scenario="task")
    text = model_card(many, "e", adapter_for=None)
    assert "| … | 5 more tasks, see `export.json` |" in text
    assert "The record names no licence of them." in text
    assert ", task=0)" in text
