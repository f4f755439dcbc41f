"""Streamed forecasts against those in memory, in one process and in two."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tangentcl.data import TaskStream
from tangentcl.errors import DataError
from tangentcl.forecast import SGD, AdamW, Dynamics, Forecast, GradientDescent, GradientFlow, Ridge, forecast_linear
from tangentcl.forecast.feature_blocks import ArrayBlocks, SampleBlocks
from tangentcl.forecast.protected_ridge import ProtectedRidge
from tangentcl.forecast.reduced import reduced_problem
from tangentcl.forecast.streamed import forecast_streamed
from tangentcl.forecast.streamed_forecast import StreamedForecast
from tangentcl.nn import Backbone, extract_features

D, OLD, C, N_OLD, N_NEW = 7, 3, 5, 41, 30
COLUMNS = [4, 3]  # not in order, so that a mix-up shows

SUMS: dict[str, Dynamics] = {
    "descent": GradientDescent(lr=0.05, steps=9, momentum=0.5, weight_decay=0.1, loss="squared_error"),
    "flow": GradientFlow(time=3.0, weight_decay=0.2),
    "flow, no end": GradientFlow(),
    "flow, no end, decay": GradientFlow(weight_decay=0.1),
    "ridge": Ridge(strength=0.7),
    "ridge at zero": Ridge(strength=0.7, centre="zero"),
    "protected ridge": ProtectedRidge(moment=torch.diag(torch.arange(1.0, 9.0)), protection=2.0, strength=0.1),
}
SAMPLES: dict[str, Dynamics] = {
    "cross-entropy": GradientDescent(lr=0.2, steps=5),
    "sgd": SGD(lr=0.1, batches=[[0, 5], [29, 3, 7]], momentum=0.9, loss="squared_error"),
    "adamw": AdamW(lr=0.05, batches=[[0, 5], [29, 3, 7]]),
}


def case(n_new: int = N_NEW, bias: bool = True, dtype: torch.dtype = torch.float64, first: int = 0) -> dict[str, Any]:
    """Old and new samples and a head. New labels start at ``first``: an output without any would end in rounding."""
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    head = nn.Linear(D, C, bias=bias).to(dtype)
    with torch.no_grad():
        head.weight.copy_(draw(C, D))
        if bias:
            head.bias.copy_(draw(C))
    return {
        "old": (draw(N_OLD, D), torch.randint(OLD, (N_OLD,), generator=g)),
        "head": head,
        "new": (draw(n_new, D), torch.randint(first, C, (n_new,), generator=g)),
    }


def blocks(pair: tuple[Tensor, Tensor], rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(pair[0].split(rows), pair[1].split(rows))


def in_memory(given: dict[str, Any], dynamics: Dynamics, columns: list[int] | None = None) -> Forecast:
    (old, labels), (new, targets) = given["old"], given["new"]
    return forecast_linear(old, given["head"], new, targets, dynamics, columns=columns, seen=OLD, labels_old=labels)


def assert_same(streamed: StreamedForecast, whole: Forecast, rtol: float = 1e-12) -> None:
    def close(a: Any, b: Any) -> None:
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=rtol, atol=rtol, check_dtype=False)

    assert streamed.accuracy() == whole.accuracy()
    for ours, theirs in zip(streamed.per_class(), whole.per_class()):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(streamed.margins(), whole.margins()):
        close(ours, theirs)
    assert torch.equal(streamed.flips(), whole.flips())
    assert streamed.samples_at_risk(6).tolist() == whole.samples_at_risk(6).tolist()
    assert streamed.classes_at_risk(3).tolist() == whole.classes_at_risk(3).tolist()
    close(streamed.drift_norm, whole.drift.double().norm(dim=1))
    close(streamed.drift_energy, float(whole.drift.double().square().sum()))
    ours, theirs = streamed.vulnerability, whole.vulnerability
    close(ours.values, theirs.values)
    assert torch.equal(ours.multiplicity, theirs.multiplicity)
    torch.testing.assert_close(ours.energy, theirs.energy, rtol=max(rtol, 1e-9), atol=max(rtol, 1e-11) * theirs.total)
    assert ours.outside <= max(rtol, 1e-12) * theirs.total
    assert streamed.vulnerable_rank(0.9) == whole.vulnerable_rank(0.9)


@pytest.mark.parametrize("columns", [None, COLUMNS])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_new", [4, N_NEW])
@pytest.mark.parametrize("name", SUMS)
def test_streamed_sums_give_the_forecast_in_memory(
    name: str, n_new: int, bias: bool, columns: list[int] | None
) -> None:
    dynamics = SUMS[name]
    if isinstance(dynamics, ProtectedRidge) and not bias:
        dynamics = replace(dynamics, moment=dynamics.moment[:D, :D])
    given = case(n_new, bias, first=0 if columns is None else OLD)
    streamed = forecast_streamed(
        blocks(given["old"], 6), given["head"], blocks(given["new"], 4), dynamics, columns=columns, seen=OLD
    )
    assert_same(streamed, in_memory(given, dynamics, columns), rtol=1e-10)


@pytest.mark.parametrize("name", SAMPLES)
def test_recipes_that_need_every_sample_read_the_blocks(name: str) -> None:
    given = case()
    for new in (given["new"], list(blocks(given["new"], 4)), ArrayBlocks(*given["new"], rows=7)):
        streamed = forecast_streamed(blocks(given["old"], 6), given["head"], new, SAMPLES[name], seen=OLD)
        assert_same(streamed, in_memory(given, SAMPLES[name]))


def test_float32_features_keep_their_precision() -> None:
    given = case(dtype=torch.float32)
    streamed = forecast_streamed(blocks(given["old"], 6), given["head"], given["new"], SUMS["descent"], seen=OLD)
    assert streamed.margin[0].dtype == torch.float32
    assert_same(streamed, in_memory(given, SUMS["descent"]), rtol=2e-6)


def test_reduced_rows_have_the_sums_of_all_samples() -> None:
    given = case(first=OLD)
    reduced = reduced_problem(blocks(given["new"], 4), given["head"], COLUMNS)
    rows = torch.cat([given["new"][0], torch.ones(N_NEW, 1)], dim=1).double()
    one_hot = (given["new"][1][:, None] == torch.tensor(COLUMNS)).double()
    assert reduced.n == N_NEW
    assert len(reduced.features) == D + 1
    torch.testing.assert_close(reduced.features.T @ reduced.features, rows.T @ rows, rtol=0, atol=1e-13)
    torch.testing.assert_close(reduced.features.T @ reduced.targets, rows.T @ one_hot, rtol=0, atol=1e-13)


def test_arrays_on_disk(tmp_path: Path) -> None:
    given = case()
    np.save(tmp_path / "z.npy", given["old"][0].numpy())
    on_disk = np.load(tmp_path / "z.npy", mmap_mode="r")
    old = ArrayBlocks(on_disk, given["old"][1].numpy(), rows=8)
    assert_same(
        forecast_streamed(old, given["head"], given["new"], SUMS["ridge"], seen=OLD), in_memory(given, SUMS["ridge"])
    )


def test_samples_go_through_the_backbone_block_by_block(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    network, old, new = tiny_backbone(), tiny_stream[0].test, tiny_stream[1].train_eval
    head = nn.Linear(network.width, tiny_stream[1].n_seen)
    z_old, labels = extract_features(network, old)
    z_new, targets = extract_features(network, new)
    network.train()
    recipe = GradientDescent(lr=0.1, steps=3, loss="squared_error")
    seen = len(tiny_stream[0].classes)
    sources = SampleBlocks(network, old, batch_size=3, rows=5), SampleBlocks(network, new, batch_size=3, rows=5)
    streamed = forecast_streamed(sources[0], head, sources[1], recipe, seen=seen)
    assert network.training
    whole = forecast_linear(z_old, head, z_new, targets, recipe, seen=seen, labels_old=labels)
    assert_same(streamed, whole, rtol=2e-5)
    assert streamed.cost.forward_passes == len(old) + len(new)


def test_summary_and_missing_moment() -> None:
    given = case()
    streamed = forecast_streamed(
        blocks(given["old"], 6), given["head"], given["new"], SUMS["ridge"], seen=OLD, moment=False
    )
    said, expected = streamed.to_dict(), in_memory(given, SUMS["ridge"]).to_dict()
    for key in ("n_old", "n_outputs", "accuracy_now", "accuracy_after", "flips", "form", "exact"):
        assert said[key] == expected[key]
    assert said["drift_rms"] == pytest.approx(expected["drift_rms"], rel=1e-12)
    assert "vulnerable_rank" not in said
    with pytest.raises(DataError, match="second moment"):
        _ = streamed.vulnerability


@pytest.mark.parametrize(
    "old, words",
    [
        ([], "at least one old sample"),
        ([(torch.zeros(2, D + 1), torch.zeros(2).long())], r"old features \[B, 7\]"),
        ([(torch.full((2, D), torch.nan), torch.zeros(2).long())], "must be finite"),
        ([(torch.zeros(2, D), torch.tensor([0, OLD]))], "from 0 to 2, got 3"),
        ([(torch.zeros(2, D), torch.zeros(2))], "whole numbers"),
    ],
)
def test_refusals_of_old_samples(old: list[Any], words: str) -> None:
    given = case(dtype=torch.float32)
    with pytest.raises(DataError, match=words):
        forecast_streamed(old, given["head"], given["new"], SUMS["ridge"], seen=OLD)


def test_refusals_of_new_samples() -> None:
    given = case()
    for name in ("ridge", "sgd"):
        with pytest.raises(DataError, match="at least one new sample"):
            forecast_streamed(blocks(given["old"], 6), given["head"], [], {**SUMS, **SAMPLES}[name], seen=OLD)
    with pytest.raises(DataError, match="seen must be from 2"):
        forecast_streamed(blocks(given["old"], 6), given["head"], given["new"], SUMS["ridge"], seen=1)


def _in_a_group(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    given, found = case(), {}
    dealt = ArrayBlocks(*given["old"], rows=6), ArrayBlocks(*given["new"], rows=4)
    for name, dynamics in {**SUMS, **SAMPLES}.items():
        found[name] = forecast_streamed(dealt[0], given["head"], dealt[1], dynamics, seen=OLD)
    # Plain blocks are each process's own, here 3 of 41 samples and the rest, and no new sample in the first process.
    cut = [(slice(0, 3), slice(0, 0)), (slice(3, None), slice(0, None))][rank]
    own = [[(pair[0][rows], pair[1][rows])] for pair, rows in zip((given["old"], given["new"]), cut)]
    found["own blocks"] = forecast_streamed(own[0], given["head"], own[1], SUMS["ridge"], seen=OLD)
    try:
        forecast_streamed(own[0], given["head"], own[1], SAMPLES["sgd"], seen=OLD)
    except DataError as error:
        found["refused"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # gloo aborts a process whose peer has gone while it still talks
    dist.destroy_process_group()


def test_two_processes_give_the_forecast_of_one(tmp_path: Path) -> None:
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    given = case()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, dynamics in {**SUMS, **SAMPLES}.items():
            assert_same(found[name], in_memory(given, dynamics), rtol=1e-12)
        assert_same(found["own blocks"], in_memory(given, SUMS["ridge"]), rtol=1e-12)
        assert "needs every new sample" in found["refused"]


if __name__ == "__main__":
    _in_a_group(int(sys.argv[1]), sys.argv[2])
