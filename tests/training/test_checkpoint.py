"""The trained learner as a file: what is in it, and files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tangentcl.data import TaskStream
from tangentcl.errors import ModelError, RecordError
from tangentcl.files import sealed
from tangentcl.methods import NCM, Finetune, Method, Replay
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TrainingPlan, run_stream
from tangentcl.training.checkpoint import (
    LEARNER,
    LearnerKeeper,
    learned_tensors,
    load_learner,
    remove_learners,
    restore_learner,
    save_learner,
    task_folder,
)
from tangentcl.training.stream import learn_task

PLAN = TrainingPlan(epochs=1, batch_size=16, lr=0.05, device="cpu")
Make = Callable[[], Backbone]


def begun(method: Method, stream: TaskStream) -> Method:
    for task in stream:
        method.begin_task(task)
    return method


@pytest.fixture
def trained(tiny_stream: TaskStream, tiny_backbone: Make) -> Method:
    method = Finetune(tiny_backbone(), rank=2)
    run_stream(method, tiny_stream, PLAN)
    return method


def test_a_learner_comes_back_and_predicts_the_same(
    trained: Method, tiny_stream: TaskStream, tiny_backbone: Make, tmp_path: Path
) -> None:
    path = save_learner(trained, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / LEARNER
    assert sorted(p.name for p in path.parent.iterdir()) == [LEARNER]
    again = load_learner(begun(Finetune(tiny_backbone(), rank=2), tiny_stream), path.parent)
    x = next(tiny_stream[0].test.batches(100))[0]
    trained.eval(), again.eval()
    assert torch.equal(trained.predict(x), again.predict(x))


def test_frozen_weights_are_not_in_the_file(trained: Method, tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    names = set(learned_tensors(trained))
    assert any("lora" in name for name in names)
    assert not any("base_layer" in name or "embed" in name for name in names)
    ncm = NCM(tiny_backbone())
    run_stream(ncm, tiny_stream, PLAN)
    assert sorted(learned_tensors(ncm)) == ["head.counts", "head.sums"]


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_named(
    trained: Method, tiny_stream: TaskStream, tiny_backbone: Make, tmp_path: Path, cut: int
) -> None:
    path = save_learner(trained, tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    fresh = begun(Finetune(tiny_backbone(), rank=2), tiny_stream)
    before = {key: value.clone() for key, value in learned_tensors(fresh).items()}
    with pytest.raises(ModelError, match=rf"{LEARNER} is damaged: "):
        load_learner(fresh, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in learned_tensors(fresh).items())


def test_a_missing_file_says_how_to_get_one(tiny_backbone: Make, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"no trained learner at .*learner.safetensors; was it saved \(save = true\)\?"
    ):
        load_learner(NCM(tiny_backbone()), tmp_path)


def test_other_methods_and_shapes_are_refused(
    trained: Method, tiny_stream: TaskStream, tiny_backbone: Make, tmp_path: Path
) -> None:
    save_learner(trained, tmp_path)
    with pytest.raises(ModelError, match=r"holds \d+ unknown tensors, among them .*another method"):
        load_learner(begun(NCM(tiny_backbone()), tiny_stream), tmp_path)
    with pytest.raises(ModelError, match=r"lacks \d+ tensors, among them .*another method or options"):
        load_learner(begun(Finetune(tiny_backbone(), rank=2, targets=("query", "key", "value")), tiny_stream), tmp_path)
    with pytest.raises(ModelError, match=r"holds \d+ unknown tensors, among them .*another method"):
        load_learner(begun(Finetune(tiny_backbone(), tune="head"), tiny_stream), tmp_path)
    with pytest.raises(ModelError, match=r"has shape \(2, 16\), here it is \(4, 16\)"):
        load_learner(begun(Finetune(tiny_backbone(), rank=4), tiny_stream), tmp_path)
    unfinished = Finetune(tiny_backbone(), rank=2)
    unfinished.begin_task(tiny_stream[0])
    with pytest.raises(ModelError, match=r"head.* has shape \(6.*\), here it is \(2"):
        load_learner(unfinished, tmp_path)


def test_a_partial_load_changes_nothing(
    trained: Method, tiny_stream: TaskStream, tiny_backbone: Make, tmp_path: Path
) -> None:
    path = save_learner(trained, tmp_path)
    tensors = load_file(path)
    last = sorted(tensors)[-1]
    path.write_bytes(sealed(save({**tensors, last: torch.zeros(3, 5, 7)})))
    fresh = begun(Finetune(tiny_backbone(), rank=2), tiny_stream)
    before = {key: value.clone() for key, value in learned_tensors(fresh).items()}
    with pytest.raises(ModelError, match="has shape"):
        load_learner(fresh, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in learned_tensors(fresh).items())


def test_the_memory_of_replay_travels_along(tiny_stream: TaskStream, tiny_backbone: Make, tmp_path: Path) -> None:
    method = Replay(tiny_backbone(), rank=2, budget=12)
    run_stream(method, tiny_stream, PLAN)
    save_learner(method, tmp_path)
    again = load_learner(begun(Replay(tiny_backbone(), rank=2, budget=12), tiny_stream), tmp_path)
    assert isinstance(again, Replay)
    assert torch.equal(again.get_extra_state(), method.get_extra_state())
    assert again.stored_samples == 12


def test_a_place_that_cannot_be_written(trained: Method, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"the trained learner cannot be written to .*file"):
        save_learner(trained, tmp_path / "file")


def test_the_learner_of_any_task_comes_back_and_goes_on_as_the_run_did(
    tiny_stream: TaskStream, tiny_backbone: Make, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    method = Finetune(tiny_backbone(), rank=2)
    run_stream(method, tiny_stream, PLAN, watchers=[LearnerKeeper(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task-000", "task-001", "task-002"]
    torch.manual_seed(0)
    again = Finetune(tiny_backbone(), rank=2)
    restore_learner(again, tiny_stream.tasks[:2], task_folder(tmp_path, 1), seed=PLAN.seed)
    learn_task(again, tiny_stream[2], PLAN, Runtime(device="cpu"), lambda *event: None)
    now, then = learned_tensors(again), learned_tensors(method)
    assert now.keys() == then.keys()
    assert all(torch.equal(now[key], then[key]) for key in now)


def test_learners_of_an_earlier_run_are_removed_and_nothing_else(trained: Method, tmp_path: Path) -> None:
    for folder in (tmp_path, task_folder(tmp_path, 0), task_folder(tmp_path, 11)):
        save_learner(trained, folder)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "task-of-mine").mkdir()
    remove_learners(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "task-of-mine"]
    remove_learners(tmp_path / "nowhere")
