"""Moments saved at a task's end: against the features, in one process and in two, and damaged files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import tangentcl
from tangentcl.data import ArrayTransform, Task, TaskStream
from tangentcl.errors import ConfigError, RecordError
from tangentcl.forecast.moments import TaskMoments
from tangentcl.methods import NCM, Finetune, Method
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import TrainingPlan, run_stream
from tangentcl.training.moments import MomentsWriter, collect_moments, load_moments, save_moments

PLAN = TrainingPlan(epochs=1, batch_size=16, lr=0.05, device="cpu")


def digits() -> TaskStream:
    stream = tangentcl.class_incremental(tangentcl.load("digits"), n_tasks=5, train_per_class=20, test_per_class=5)
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


def network() -> Backbone:
    """Two linear layers with dropout between, on pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 8))
    return tangentcl.from_module(
        model, lambda m, x: m(x.float() / 16), 8, name="two", modality="array", sample=torch.zeros(1, 8, 8)
    )


def _features(backbone: Backbone, task: Task) -> tuple[Tensor, Tensor]:
    features, labels = extract_features(backbone, task.train_eval)
    return torch.cat([features.double(), torch.ones(len(features), 1)], dim=1), labels


def _relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def test_saved_moments_are_those_of_the_training_samples(tmp_path: Path) -> None:
    stream, backbone = digits(), network()
    method = Finetune(backbone, tune="full")
    method.begin_task(stream[0])
    method.begin_task(stream[1])
    method.train()
    path = save_moments(method, stream[1], tmp_path, sketch="exact", batch_size=7)
    assert path == tmp_path / "moments" / "task-001.safetensors"
    assert backbone.training
    (found,) = load_moments(tmp_path)
    backbone.eval()
    features, labels = _features(backbone, stream[1])
    assert (found.task, found.name, found.n) == (1, stream[1].name, 40)
    assert found.classes.tolist() == [2, 3]
    assert found.counts.tolist() == [20, 20]
    assert _relative(found.features.matrix(), features.T @ features) < 1e-6
    for i, label in enumerate((2, 3)):
        assert _relative(found.means[i], features[labels == label].mean(dim=0)) < 1e-6
    x = torch.stack([torch.as_tensor(stream[1].train_eval[i][0]) for i in range(40)]).float().flatten(1) / 16
    rows = torch.cat([x, torch.ones(40, 1)], dim=1).double()
    assert list(found.layers) == ["model.1", "model.4"]
    assert _relative(found.layers["model.1"].matrix(), rows.T @ rows) < 1e-6


def test_a_run_saves_every_task_and_learns_the_same(tmp_path: Path) -> None:
    results = []
    stale = tmp_path / "moments" / "task-007.safetensors"
    stale.parent.mkdir()
    stale.write_text("of a longer run before")
    for watchers in ([], [MomentsWriter(tmp_path, k=4, layers_k=3)]):
        torch.manual_seed(3)
        results.append(run_stream(Finetune(network(), tune="full"), digits(), PLAN, watchers=watchers))
    assert str(results[0]) == str(results[1])
    found = load_moments(tmp_path)
    assert [moments.task for moments in found] == [0, 1, 2, 3, 4]
    assert [moments.n for moments in found] == [40] * 5
    assert found[0].features.factors()[0].shape == (4, 9)
    assert [moments.task for moments in load_moments(tmp_path, tasks=[3, 1])] == [1, 3]


def test_frozen_layers_are_not_stored_and_methods_without_features_store_nothing(tmp_path: Path) -> None:
    stream = digits()
    method = NCM(network())
    method.backbone.requires_grad_(False)
    method.begin_task(stream[0])
    save_moments(method, stream[0], tmp_path)
    assert load_moments(tmp_path)[0].layers == {}

    class Blind(Method):
        def begin_task(self, task: Task) -> None: ...

        def training_loss(self, x: Any, y: Tensor) -> dict[str, Tensor]:
            return {}

        def end_task(self, task: Task) -> None: ...

        def predict(self, x: Any) -> Tensor:
            return torch.zeros(len(x), 2)

    assert save_moments(Blind(), stream[0], tmp_path / "blind") is None
    assert not (tmp_path / "blind").exists()


def test_damaged_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no moments"):
        load_moments(tmp_path)
    stream, backbone = digits(), network()
    method = Finetune(backbone, tune="head")
    path = save_moments(method, stream[0], tmp_path)
    assert path is not None
    with pytest.raises(RecordError, match=r"task-004.safetensors cannot be read: there is no file"):
        load_moments(tmp_path, tasks=[4])
    whole = path.read_bytes()
    for content in (whole[:-8], whole[:30], b"", whole.replace(b"low_rank_diagonal", b"low_rank_diagonaX")):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=r"task-000.safetensors cannot be read"):
            load_moments(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match="cannot be written"):
        save_moments(method, stream[0], tmp_path / "file")
    with pytest.raises(ConfigError, match="layers_k"):
        collect_moments(backbone, stream[0], layers_k=-1)


def _worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    stream, backbone = digits(), network()
    backbone.requires_grad_(True)
    for kind in ("exact", "low_rank_diagonal"):
        method = Finetune(backbone, tune="full")
        save_moments(method, stream[0], folder / kind, sketch=kind, k=4)
        both = collect_moments(backbone, stream[0], sketch=kind, k=4)
        parts: list[Any] = [None, None]
        dist.all_gather_object(parts, both.features.matrix())
        assert torch.equal(parts[0], parts[1])
    dist.barrier()  # gloo aborts a process whose peer has gone while it still talks
    dist.destroy_process_group()


def test_two_processes_store_what_one_does(tmp_path: Path) -> None:
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    backbone = network()
    backbone.requires_grad_(True)
    one = collect_moments(backbone, digits()[0], sketch="exact")
    (two,) = load_moments(tmp_path / "exact")
    assert (two.n, two.counts.tolist()) == (40, [20, 20])
    assert _relative(two.features.matrix(), one.features.matrix()) < 1e-6
    assert _relative(two.means, one.means) < 1e-6
    assert all(_relative(two.layers[key].matrix(), one.layers[key].matrix()) < 1e-6 for key in one.layers)
    sketched: TaskMoments = load_moments(tmp_path / "low_rank_diagonal")[0]
    exact = one.features.matrix().diagonal()
    assert torch.allclose(sketched.features.matrix().diagonal(), exact, rtol=1e-5)


if __name__ == "__main__":
    _worker(int(sys.argv[1]), Path(sys.argv[2]))
