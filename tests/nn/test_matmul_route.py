"""Float32 products by the fastest exact route: set for a block, chosen by measurement, remembered."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from tangentcl.data import Samples, load
from tangentcl.errors import ConfigError, DataError
from tangentcl.nn import FeatureStore, backbone, extract_features
from tangentcl.nn.engine import relative_errors
from tangentcl.nn.matmul_route import FILE, Cost, cpu_seconds, fastest_route, has_routes, matmul_route, product_cost

needs_routes = pytest.mark.skipif(not has_routes(), reason="this torch has no choice of routes")
GOOD = {"default": Cost(2.0, 3e-7), "onednn": Cost(1.0, 3e-7)}


def setting() -> Any:
    mkldnn: Any = torch.backends.mkldnn
    return mkldnn.matmul.fp32_precision


def measured(costs: dict[str, Cost]) -> tuple[list[str], Any]:
    asked: list[str] = []

    def measure(route: str) -> Cost:
        asked.append(route)
        return costs[route]

    return asked, measure


@needs_routes
def test_the_setting_lasts_for_the_block_and_is_restored_after_an_error() -> None:
    before = setting()
    with matmul_route("onednn"):
        assert setting() == "bf16" != before
        with matmul_route("default"):
            pass
        assert setting() == "bf16"
    assert setting() == before
    with pytest.raises(ZeroDivisionError), matmul_route("onednn"):
        raise ZeroDivisionError
    assert setting() == before
    with pytest.raises(ConfigError, match="Did you mean 'onednn'"), matmul_route("onedn"):
        pass


@needs_routes
@pytest.mark.parametrize(
    "other, route",
    [
        (Cost(1.0, 3e-7), "onednn"),
        (Cost(1.0, 2e-5), "default"),  # rounds to bf16
        (Cost(1.0, float("nan")), "default"),
        (Cost(1.9, 3e-7), "default"),  # hardly faster
        (Cost(1.0, 1e-5), "onednn"),
    ],
)
def test_a_route_is_taken_if_it_is_exact_and_faster(tmp_path, other: Cost, route: str) -> None:
    before = setting()
    _, measure = measured({**GOOD, "onednn": other})
    assert fastest_route(tmp_path, measure=measure) == route
    assert setting() == before


@needs_routes
@pytest.mark.parametrize("slower, route", [("default", "onednn"), ("onednn", "default")])
def test_the_work_itself_decides_where_products_are_faster(tmp_path, slower: str, route: str) -> None:
    plain = setting()

    def work() -> None:
        if (setting() == plain) == (slower == "default"):
            end = time.process_time() + 0.01
            while time.process_time() < end:
                pass

    assert fastest_route(tmp_path, measure=measured(GOOD)[1], work=work) == route


@needs_routes
def test_a_choice_is_remembered_for_its_key(tmp_path) -> None:
    asked, measure = measured(GOOD)
    assert [fastest_route(tmp_path, measure=measure) for _ in range(3)] == ["onednn"] * 3
    assert asked == ["default", "onednn"]
    _, slow = measured({**GOOD, "onednn": Cost(9.0, 0.0)})
    assert fastest_route(tmp_path, key="other", measure=slow) == "default"
    assert fastest_route(tmp_path, measure=slow) == "onednn"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert fastest_route(tmp_path, measure=slow) == "default"
    finally:
        torch.set_num_threads(threads)
    assert len(json.loads((tmp_path / FILE).read_text())) == 3


@needs_routes
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": "fast"}', b'{"a": {}}'])
def test_a_damaged_file_is_measured_anew(tmp_path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    asked, measure = measured(GOOD)
    assert fastest_route(tmp_path, measure=measure) == "onednn"
    assert asked == ["default", "onednn"]
    assert list(json.loads((tmp_path / FILE).read_text()).values()) == ["onednn"]


@needs_routes
def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"kept in .*absent.routes.json.*--no-cache"):
        fastest_route(tmp_path / "absent", measure=measured(GOOD)[1])


@needs_routes
def test_without_a_choice_nothing_is_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tangentcl.nn.matmul_route.has_routes", lambda: False)
    asked, measure = measured(GOOD)
    before = setting()
    assert fastest_route(tmp_path, measure=measure) == "default"
    with matmul_route("onednn"):
        assert setting() == before
    assert asked == []


def test_the_cost_of_the_default_is_exact() -> None:
    cost = product_cost("default", repeats=1)
    assert cost.error < 1e-6
    assert cost.seconds > 0
    assert cpu_seconds(lambda: None) >= 0


def digits(n: int) -> Samples:
    return Samples(load("digits").train, transform=backbone().eval_transform).subset(range(n))


@needs_routes
def test_features_by_both_routes_are_equal(tmp_path) -> None:
    if product_cost("onednn", repeats=1).error > 1e-5:
        pytest.skip("oneDNN rounds on this processor, so the route is never taken")
    samples, network = digits(40), backbone()
    plain, _ = extract_features(network, samples)
    with matmul_route("onednn"):
        other, _ = extract_features(network, samples)
    assert relative_errors(other, plain).max() < 1e-5


@needs_routes
def test_the_store_takes_the_route_in_float32_only(tmp_path, monkeypatch) -> None:
    chosen: list[str] = []
    seen: list[str] = []

    def choose(folder: Any, *, key: str, work: Any) -> str:
        work()
        chosen.append(key)
        return "onednn"

    monkeypatch.setattr("tangentcl.nn.feature_store.fastest_route", choose)
    network, samples, before = backbone(), digits(20), setting()
    network.model.register_forward_hook(lambda *_: seen.append(setting()))
    store = FeatureStore(tmp_path)
    for precision in ("fp32", "bf16"):
        space = store.space(network, samples.transform, precision)
        assert space is not None
        for _ in range(2):
            store.rows(network, samples, space)
    assert chosen == [store.space(network, samples.transform, "fp32").folder.name]
    assert seen == [before, "bf16", before]  # the measurement's own, the extraction's, and that in bf16
    assert network.passes == store.computed == 40
    assert setting() == before
    with torch.autocast("cpu", torch.bfloat16):
        store.rows(network, digits(30), store.space(network, samples.transform, "fp32"))
    assert len(chosen) == 1
