"""Engines compute the features that torch computes, or are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import Samples, from_arrays, load
from tangentcl.errors import ConfigError, MissingExtra, ModelError
from tangentcl.nn import Backbone, FeatureStore, backbone, extract_features
from tangentcl.nn.engine import Engine, build_engine, check, relative_errors

PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnx", "onnxscript", "onnxruntime")}


def marked(name: str, precision: str) -> Any:
    missing = [package for package in PACKAGES[name] if find_spec(package) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")
    return pytest.param(name, precision, marks=skip)


INSTALLED = [marked("openvino", "fp32"), marked("openvino", "bf16"), marked("onnxruntime", "fp32")]


def digits(network: Backbone, n: int = 50) -> Samples:
    return Samples(load("digits").train, transform=network.eval_transform).subset(range(n))


def kept(store: FeatureStore, network: Backbone, samples: Samples, precision: str) -> torch.Tensor:
    space = store.space(network, samples.transform, precision)
    assert space is not None
    rows = store.rows(network, samples, space, batch_size=16)
    return torch.from_numpy(np.stack([rows[i] for i in range(len(rows))]))


def same(store: FeatureStore, network: Backbone, samples: Samples, precision: str) -> None:
    expected, _ = extract_features(network, samples)
    before, modes = network.passes, [module.training for module in network.modules()]
    found = kept(store, network, samples, precision)
    assert relative_errors(found, expected).max() < (1e-5 if precision == "fp32" else 2e-2)
    assert store.computed == network.passes - before == len(samples)
    assert [module.training for module in network.modules()] == modes
    kept(store, network, samples, precision)
    assert store.computed == network.passes - before == len(samples)


@pytest.mark.parametrize("name, precision", INSTALLED)
def test_features_of_images_are_those_of_torch(tmp_path, name: str, precision: str) -> None:
    network = backbone()
    same(FeatureStore(tmp_path, engine=name), network, digits(network), precision)


@pytest.mark.parametrize("name, precision", INSTALLED)
def test_features_of_texts_of_any_length_are_those_of_torch(tmp_path, name: str, precision: str) -> None:
    if not os.environ.get("TANGENTCL_MODELS"):
        pytest.skip("TANGENTCL_MODELS is not set")
    network = backbone(str(Path(os.environ["TANGENTCL_MODELS"]) / "all-MiniLM-L6-v2"))
    texts = ["yes", "what is the weather", "a longer sentence, " * 9, "no", *(f"word {'and ' * i}" for i in range(31))]
    source = from_arrays(np.array(texts, dtype=object), np.arange(35) % 2, modality="text")
    samples = Samples(source.train, transform=network.eval_transform)
    same(FeatureStore(tmp_path, engine=name), network, samples, precision)


def test_features_of_another_engine_are_other_features(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tangentcl.nn.feature_store.check_engine", lambda name: name)
    network = backbone()
    spaces = [FeatureStore(tmp_path, engine=name).space(network, network.eval_transform, "fp32") for name in PACKAGES]
    spaces.append(FeatureStore(tmp_path).space(network, network.eval_transform, "fp32"))
    assert len({space.folder for space in spaces if space is not None}) == 3


def test_a_mistyped_engine_and_one_that_is_absent_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"engine 'openvno' is unknown\. Did you mean 'openvino'"):
        FeatureStore(tmp_path, engine="openvno")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"the engine 'openvino' needs .*tangentcl\[openvino\]"):
        FeatureStore(tmp_path, engine="openvino")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r"the engine 'onnxruntime' needs .*tangentcl\[onnx\]"):
        FeatureStore(tmp_path, engine="onnxruntime")


def test_a_precision_or_device_that_it_lacks_is_refused() -> None:
    network = backbone()
    with pytest.raises(ConfigError, match="'onnxruntime' computes in fp32, got precision 'bf16'"):
        build_engine("onnxruntime", network, "bf16", digits(network))
    with pytest.raises(ConfigError, match="'openvino' computes on a CPU, the backbone is on meta"):
        build_engine("openvino", network.to("meta"), "fp32", digits(backbone()))


def by_torch(network: Backbone, change: Callable[[torch.Tensor], torch.Tensor]) -> Engine:
    def forward(inputs: Any) -> Any:
        return change(network.features(network.model, torch.from_numpy(inputs[0]))).numpy()

    return Engine(network, forward)


def test_an_engine_that_computes_something_else_is_refused_with_the_numbers() -> None:
    network = backbone()
    samples = digits(network)
    assert check(by_torch(network, lambda f: f), "openvino", "fp32", samples) == 0
    with pytest.raises(ModelError, match=r"relative error of 0.00[12]\d* in fp32 on 8 samples, 1e-04 is allowed"):
        check(by_torch(network, lambda f: f * 1.001), "openvino", "fp32", samples)
    assert check(by_torch(network, lambda f: f * 1.001), "openvino", "bf16", samples) == pytest.approx(1e-3, rel=0.1)
    with pytest.raises(ModelError, match="relative error of inf"):
        check(by_torch(network, lambda f: f * torch.nan), "openvino", "bf16", samples)
    with pytest.raises(ModelError, match=r"makes features \(1, 10\)"):
        check(by_torch(network, lambda f: f[:, :10]), "openvino", "fp32", samples)
    assert network.passes == 0


def test_an_engine_right_for_one_batch_only_is_refused() -> None:
    network = backbone()
    with pytest.raises(ModelError, match="makes features"):
        check(by_torch(network, lambda f: f[:1]), "openvino", "fp32", digits(network))


@pytest.mark.parametrize("name, precision", INSTALLED)
def test_a_model_that_cannot_be_traced_is_refused_with_the_reason(name: str, precision: str) -> None:
    network = backbone()

    def features(model: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.linalg.pinv(model(x).mean(1).numpy()).T.copy())  # out of what tracing sees

    samples = digits(network)
    network.features = features
    with pytest.raises(ModelError, match=f"engine '{name}'"):
        build_engine(name, network, precision, samples)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino not installed")
def test_openvino_reports_to_nobody(tmp_path) -> None:
    program = "import sys; from tangentcl.nn.openvino_engine import load_openvino; load_openvino(); print(*sys.modules)"
    surroundings = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=surroundings)
    loaded = done.stdout.split()
    assert "openvino" in loaded
    assert not [name for name in loaded if name.startswith("openvino_telemetry")]
    assert not (tmp_path / "intel").exists()  # where it keeps who the user is
