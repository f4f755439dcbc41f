"""The benchmark of protected heads: its two own learners against algebra, and the whole of it in small."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from benchmarks.spectral.__main__ import main
from benchmarks.spectral.anchored import Anchored
from benchmarks.spectral.rows import ROWS
from benchmarks.spectral.settings import GRIDS, SETTINGS, Setting, Streams, identity
from benchmarks.spectral.sketched import ClosedForm, Sketched

from tangentcl.data import ArrayTransform, TaskStream, class_incremental, from_arrays, load
from tangentcl.linalg import LowRankDiagonal, SecondMoment
from tangentcl.methods import Spectral
from tangentcl.nn import extract_features
from tangentcl.training import TrainingPlan, run_stream


def small(seed: int, tuning: int | None) -> TaskStream:
    share = 0.0 if tuning is None else 0.25
    source = load("digits", test_seed=seed)
    return class_incremental(
        source, 3, order_seed=seed, validation=share, tuning_tasks=tuning, train_per_class=8, test_per_class=6
    )


MINI = Setting(
    "mini",
    small,
    2,
    SETTINGS["digits"].backbone,
    4,
    (),
    TrainingPlan(epochs=2, batch_size=8, lr=1e-2),
    {name: values[2:4] for name, values in GRIDS.items()},
)


@pytest.fixture(scope="module")
def stream() -> TaskStream:
    return Streams(MINI).test(0)


def test_two_samples_by_hand() -> None:
    """Inputs 1 and -1 of two classes with a constant: Phi^T Phi + I = 3 I, W = Phi^T Y / 3, one sample at a time."""
    x, y = np.array([[1.0], [-1.0]]), ["a", "b"]
    transform = ArrayTransform()
    stream = class_incremental(from_arrays(x, y, x, y), 2).with_transforms(transform, transform)
    method = ClosedForm(identity(1), SecondMoment(2), strength=1.0)
    result = run_stream(method, stream, TrainingPlan())
    assert torch.allclose(method.weight, torch.tensor([[1, -1], [1, 1]], dtype=torch.float64) / 3)
    assert result.matrix[-1].tolist() == [1.0, 1.0]
    assert torch.allclose(method.predict(torch.tensor([[1.0]])), torch.tensor([[2 / 3, 0.0]]))


def test_the_exact_closed_form_is_ridge_on_everything(stream) -> None:
    method = ClosedForm(identity(192), SecondMoment(193), strength=0.1)
    run_stream(method, stream, MINI.plan)
    parts = [extract_features(method.backbone, task.train_eval) for task in stream]
    phi = torch.cat([f for f, _ in parts]).double()
    phi = torch.cat([phi, torch.ones(len(phi), 1)], dim=1)
    targets = torch.eye(10, dtype=torch.float64)[torch.cat([y for _, y in parts])]
    wanted = torch.linalg.solve(phi.T @ phi + 0.1 * torch.eye(193), phi.T @ targets)
    assert torch.allclose(method.weight, wanted, atol=1e-9)


def test_the_sketch_of_the_method_gives_what_the_method_gives(stream) -> None:
    matrices = []
    for make in (
        lambda b: Sketched(b, LowRankDiagonal(193, 4), strength=0.3, new_bias=-2.0),
        lambda b: Spectral(b, tune="head", k=4, strength=0.3, new_bias=-2.0),
    ):
        torch.manual_seed(0)
        method = make(identity(192))
        matrices.append(run_stream(method, stream, MINI.plan).matrix)
        last = method.learner.head.weight.detach()
        matrices.append(last.numpy())
    np.testing.assert_array_equal(matrices[0], matrices[2])
    np.testing.assert_allclose(matrices[1], matrices[3], atol=1e-5)


def test_anchors_are_the_samples_that_replay_keeps_and_hold_outputs(stream) -> None:
    torch.manual_seed(0)
    method = Anchored(identity(192), k=6, strength=0.3, new_bias=-2.0, seed=0)
    first, second = stream[0], stream[1]
    method.begin_task(first)
    assert set(method.training_loss(*next(first.train.batches(4)))) == {"cross_entropy"}
    method.end_task(first)
    method.begin_task(second)
    assert method.stored_samples == 6
    assert method.training_samples(second) is second.train  # anchors are not trained on
    terms = method.training_loss(*next(second.train.batches(4)))
    assert terms["drift"].item() == 0.0
    assert method.guard is not None
    with torch.no_grad():
        method.memory.learner.head.bias += 2.0  # each of 7 outputs moves by 2: 0.5 * 0.3 * 1 * 7 * 4
    assert method.training_loss(*next(second.train.batches(4)))["drift"].item() == pytest.approx(4.2, rel=1e-5)


def test_the_benchmark_in_small(tmp_path, capsys) -> None:
    out = tmp_path / "found.json"
    main(["mini", "--seeds", "2", "--out", str(out)], settings={"mini": MINI})
    found = {entry["row"]: entry for entry in json.loads(out.read_text())}
    assert list(found) == [row.label for row in ROWS]
    page = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [cells[0].strip() for cells in page[2:]] == list(found)
    ridge = found["squared error, full (joint ridge)"]
    assert set(ridge["tried"]) == {"0.1", "1.0"}
    assert ridge["value"] == max((0.1, 1.0), key=lambda v: ridge["tried"][str(v)])
    for seed, run in enumerate(ridge["runs"]):
        method = ClosedForm(identity(192), SecondMoment(193), strength=ridge["value"])
        matrix = run_stream(method, Streams(MINI).test(seed), MINI.plan).matrix
        assert run["average"] == pytest.approx(100 * matrix[-1].mean())
        assert run["new"] == pytest.approx(100 * np.diag(matrix).mean())
        falls = [max(matrix[0, 0], matrix[1, 0]) - matrix[2, 0], matrix[1, 1] - matrix[2, 1]]
        assert run["forgetting"] == pytest.approx(100 * np.mean(falls))
    joint = found["joint cross-entropy"]["runs"][0]
    assert joint["average"] > 0
    assert np.isnan(joint["new"])  # it trains at the last task alone


def test_values_are_chosen_without_test_samples() -> None:
    streams = Streams(MINI)
    trained, tests = (
        {name for task in streams.test(0) for name in getattr(task, part).ids} for part in ("train", "test")
    )
    asked = {name for task in streams.tuning(0) for name in task.test.ids}
    assert len(streams.tuning(0)) == 2
    assert asked
    assert asked <= trained
    assert not asked & tests
