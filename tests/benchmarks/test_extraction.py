"""The measurement of engines runs at a tiny size."""

from __future__ import annotations

import sys

import benchmarks.extraction
import pytest
import torch


@pytest.fixture
def bench():
    threads = torch.get_num_threads()
    yield benchmarks.extraction
    torch.set_num_threads(threads)


def test_images_are_measured_and_texts_left_out_without_data(bench, monkeypatch, capsys) -> None:
    monkeypatch.delenv("TANGENTCL_MODELS", raising=False)
    monkeypatch.setattr(bench, "ENGINES", ())
    assert bench.main(["--samples", "12", "--batch-size", "5", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "images, bundled on digits: 12 samples, batches of 5" in printed
    for way in ("plain loop", "torch fp32", "torch fp32, oneDNN route", "torch bf16 autocast"):
        assert f"  {way} " in printed
    assert "texts: left out" in printed
    assert "the store takes the route '" in printed


def test_an_engine_that_is_absent_is_left_out(bench, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(bench, "ENGINES", (("openvino", "fp32"),))
    bench.main(["--samples", "6", "--batch-size", "5", "--rounds", "1", "--cases", "images"])
    assert "openvino fp32 left out: the engine 'openvino' needs" in capsys.readouterr().out


def test_features_come_back_in_the_order_of_the_samples(bench) -> None:
    import numpy as np

    order = np.array([2, 0, 1])
    batches = [torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0]])]  # of samples 2, 0 and 1
    found = bench.looped(lambda x: x, batches, order, torch.no_grad)
    assert found.flatten().tolist() == [1.0, 2.0, 3.0]
