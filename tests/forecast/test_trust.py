"""How far a local forecast is believed."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from tangentcl.forecast import GradientDescent, Trust, prepare_forecast
from tangentcl.forecast.setting import Setting
from tangentcl.forecast.sites import find_sites, wide_values
from tangentcl.forecast.tangent import along
from tangentcl.forecast.trust import HIGH, LOW, belief


def test_levels_follow_the_gap() -> None:
    for gap, level in ((0.0, "high"), (HIGH, "high"), (HIGH + 1e-9, "medium"), (LOW, "medium"), (LOW + 1e-9, "low")):
        assert Trust(gap).level == level
    assert Trust(math.nan).level == Trust(math.inf).level == "low"
    starts = {"high": "Believe it", "medium": "Believe the ranking", "low": "Do not believe it"}
    for gap in (0.07, 0.4, 1.5):
        trust = Trust(gap)
        assert trust.sentence.startswith(starts[trust.level])
        assert f"off by {100 * gap:.0f} %" in trust.sentence


def test_belief_falls_from_one_to_nothing() -> None:
    assert [belief(gap) for gap in (0.0, 0.125, 0.25, 0.5, 3.0, math.inf)] == [1.0, 0.75, 0.5, 0.0, 0.0, 0.0]
    assert belief(math.nan) == 0.0


def test_what_was_not_measured_is_none_in_json() -> None:
    found = json.loads(json.dumps(Trust(0.1, 0.2, math.inf).to_dict()))
    assert found == {
        "gap": 0.1,
        "linearisation_error": 0.2,
        "kernel_drift": None,
        "pilot_cosine": None,
        "level": "high",
        "sentence": Trust(0.1).sentence,
    }


def _case() -> tuple[nn.Sequential, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(7, 4).double(), (torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1]))


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.norm() / whole.norm())


@pytest.mark.parametrize("form", ["ntk", "bilinear"])
def test_the_measures_are_what_they_are_defined_as(form: str) -> None:
    model, old, new = _case()
    prepared = prepare_forecast(model, old, new, form=form)  # type: ignore[arg-type]
    recipe = GradientDescent(lr=0.3, steps=10)
    forecast = prepared.forecast(recipe)
    setting: Setting = prepared._setting
    forecaster = prepared._localised("cross_entropy", None)
    start, values = wide_values(setting.network), forecaster.parameters_after(recipe)
    at = {name: torch.func.functional_call(model, values, (x,)).detach() for name, x in (("old", old), ("new", new[0]))}
    actual = {"old": at["old"] - model(old).detach(), "new": at["new"] - model(new[0]).detach()}

    body = setting.network if form == "ntk" else setting.body()
    sites, _ = find_sites(body, None if form == "ntk" else model[2], first_order=form == "ntk")

    def drift(inputs: Tensor, name: str) -> Tensor:
        source = setting.old if name == "old" else setting.new
        h, moved = along(setting, body, sites, start, values, source)
        if form == "ntk":
            return moved
        ratio = moved.square().sum(dim=1, keepdim=True) / h.square().sum(dim=1, keepdim=True)
        after = h + moved / (1 + ratio).sqrt()
        return after @ values["2.weight"].T + values["2.bias"] - model(inputs).detach()

    local = {"old": drift(old, "old"), "new": drift(new[0], "new")}
    trust = forecast.trust
    assert trust is not None
    gap = _relative(actual["old"] - local["old"], local["old"])
    assert trust.gap == pytest.approx(gap, rel=1e-9)
    assert trust.linearisation_error == pytest.approx(_relative(actual["new"] - local["new"], local["new"]), rel=1e-9)
    here = along(setting, body, sites, start, values, setting.new)[1]
    there = along(setting, body, sites, start, values, setting.new, at=values)[1]
    assert trust.kernel_drift == pytest.approx(_relative(there - here, here), rel=1e-9)
    assert math.isnan(trust.pilot_cosine)
    weight = 0.0 if form == "ntk" else max(0.0, 1 - 2 * gap)
    assert 0.005 < gap < 0.5
    expected = weight * actual["old"] + (1 - weight) * local["old"]
    torch.testing.assert_close(forecast.drift, expected, rtol=1e-9, atol=1e-12)


def test_gaps_grow_with_the_rate_and_an_absurd_one_is_not_believed() -> None:
    model, old, new = _case()
    prepared = prepare_forecast(model, old, new, modes=0)
    trusts = [prepared.forecast(GradientDescent(lr=lr, steps=20)).trust for lr in (0.003, 0.03, 0.3, 30.0)]
    gaps = [trust.gap for trust in trusts if trust is not None]
    assert gaps == sorted(gaps)
    assert [trust.level for trust in trusts if trust is not None][::3] == ["high", "low"]
    assert gaps[1] > 3 * gaps[0]
