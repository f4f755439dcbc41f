"""The folder of an export: its files, what they say, and folders that are not to be touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tangentcl import export_run, load_predictor
from tangentcl.errors import RecordError
from tangentcl.files import metadata

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture
def run(learn: Any) -> Any:
    return learn({"name": "finetune", "rank": 2, "label": "LoRA"})


def test_files_and_what_they_say(run: Any, tmp_path: Path) -> None:
    made = export_run(run.folder, tmp_path / "a" / "b")
    names = sorted(path.name for path in made.folder.iterdir())
    assert names == ["README.md", "export.json", "learner.safetensors"]
    assert made.sizes == {path.name: path.stat().st_size for path in made.folder.iterdir()}
    learner = made.folder / "learner.safetensors"
    assert metadata(learner.read_bytes()) == {"format": "pt", "method": "Finetune"}
    kept = load_file(run.folder / "checkpoints" / "learner.safetensors")
    assert {k: v.tolist() for k, v in load_file(learner).items()} == {k: v.tolist() for k, v in kept.items()}
    about = json.loads((made.folder / "export.json").read_text())
    assert about["files"] == {"learner.safetensors": hashlib.sha256(learner.read_bytes()).hexdigest()}
    assert (about["kind"], about["format"], about["label"], about["seed"]) == ("tangentcl export", 1, "LoRA", 0)
    assert about["method"]["name"] == "finetune"
    assert about["method"]["rank"] == 2
    assert about["backbone"]["name"] == "bundled"
    assert len(about["pretrained"]["sha256"]) == 64
    assert about["class_names"] == [str(c) for c in range(10)]
    assert [task["classes"] for task in about["tasks"]] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [task["n_train"] for task in about["tasks"]] == [20, 15, 15]
    assert about["data"]["licence"] == "CC BY 4.0"
    assert about["transforms"]["kind"] == "image"
    assert {"tangentcl", "torch", "python"} <= set(about["versions"])
    assert len(about["accuracy"]) == 3
    assert len(about["class_accuracy"]) == 10


def test_two_exports_of_a_run_are_the_same_bytes(run: Any, tmp_path: Path) -> None:
    first, second = (export_run(run.folder, tmp_path / name / "e").folder for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_an_export_needs_neither_record_nor_data(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    made = export_run(run.folder, tmp_path / "export")
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    shutil.move(made.folder, moved)
    shutil.rmtree(run.folder)

    def gone(*_: Any, **__: Any) -> None:
        raise AssertionError("data were asked for")

    monkeypatch.setattr("tangentcl.experiments.build.load", gone)
    assert load_predictor(moved, device="cpu").predict(run.raw(0))


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_an_export(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "export"
    export_run(run.folder, out)
    with pytest.raises(RecordError, match=r"holds an export already. Choose another folder, or replace it"):
        export_run(run.folder, out)
    (out / "model.onnx").write_bytes(b"of an earlier run")
    export_run(run.folder, out, overwrite=True)
    assert not (out / "model.onnx").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RecordError, match=r"holds other files \(notes.txt\); choose an empty or a new folder"):
        export_run(run.folder, out, overwrite=True)
    with pytest.raises(RecordError, match="is a file; give --out the name of a folder"):
        export_run(run.folder, out / "notes.txt")
    with pytest.raises(RecordError, match="the export cannot be written to"):
        export_run(run.folder, out / "notes.txt" / "inside")


def test_a_changed_card_does_no_harm(run: Any, tmp_path: Path) -> None:
    made = export_run(run.folder, tmp_path / "export")
    (made.folder / "README.md").write_text("Ours.")
    assert load_predictor(made.folder).class_names
