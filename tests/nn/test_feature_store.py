"""Features that are computed once: found by content, checked, rebuilt, shared."""

from __future__ import annotations

import json
import multiprocessing
import os
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import Samples, TaskStream, class_incremental, from_arrays, load
from tangentcl.errors import ConfigError, DataError
from tangentcl.methods import NCM, Finetune
from tangentcl.nn import Backbone, FeatureStore, backbone, extract_features, from_module
from tangentcl.nn.known import known_features
from tangentcl.records import Record
from tangentcl.training import TrainingPlan, run_stream


def digits(**keywords: Any) -> TaskStream:
    found = backbone()
    stream = class_incremental(load("digits"), **{"n_tasks": 5, "train_per_class": 6, "test_per_class": 3, **keywords})
    return stream.with_transforms(found.train_transform, found.eval_transform)


def everything(stream: TaskStream) -> Samples:
    parts = [part for task in stream for part in (task.train_eval, task.test)]
    return Samples.concat([part.with_transform(stream[0].test.transform) for part in parts])


def rows(store: FeatureStore, found: Backbone, samples: Samples) -> np.ndarray:
    space = store.space(found, samples.transform, "fp32")
    assert space is not None
    kept = store.rows(found, samples, space)
    return np.stack([kept[i] for i in range(len(kept))])


def test_features_are_those_of_the_backbone_and_each_sample_passes_once(tmp_path) -> None:
    stream, found = digits(), backbone()
    samples = everything(stream)
    expected, _ = extract_features(backbone(), samples)
    store = FeatureStore(tmp_path)
    np.testing.assert_allclose(rows(store, found, samples), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert store.computed == found.passes == len(samples) == 90
    for other in (digits(n_tasks=2), digits(order_seed=3)):  # other tasks and orders of the same samples
        again = FeatureStore(tmp_path)
        rows(again, found, everything(other))
        assert (again.computed, found.passes) == (0, 90)
    more = FeatureStore(tmp_path)
    rows(more, found, everything(digits(train_per_class=7)))
    assert more.computed == 10


def test_equal_samples_are_computed_once(tmp_path) -> None:
    x = np.random.RandomState(0).randint(0, 255, (4, 8, 8), dtype=np.uint8)[[0, 1, 2, 3, 0, 0, 1, 2]]
    found = backbone()
    source = from_arrays(x, np.array([0, 1, 0, 1, 0, 1, 0, 1]), modality="image")
    samples = Samples(source.train, transform=found.eval_transform)
    store = FeatureStore(tmp_path)
    values = rows(store, found, samples)
    assert store.computed < len(samples)
    assert len(np.unique(values.round(5), axis=0)) == store.computed


def test_another_kind_of_features_lies_elsewhere_and_own_code_nowhere(tmp_path) -> None:
    store, found = FeatureStore(tmp_path), backbone()
    space = store.space(found, found.eval_transform, "fp32")
    others = [
        store.space(backbone(pooling="cls"), found.eval_transform, "fp32"),
        store.space(found, found.train_transform, "fp32"),
        store.space(found, found.eval_transform, "bf16"),
    ]
    assert len({one.folder for one in (space, *others)}) == 4
    assert store.space(backbone(), found.eval_transform, "fp32") == space
    own = from_module(torch.nn.Linear(4, 3), None, 3, name="own", modality="array")
    assert store.space(own, found.eval_transform, "fp32") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "delete"])
def test_damage_is_found_and_computed_anew(tmp_path, damage) -> None:
    samples, found = everything(digits()), backbone()
    expected = rows(FeatureStore(tmp_path), found, samples)
    (path,) = tmp_path.glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        bad = {"flip": bytes(content), "cut": path.read_bytes()[:-3], "empty": b"", "other": b"no safetensors"}[damage]
        path.write_bytes(bad)
        assert [place for place, _ in FeatureStore(tmp_path).verify()] == [path]
    store = FeatureStore(tmp_path)
    np.testing.assert_array_equal(rows(store, found, samples), expected)
    assert store.computed == 90
    assert store.rebuilt == (damage != "delete")
    assert store.verify() == []


def test_what_was_finished_before_a_stop_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tangentcl.nn.feature_store.ROWS", 20)
    samples, found = everything(digits()), backbone()
    store = FeatureStore(tmp_path)
    heard: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        heard.append((done, total))
        if done == 40:
            raise KeyboardInterrupt

    space = store.space(found, samples.transform, "fp32")
    with pytest.raises(KeyboardInterrupt):
        store.rows(found, samples, space, say=stop)
    assert heard == [(20, 90), (40, 90)]
    again = FeatureStore(tmp_path)
    rows(again, found, samples)
    assert again.computed == 50


def _ask(folder: str, computed: Any) -> None:
    torch.set_num_threads(1)
    store = FeatureStore(folder)
    rows(store, backbone(), everything(digits()))
    computed.put(store.computed)


def test_runs_at_once_share_the_work(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    computed = context.Queue()
    both = [context.Process(target=_ask, args=(str(tmp_path), computed)) for _ in range(2)]
    for process in both:
        process.start()
    counts = [computed.get(timeout=120) for _ in both]
    for process in both:
        process.join(20)
    assert sorted(counts) == [0, 90]


def test_the_oldest_go_beyond_the_limit_but_not_what_is_in_use(tmp_path) -> None:
    found = backbone()
    rows(FeatureStore(tmp_path), found, everything(digits()))
    (old,) = tmp_path.glob("*/*.safetensors")
    os.utime(old, (1, 1))
    small = FeatureStore(tmp_path, limit=1000)
    samples = everything(digits(test_per_class=5, train_per_class=20)).subset(range(10))
    images = samples.with_transform(backbone().train_transform)
    rows(small, found, images)
    assert not old.exists()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
    with pytest.raises(ConfigError, match="number of bytes"):
        FeatureStore(tmp_path, limit=0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*--no-cache"):
        rows(FeatureStore(tmp_path / "file"), backbone(), everything(digits()))


def test_rows_are_memory_mapped(tmp_path) -> None:
    samples, found = everything(digits()), backbone()
    store = FeatureStore(tmp_path)
    kept = store.rows(found, samples, store.space(found, samples.transform, "fp32"))
    part = kept.parts[0]
    while not isinstance(part, np.memmap):
        part = part.base
        assert part is not None


def plan(**keywords: Any) -> TrainingPlan:
    return TrainingPlan(**{"epochs": 2, "batch_size": 8, "lr": 1e-2, "device": "cpu", **keywords})


@pytest.mark.parametrize("still", [False, True])
def test_a_frozen_run_passes_each_sample_once_and_learns_the_same(tmp_path, still) -> None:
    stream = digits()
    if still:
        stream = stream.with_transforms(stream[0].test.transform, stream[0].test.transform)
    for make in (NCM, lambda b: Finetune(b, tune="head", logits="current")):
        results = []
        for store in (None, FeatureStore(tmp_path), FeatureStore(tmp_path)):
            torch.manual_seed(0)
            found = backbone()
            method = make(found)
            ready = stream if store is None else store.stream(stream, found)
            assert method.reads_features
            results.append((run_stream(method, ready, plan()).matrix, found.passes))
        for matrix, _ in results[1:]:
            np.testing.assert_array_equal(matrix, results[0][0])
        assert results[2][1] == (0 if make is NCM or still else 2 * 60)
        assert results[0][1] == 6 * (1 + 2 + 3 + 4 + 5) + (60 if make is NCM else 2 * 60)
        x, _ = next(ready[0].test.batches(3))
        assert found(x) is known_features(x) is not None


@pytest.mark.slow
def test_an_experiment_counts_its_passes(tmp_path) -> None:
    from tangentcl.experiments import load_experiment
    from tangentcl.experiments.run import run_experiment

    path = tmp_path / "x.toml"
    path.write_text(
        "seeds = [0, 1]\n[stream]\nn_tasks = 5\ntrain_per_class = 6\ntest_per_class = 3\norder_seed = 'seed'\n"
        "[plan]\nepochs = 1\n[transform]\naugment = false\n[forecast]\nsamples = 20\n[theory]\nsamples = 20\n"
        "[[method]]\nname = 'ncm'\n[[method]]\nname = 'ranpac'\nn_units = 50\n"
        "[[method]]\nname = 'finetune'\nlabel = 'head'\ntune = 'head'\n"
    )
    counts = []
    for outcome in run_experiment(load_experiment(path), tmp_path / "runs", features=FeatureStore(tmp_path / "cache")):
        assert outcome.status == "done", outcome.reason
        lines = [json.loads(line) for line in (outcome.folder / "events.jsonl").read_text().splitlines()]
        (found,) = [line for line in lines if line["event"] == "features"]
        counts.append((found["n"], found["backbone_passes"], lines[-1]["backbone_passes"]))
    assert counts == [(90, 90, 0)] + [(90, 0, 0)] * 5
    views = load_experiment(path, settings=["transform.augment=true", "forecast=false"], seeds=[0])
    (outcome, *_) = run_experiment(views, tmp_path / "views", features=FeatureStore(tmp_path / "cache"))
    assert [found.values["status"] for found in Record.read(outcome.folder).theory] == ["learned"] * 5
    run_experiment(load_experiment(path), tmp_path / "without")
    for outcome in (tmp_path / "runs").rglob("accuracy.json"):
        other = tmp_path / "without" / outcome.relative_to(tmp_path / "runs")
        assert json.loads(outcome.read_text())["matrix"] == json.loads(other.read_text())["matrix"]
