"""Sketches against the rows themselves: bounds, exact diagonals, merging, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.files import sealed
from tangentcl.linalg import FrequentDirections, LowRankDiagonal, Sketch, load_sketch, make_sketch, save_sketch
from tangentcl.linalg import streamed_sketch as streamed

D = 20
STREAMED = ["low_rank_diagonal", "frequent_directions"]
KINDS = ["exact", *STREAMED]


@pytest.fixture(params=["moment waits", "rows wait"])
def waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which new rows wait; rows in blocks small enough that a test compresses many times."""
    if request.param == "rows wait":
        monkeypatch.setattr(streamed, "DENSE", 0)
        monkeypatch.setattr(streamed, "WAITING", 16)
    return request.param


def _rows(n: int, seed: int = 0, decay: float = 0.8) -> Tensor:
    """Rows whose directions have lengths 1, decay, decay^2, ..., and whose mean is not zero."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)).Q
    return (torch.randn(n, D, generator=g, dtype=torch.float64) * decay ** torch.arange(D) + 0.3) @ turn


def _sketched(kind: str, rows: Tensor, k: int = 5, size: int = 7) -> Sketch:
    sketch = make_sketch(kind, D, k)
    for part in rows.split(size):
        sketch.update(part)
    return sketch


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


CASES: dict[str, Callable[[], Tensor]] = {
    "many rows": lambda: _rows(100),
    "flat spectrum": lambda: _rows(100, decay=1.0),
    "fewer rows than directions kept": lambda: _rows(3),
    "one row": lambda: _rows(1),
    "constant rows": lambda: torch.full((50, D), 0.7, dtype=torch.float64),
    "low rank": lambda: _rows(60)[:, :3] @ _rows(3, seed=5),
    "zeros": lambda: torch.zeros(4, D, dtype=torch.float64),
    "no row": lambda: torch.zeros(0, D, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_true_energy_is_between_the_bounds_and_so_is_the_estimate(case: str, kind: str, waiting: str) -> None:
    rows = CASES[case]()
    sketch = _sketched(kind, rows)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    delta = torch.cat([_rows(6, seed=3).T, torch.eye(D).double(), vectors], dim=1)  # [D, 46]
    true = (rows @ delta).square().sum(dim=0)
    low, high = sketch.bounds(delta)
    rounding = 1e-12 * max(float(rows.square().sum()), 1e-30) * delta.square().sum(dim=0)
    assert bool((low <= true + rounding).all())
    assert bool((true <= high + rounding).all())
    estimate = sketch.energy(delta)
    assert bool((low <= estimate + rounding).all())
    assert bool((estimate <= high + rounding).all())
    assert (sketch.n, sketch.total) == (len(rows), pytest.approx(float(rows.square().sum()), rel=1e-12))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["fewer rows than directions kept", "one row", "constant rows", "low rank", "zeros"])
def test_what_fits_into_the_directions_kept_is_exact(case: str, kind: str) -> None:
    rows = CASES[case]()
    sketch, delta = _sketched(kind, rows), _rows(6, seed=3).T
    true = (rows @ delta).square().sum(dim=0)
    assert sketch.shed <= 1e-12 * max(sketch.total, 1e-30)
    assert torch.allclose(sketch.energy(delta), true, rtol=1e-9, atol=1e-12)
    assert torch.allclose(sketch.matrix(), rows.T @ rows, rtol=1e-9, atol=1e-11)


def test_the_exact_moment_is_that_of_the_rows_whatever_their_precision() -> None:
    rows, delta = _rows(5000).float(), _rows(6, seed=3).T
    sketch = _sketched("exact", rows, size=4999)
    true = (rows.double() @ delta).square().sum(dim=0)
    assert torch.allclose(sketch.energy(delta), true, rtol=1e-12)
    assert torch.allclose(sketch.factors()[0].T @ sketch.factors()[0], sketch.matrix(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_low_rank_plus_diagonal_keeps_trace_and_diagonal(decay: float, waiting: str) -> None:
    rows = _rows(100, decay=decay)
    sketch = _sketched("low_rank_diagonal", rows)
    true = rows.T @ rows
    assert torch.allclose(sketch.matrix().diagonal(), true.diagonal(), rtol=1e-12)
    assert torch.allclose(sketch.energy(torch.eye(D)), true.diagonal(), rtol=1e-12)
    assert len(sketch.factors()[0]) == 5
    assert 1e-3 * _norm(true) < _norm(true - sketch.factors()[0].T @ sketch.factors()[0]) <= sketch.shed * (1 + 1e-12)


def test_waiting_as_a_moment_keeps_the_best_directions_there_are() -> None:
    rows = _rows(100)
    sketch = _sketched("low_rank_diagonal", rows)
    values = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
    assert float(sketch.factors()[0].square().sum()) == pytest.approx(float(values[:5].sum()), rel=1e-12)
    assert sketch.shed == pytest.approx(float(values[5]), rel=1e-9)


@pytest.mark.parametrize("decay", [0.8, 1.0])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_frequent_directions_keep_their_promise(k: int, decay: float, waiting: str) -> None:
    rows = _rows(150, decay=decay)
    sketch = _sketched("frequent_directions", rows, k=k)
    kept = sketch.factors()[0]
    assert len(kept) <= k
    gap = rows.T @ rows - kept.T @ kept
    eigenvalues = torch.linalg.eigvalsh(gap)
    assert float(eigenvalues[0]) >= -1e-10 * sketch.total
    assert 0 < float(eigenvalues[-1]) <= sketch.shed * (1 + 1e-12)
    values = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
    tails = [float(values[j:].sum()) / (k + 1 - j) for j in range(k + 1)]
    assert sketch.shed <= min(tails) * (1 + 1e-12)


@pytest.mark.parametrize("kind", STREAMED)
def test_a_stream_may_be_cut_anywhere(kind: str, waiting: str) -> None:
    rows = _rows(101)
    one, other = _sketched(kind, rows, size=101), _sketched(kind, rows, size=3)
    assert torch.allclose(one.matrix(), other.matrix(), rtol=1e-10, atol=1e-10)
    assert one.shed == pytest.approx(other.shed, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_merged_sketches_keep_the_promises_for_all_rows_in_any_order(
    kind: str, order: tuple[int, ...], waiting: str
) -> None:
    parts = [_rows(30, seed=1), _rows(2, seed=2), _rows(70, seed=3, decay=1.0)]
    first, *others = (_sketched(kind, parts[i]) for i in order)
    before = others[0].matrix()
    for other in others:
        first.merge(other)
    rows = torch.cat(parts)
    true = rows.T @ rows
    assert (first.n, first.total) == (102, pytest.approx(float(rows.square().sum()), rel=1e-12))
    kept, diagonal = first.factors()
    gap = torch.linalg.eigvalsh(true - kept.T @ kept)
    rounding = 1e-10 * first.total
    assert -rounding <= float(gap[0]) <= float(gap[-1]) <= first.shed + rounding
    if kind != "frequent_directions":
        assert torch.allclose(first.matrix().diagonal(), true.diagonal(), rtol=1e-10)
    else:
        assert first.shed <= float(torch.linalg.eigvalsh(true).flip(0)[3:].sum()) / 3 * (1 + 1e-12)
    if kind == "exact":
        assert torch.allclose(first.matrix(), true, rtol=1e-12, atol=1e-12)
    assert torch.equal(others[0].matrix(), before)
    assert diagonal.shape == (D,)


def test_merging_empty_sketches_changes_nothing() -> None:
    for kind in KINDS:
        sketch = _sketched(kind, _rows(40))
        before, shed = sketch.matrix(), sketch.shed
        sketch.merge(make_sketch(kind, D, 5))
        assert torch.allclose(sketch.matrix(), before, rtol=1e-10, atol=1e-10)
        assert sketch.shed == pytest.approx(shed, rel=1e-10)
        assert sketch.n == 40


@pytest.mark.parametrize("kind", KINDS)
def test_file_round_trip(kind: str, tmp_path: Path, waiting: str) -> None:
    sketch, path = _sketched(kind, _rows(50)), tmp_path / "deep" / "sketch.safetensors"
    save_sketch(sketch, path)
    again = load_sketch(path)
    assert again.header == sketch.header
    assert torch.equal(again.matrix(), sketch.matrix())
    delta = _rows(3, seed=9).T
    assert torch.equal(torch.stack(again.bounds(delta)), torch.stack(sketch.bounds(delta)))
    for one in (sketch, again):  # and it goes on
        one.update(_rows(30, seed=4))
    assert torch.equal(again.matrix(), sketch.matrix())
    assert [p.name for p in path.parent.iterdir()] == ["sketch.safetensors"]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sketch.safetensors"
    with pytest.raises(DataError, match="no file"):
        load_sketch(path)
    save_sketch(_sketched("low_rank_diagonal", _rows(50)), path)
    whole = path.read_bytes()
    for content in (whole[:-8], whole[:40], b"", b"not a file of tensors", whole.replace(b"low_rank", b"abc_rank")):
        path.write_bytes(content)
        with pytest.raises(DataError):
            load_sketch(path)
    path.write_bytes(sealed(whole.replace(b'diagonal":{"dtype', b'diagonak":{"dtype')))
    with pytest.raises(DataError, match="finite float64 'diagonal'"):
        load_sketch(path)


def test_what_does_not_fit_is_refused() -> None:
    sketch = LowRankDiagonal(D, 5)
    with pytest.raises(DataError, match=r"takes rows \[m, 20\], got \[2, 3\]"):
        sketch.update(torch.zeros(2, 3))
    with pytest.raises(DataError, match="must be finite"):
        sketch.update(torch.full((2, D), torch.nan))
    assert sketch.n == 0
    with pytest.raises(DataError, match="takes a change"):
        sketch.energy(torch.zeros(3, 1))
    with pytest.raises(DataError, match="only sketches of one kind"):
        sketch.merge(FrequentDirections(D, 5))
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        make_sketch("exat", 3)
    with pytest.raises(ConfigError, match="the number of directions"):
        make_sketch("frequent_directions", 3)
    with pytest.raises(ConfigError, match="at least one direction"):
        make_sketch("low_rank_diagonal", 3, 0)
