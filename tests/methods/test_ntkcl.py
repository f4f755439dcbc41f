from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tangentcl.data import ArrayTransform, Task, TaskStream, class_incremental, from_arrays
from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods.ntkcl import NTKCL
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.branches import FeaturesOf, TwoBranches
from tangentcl.theory import moved_prototypes
from tangentcl.training import Runtime, TrainingPlan, run_stream
from tangentcl.training.stream import ignore, learn_task

PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.05, optimizer="sgd", device="cpu", seed=3)
Make = Callable[[], Backbone]


def small(features: Backbone, **switches: Any) -> NTKCL:
    torch.manual_seed(0)
    return NTKCL(features, rank=2, n_prompts=2, **switches)


def learned(method: NTKCL, stream: TaskStream, n: int) -> NTKCL:
    for task in list(stream)[:n]:
        learn_task(method, task, PLAN, Runtime(device="cpu"), ignore)
    return method


def all_views(network: TwoBranches, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    return extract_features(FeaturesOf(network, network.all_views, network.all_width), task.train_eval)


def stream_of(n_classes: int, **options: Any) -> TaskStream:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_classes), 3)
    x = rng.normal(size=(n_classes, 3, 4))[labels] + 0.3 * rng.normal(size=(len(labels), 3, 4))
    source = from_arrays(x.astype(np.float32), labels, x.astype(np.float32), labels, name="gaussians", modality="array")
    return class_incremental(source, **options).with_transforms(ArrayTransform(), ArrayTransform())


def test_the_running_mean_is_the_mean_of_the_tasks(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method, seen = small(tiny_blocks()), []
    for task in tiny_stream:
        learn_task(method, task, PLAN, Runtime(device="cpu"), ignore)
        seen.append(torch.cat([p.detach().flatten() for p in method.network.current.parameters()]))
    assert method.network.bank is not None
    kept = torch.cat([b.flatten() for b in method.network.bank.copy.buffers()])
    torch.testing.assert_close(kept, torch.stack(seen).mean(0), rtol=1e-5, atol=1e-7)
    assert float((seen[2] - seen[0]).norm()) > 1e-3


def test_released_leaves_out_the_last_update(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    counts = []
    for preset in ("released", "intended"):
        method = learned(small(tiny_blocks(), preset=preset), tiny_stream, 3)
        assert method.network.bank is not None
        counts.append(int(method.network.bank.count))
    assert counts == [2, 3]


def test_the_state_grows_by_class_rows_only(tiny_blocks: Make) -> None:
    stream, method, sizes = stream_of(40, n_tasks=20), small(tiny_blocks()), []
    for task in stream:
        method.begin_task(task)
        method.end_task(task)
        state = method.state_dict()
        rows = {"head.means.sums", "head.means.counts"}
        assert rows <= set(state)
        sizes.append(
            (
                sum(v.numel() * v.element_size() for k, v in state.items() if k not in rows),
                state["head.means.sums"].shape[0],
            )
        )
    assert sizes[1][0] == sizes[19][0]
    assert [n for _, n in sizes] == list(range(2, 41, 2))


@pytest.mark.parametrize("scored", ["all", "fused"])
def test_scores_are_cosines_to_class_means_of_the_views(
    tiny_blocks: Make, tiny_stream: TaskStream, scored: str
) -> None:
    method = learned(small(tiny_blocks(), scored_views=scored), tiny_stream, 1)
    samples, d = tiny_stream[0].train_eval, method.network.backbone.width
    x, y = next(samples.batches(len(samples)))
    test, _ = next(tiny_stream[0].test.batches(5))
    method.eval()
    chosen = ("fused", "channel", "patch") if scored == "all" else ("fused",)
    with torch.no_grad():
        known, new = method.network.views(x).named(), method.network.views(test).named()
    parts = []
    for name in chosen:
        mu = torch.stack([known[name][y == c].mean(0) for c in (0, 1)])
        for m, s in ((1.0, slice(d)), (0.3, slice(d, 2 * d)), (0.1, slice(2 * d, None))):
            parts.append(m * F.cosine_similarity(new[name][:, None, s], mu[None, :, s], dim=2))
    expected = torch.stack(parts).sum(0) / len(chosen)
    torch.testing.assert_close(method.predict(test), expected, rtol=1e-5, atol=1e-6)
    assert method.head.means.width == (7 if scored == "all" else 3) * d


def test_old_class_means_follow_the_modules_behind_them(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    errors = {}
    for compensation in ("off", "mean", "ridge"):
        method = learned(small(tiny_blocks(), compensation=compensation), tiny_stream, 2)
        features, labels = all_views(method.network, tiny_stream[0])
        true = torch.stack([features[labels == c].mean(0) for c in (0, 1)])
        stored = method.head.means.prototypes[:2].float()
        errors[compensation] = float((stored - true).norm())
        torch.testing.assert_close(stored[:, :16], true[:, :16], rtol=1e-4, atol=1e-5)  # pre-trained: they never move
        assert method.head.means.counts.tolist() == [20] * 4
    assert errors["ridge"] < 0.5 * errors["off"]
    assert errors["mean"] < 0.8 * errors["off"]


def test_the_movement_is_told_from_the_weights_that_training_started_from(
    tiny_blocks: Make, tiny_stream: TaskStream
) -> None:
    method = learned(small(tiny_blocks()), tiny_stream, 1)
    old, start = method.head.means.prototypes.clone(), copy.deepcopy(method.network)
    learn_task(method, tiny_stream[1], PLAN, Runtime(device="cpu"), ignore)
    before, after = (all_views(network, tiny_stream[1])[0] for network in (start, method.network))
    expected = moved_prototypes(old, before, after, sections=7)
    torch.testing.assert_close(method.head.means.prototypes[:2], expected, rtol=1e-6, atol=1e-8)
    held = dict(method.previous.named_buffers())
    for name, p in method.network.anchored().items():
        assert torch.equal(held[name.replace(".", "__")], p)


def test_class_means_move_in_full_precision(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    full = learned(small(tiny_blocks()), tiny_stream, 1)
    full.begin_task(tiny_stream[1])
    with torch.no_grad():
        for p in full.network.anchored().values():
            p.add_(0.02 * torch.randn_like(p))
    half = copy.deepcopy(full)
    full.end_task(tiny_stream[1])
    with torch.autocast("cpu", torch.bfloat16):
        half.end_task(tiny_stream[1])
        features, labels = all_views(half.network, tiny_stream[1])
    assert torch.equal(half.head.means.prototypes[:2], full.head.means.prototypes[:2])
    assert torch.equal(half.centre, full.centre)
    for c in (2, 3):  # new classes: as predictions see them
        expected = features[labels == c].double().mean(0)
        torch.testing.assert_close(half.head.means.prototypes[c], expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(half.head.means.prototypes[2:], full.head.means.prototypes[2:])


def test_cached_views_of_a_fixed_transform_train_to_the_same_weights(
    tiny_blocks: Make, tiny_stream: TaskStream
) -> None:
    weights = []
    for views, stem in ((0, False), (1, False), (1, True)):
        method = small(tiny_blocks(), cached_views=views, cached_stem=stem, adapter_dropout=0.0)
        learned(method, tiny_stream, 2)
        weights.append(torch.cat([p.detach().flatten() for p in method.network.anchored().values()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-4, atol=1e-6)


def test_frozen_passes_run_once_for_each_cached_view(
    tiny_blocks: Make, tiny_stream: TaskStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, rows = small(tiny_blocks(), cached_views=1), []
    frozen = type(method.network)._frozen
    monkeypatch.setattr(
        type(method.network),
        "_frozen",
        lambda self, start, ptm: rows.append(len(start.attended)) or frozen(self, start, ptm),
    )
    task = tiny_stream[0]
    method.begin_task(task)
    samples = method.training_samples(task)
    assert sum(rows) == len(task.train)
    for x, y in samples.batches(8):
        method.training_loss(x, y)
    assert sum(rows) == len(task.train)


def test_its_three_features_are_the_views_of_the_theory_report(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = small(tiny_blocks())
    x, _ = next(tiny_stream[0].test.batches(5))
    assert {name: tuple(view.shape) for name, view in method.feature_views(x).items()} == {
        "channel": (5, 48),
        "patch": (5, 48),
        "fused": (5, 48),
    }


@pytest.mark.parametrize(("seen", "skipped"), [("all", 0), ("adapted", 16), ("current", 32)])
def test_every_term_is_its_formula(tiny_blocks: Make, tiny_stream: TaskStream, seen: str, skipped: int) -> None:
    method = learned(small(tiny_blocks(), adapter_dropout=0.0, trained_sections=seen), tiny_stream, 1)
    method.begin_task(tiny_stream[1])
    with torch.no_grad():
        for p in method.network.current.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x, y = next(tiny_stream[1].train.batches(16))
    method.train()
    terms, views = method.training_loss(x, y), method.network.views(x)
    assert views.channel is not None
    assert views.patch is not None
    assert method.proxies is not None
    assert method.anchors is method.previous
    proxies, scale = method.proxies.weight, method.proxies.scale
    trained = {name: view[:, skipped:] for name, view in views.named().items()}
    for name, view in trained.items():
        logits = scale * F.cosine_similarity(view[:, None], proxies[None], dim=2)
        torch.testing.assert_close(terms[f"cross_entropy_{name}"], F.cross_entropy(logits, y - 2), rtol=1e-4, atol=1e-6)
    centre = method.centre[skipped:48]
    old = method.head.means.prototypes[:2, skipped:48].float() - centre
    q = torch.linalg.qr(old.T)[0][:, :1]  # two centred classes of one size lie on one line
    energies = [(F.normalize(view - centre, dim=1) @ q).square().sum(1).mean() for view in trained.values()]
    torch.testing.assert_close(terms["orthogonality"], 0.1 * torch.stack(energies).mean(), rtol=1e-3, atol=1e-5)
    moved = sum(
        float((p.detach() - getattr(method.anchors, name.replace(".", "__"))).square().sum())
        for name, p in method.network.named_parameters()
        if p.requires_grad
    )
    assert moved > 0
    assert abs(float(terms["anchor"].detach()) - 1e-3 * moved) < 1e-6


def test_ridge_is_in_units_of_the_kernel(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = small(tiny_blocks(), preset="theory", ridge=4.0)
    method.begin_task(tiny_stream[0])
    assert method.anchor_weight == 4.0 / (2 * len(tiny_stream[0].train))


def test_presets_differ_as_they_say(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    names = {}
    for preset in ("intended", "released", "theory"):
        method = learned(small(tiny_blocks(), preset=preset), tiny_stream, 1)
        method.begin_task(tiny_stream[1])
        method.train()
        names[preset] = set(method.training_loss(*next(tiny_stream[1].train.batches(8))))
    views = ("channel", "patch", "fused")
    assert names["intended"] == names["released"]
    assert {f"cross_entropy_{v}" for v in views} | {"dissimilarity", "orthogonality", "anchor"} == names["released"]
    assert {f"squared_{v}" for v in views} | {"orthogonality", "anchor"} == names["theory"]


def test_dropout_runs_in_the_frozen_copy_as_released_only(tiny_blocks: Make) -> None:
    for preset, active in (("released", True), ("intended", False)):
        method = small(tiny_blocks(), preset=preset)
        method.train()
        assert method.network.bank is not None
        assert method.network.bank.copy.training is active
        assert not method.network.backbone.model.training


def test_a_short_last_task_and_a_larger_first_one(tiny_blocks: Make) -> None:
    stream = stream_of(8, base=3, increment=2)
    assert [len(task.classes) for task in stream] == [3, 2, 2, 1]
    method = small(tiny_blocks())
    result = run_stream(method, stream, PLAN)
    assert np.isfinite(result.matrix[3]).all()
    method.begin_task(stream[3])
    assert method.proxies is not None
    assert method.proxies.weight.shape[0] == 1
    assert method.old_classes().labels.tolist() == list(range(7))


def test_the_old_space_is_described_once_per_task_and_again_after_loading(
    tiny_blocks: Make, tiny_stream: TaskStream
) -> None:
    method = learned(small(tiny_blocks()), tiny_stream, 1)
    method.begin_task(tiny_stream[1])
    first = method.old_classes()
    assert method.old_classes() is first
    fresh = small(tiny_blocks())
    for task in (tiny_stream[0], tiny_stream[1]):
        fresh.begin_task(task)
    assert fresh.old_classes().labels.tolist() == []
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    torch.testing.assert_close(fresh.old_classes().directions, first.directions)


def test_what_is_refused(tiny_blocks: Make, tiny_backbone: Make) -> None:
    with pytest.raises(ModelError, match="taken apart"):
        NTKCL(tiny_backbone())
    with pytest.raises(ConfigError, match="Did you mean 'released'"):
        NTKCL(tiny_blocks(), preset="relesed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'patch'"):
        NTKCL(tiny_blocks(), branches="pach")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finite number"):
        NTKCL(tiny_blocks(), anchor_weight=-1.0)
    for share in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="prompt_share must be a finite number above 0"):
            NTKCL(tiny_blocks(), prompt_share=share)
    for name in ("first_block", "cached_views"):
        with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
            NTKCL(tiny_blocks(), **{name: -1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="first_block must be below the 2 blocks"):
        NTKCL(tiny_blocks(), first_block=2)
    with pytest.raises(ModelError, match="one adapted block"):
        NTKCL(tiny_blocks(), first_block=1)
    with pytest.raises(ConfigError, match="cached_stem needs fixed views"):
        NTKCL(tiny_blocks(), cached_stem=True)
    with pytest.raises(ConfigError, match="cached_views needs frozen branches"):
        NTKCL(tiny_blocks(), preset="released", cached_views=2)
    with pytest.raises(ConfigError, match="each of the 3 sections"):
        NTKCL(tiny_blocks(), section_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="Did you mean 'ridge'"):
        NTKCL(tiny_blocks(), compensation="rigde")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="begin_task"):
        NTKCL(tiny_blocks()).training_loss(torch.zeros(1, 3, 4), torch.zeros(1, dtype=torch.int64))
