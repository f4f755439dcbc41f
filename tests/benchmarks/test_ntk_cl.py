"""The library's step of NTK-CL equals the released computation written without any short cut."""

from __future__ import annotations

import benchmarks.ntk_cl
import pytest
import torch


@pytest.fixture
def bench():
    return benchmarks.ntk_cl


def test_loss_gradients_and_scores_equal_the_naive_computation(bench) -> None:
    found = bench.differences(bench.problem(24, 3, image_size=64, depth=3))
    assert set(found) == {
        *(f"cross_entropy_{view}" for view in ("channel", "patch", "fused")),
        *("dissimilarity", "orthogonality", "anchor", "loss", "gradient", "scores"),
    }
    assert {name: value for name, value in found.items() if not value < 1e-5} == {}


def test_a_difference_would_be_found(bench) -> None:
    p = bench.problem(24, 3, image_size=64, depth=3)
    with torch.no_grad():
        p.ours.network.current["patch"][0].weight[0, 0] += 0.1
    assert bench.differences(p)["gradient"] > 1e-4


def test_every_way_to_compute_runs_and_is_timed(bench) -> None:
    p = bench.problem(24, 3, image_size=32, depth=4, batch=4)
    steps = bench.least(bench.step_seconds, bench.ways(p, variants=True), 1)
    single = {"naive", "exact", "cached", "cached with stem", "bf16", "cached + bf16", "cached with stem + bf16"}
    both = {f"{name}{more}" for name in ("half", "joint") for more in ("", " + cached", " + cached with stem + bf16")}
    assert set(steps) == single | both | {f"joint + half + cached{more}" for more in ("", " with stem + bf16")}
    assert all(seconds > 0 for seconds in steps.values())
