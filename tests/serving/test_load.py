"""Loading from exports and records: which learner, on what, and every way in which it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tangentcl import export_run, load_predictor
from tangentcl.errors import ConfigError, ModelError, RecordError
from tangentcl.methods import Method
from tangentcl.methods.ncm import NCM
from tangentcl.records import write_checksums

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture
def run(learn: Any) -> Any:
    return learn({"name": "ncm"}, save="tasks")


@pytest.fixture
def export(run: Any, tmp_path: Path) -> Path:
    return export_run(run.folder, tmp_path / "export").folder


def test_the_learner_after_an_earlier_task(run: Any, tmp_path: Path) -> None:
    made = export_run(run.folder, tmp_path / "early", after_task=1)
    predictor = load_predictor(made.folder, device="cpu")
    assert predictor.class_names == [str(c) for c in range(7)]
    assert predictor.task_names == ["T1", "T2"]
    assert predictor.scores(run.raw(0)).shape == (12, 7)
    np.testing.assert_allclose(predictor.scores(run.raw(0)), run.scores(0)[:, :7], atol=1e-6)
    assert load_predictor(run.folder, after_task=0).class_names == ["0", "1", "2", "3"]
    with pytest.raises(RecordError, match="has the tasks 0 to 2, there is no task 3"):
        load_predictor(run.folder, after_task=3)
    with pytest.raises(ConfigError, match="is an export and holds one learner"):
        load_predictor(made.folder, after_task=0)


def test_the_precision_of_the_run_is_kept(learn: Any, tmp_path: Path) -> None:
    run = learn({"name": "finetune", "rank": 2}, plan={"precision": "bf16", "eval_batch_size": 4})
    predictor = load_predictor(export_run(run.folder, tmp_path / "e").folder, device="cpu")
    assert (predictor.precision, predictor.batch_size) == ("bf16", 4)
    from tangentcl.training import Runtime
    from tangentcl.training.evaluate import predicted_scores

    runtime = Runtime(device="cpu", precision="bf16")
    expected = predicted_scores(run.method, run.stream[2].test, runtime, batch_size=4)
    np.testing.assert_array_equal(predictor.scores(run.raw(2)), expected.numpy())
    full = load_predictor(run.folder, device="cpu", precision="fp32").scores(run.raw(2))
    assert not np.array_equal(full, expected.numpy())


def test_domains_and_tasks_keep_their_classes(learn: Any) -> None:
    domains = {"kind": "domain_incremental", "rotations": [0, 90], "train_per_class": 2, "test_per_class": 2}
    run = learn({"name": "slda"}, stream=domains)
    predictor = load_predictor(run.folder, device="cpu")
    assert len(predictor.class_names) == 10
    np.testing.assert_array_equal(predictor.scores(run.raw(1)).astype(np.float32), run.scores(1))


def test_a_record_without_learner_says_how_to_get_one(learn: Any, tmp_path: Path) -> None:
    run = learn({"name": "ncm"}, save=False)
    with pytest.raises(
        RecordError, match=r"does not hold the learner after task 2: it was run with save = false\. Run"
    ):
        load_predictor(run.folder)
    with pytest.raises(RecordError, match="save = false"):
        export_run(run.folder, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    with pytest.raises(RecordError, match=r'Run it again with save = "tasks": tangentcl run FILE --set'):
        load_predictor(run.folder, after_task=0)


def test_a_learner_that_was_not_there_yet(learn: Any) -> None:
    run = learn({"name": "joint", "rank": 2}, save="tasks")
    with pytest.raises(RecordError, match="joint may have learned nothing there"):
        load_predictor(run.folder, after_task=1)
    assert len(load_predictor(run.folder, after_task=2).class_names) == 10


def test_an_unfinished_run_is_refused(run: Any) -> None:
    status = json.loads((run.folder / "status.json").read_text())
    status |= {"status": "interrupted", "reason": "stopped by the user"}
    (run.folder / "status.json").write_text(json.dumps(status))
    write_checksums(run.folder)
    with pytest.raises(RecordError, match=r"is not done but interrupted: stopped by the user. Repeat its command"):
        load_predictor(run.folder)


def test_other_folders_are_no_exports(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere\. Give an export"):
        load_predictor(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"is neither an export \(it has no export.json\) nor the record of a run"):
        load_predictor(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_description_cut_off(export: Path, cut: int) -> None:
    path = export / "export.json"
    path.write_bytes(path.read_bytes().strip()[:cut])
    with pytest.raises(ModelError, match=r"export.json is damaged: .* Copy the export again"):
        load_predictor(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "does not have the checksum it was written with"),
        ({"kind": "other"}, "does not describe an export of tangentcl"),
        ({"format": 2}, "has format 2, this version of tangentcl reads 1"),
    ],
)
def test_a_description_that_was_changed(export: Path, change: dict[str, Any], message: str) -> None:
    path = export / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        load_predictor(export)


def test_damaged_and_missing_tensors(export: Path) -> None:
    path = export / "learner.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"learner.safetensors is damaged: its checksum is not the one in export.json"):
        load_predictor(export)
    save_file(load_file_of(whole, path), path)
    with pytest.raises(ModelError, match=r"learner.safetensors is damaged"):
        load_predictor(export)
    path.unlink()
    with pytest.raises(ModelError, match=r"learner.safetensors is missing; the export needs it"):
        load_predictor(export)


def load_file_of(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    path.write_bytes(content)
    return load_file(path)


def test_other_pretrained_weights_under_the_same_name(
    export: Path, run: Any, small_vit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentcl.experiments.build.backbone", lambda name="bundled", **_: small_vit(seed=8))
    for folder in (export, run.folder):
        with pytest.raises(
            ModelError, match=r"has other weights than those that were trained on: their checksum was \w"
        ):
            load_predictor(folder)


def test_weights_that_lie_elsewhere(export: Path, small_vit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def there(name: str = "bundled", **_: Any) -> Any:
        asked.append(name)
        if name == "bundled":
            raise ModelError("nothing there.")
        return small_vit()

    monkeypatch.setattr("tangentcl.experiments.build.backbone", there)
    with pytest.raises(ModelError, match=r"nothing there\. Where do its weights lie now\? backbone="):
        load_predictor(export)
    assert load_predictor(export, backbone="elsewhere").class_names[0] == "0"
    assert asked == ["bundled", "elsewhere"]


def test_code_of_a_backbone_runs_only_where_it_is_trusted(learn: Any) -> None:
    run = learn({"name": "ncm"}, backbone={"trust_remote_code": True})
    with pytest.raises(ModelError, match=r"runs Python code of its own. If you trust it"):
        load_predictor(run.folder)
    assert load_predictor(run.folder, trust_remote_code=True).class_names


class ReadsSamples(NCM):
    """Looks at samples where only classes are promised."""

    def begin_task(self, task: Any) -> None:
        super().begin_task(task)
        _ = task.train[0]


def test_a_method_that_begins_with_samples_is_told_where_they_belong(
    learn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods: dict[str, type[Method]] = {"ncm": ReadsSamples}
    monkeypatch.setattr("tangentcl.experiments.build.method_class", lambda name: methods[name])
    run = learn({"name": "ncm"})
    with pytest.raises(ModelError, match=r"ReadsSamples.begin_task\(0\) failed without samples \(IndexError"):
        load_predictor(run.folder)
