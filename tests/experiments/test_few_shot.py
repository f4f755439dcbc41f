"""The presets of experiments/few_shot: base classes, ways and shots are those of the published protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tangentcl.experiments.build import with_defaults
from tangentcl.experiments.config import load_experiment, slug

FOLDER = Path(__file__).parents[2] / "experiments" / "few_shot"
# classes of the source, base classes, sessions, ways
PROTOCOLS = {
    "cifar100": (100, 60, 8, 5),
    "mini_imagenet": (100, 60, 8, 5),
    "cub200": (200, 100, 10, 10),
    "omniglot": (136, 61, 15, 5),
    "clinc150": (150, 60, 18, 5),
}


@pytest.mark.parametrize("data", PROTOCOLS)
def test_the_sessions_are_the_protocols(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANGENTCL_DATA", str(tmp_path))
    monkeypatch.setenv("TANGENTCL_MODELS", str(tmp_path))
    experiment = load_experiment(FOLDER / f"{data}.toml")
    classes, base, sessions, ways = PROTOCOLS[data]
    stream: dict[str, Any] = dict(experiment.stream)
    assert (stream["kind"], stream["k_shot"]) == ("few_shot", 5)
    assert (stream["base_classes"], stream["n_way"]) == (base, ways)
    assert classes == base + sessions * ways
    assert experiment.name == slug(f"few_shot_{data}")
    heads = [with_defaults(experiment.resolved(entry, 0))["method"].get("head") for entry in experiment.methods]
    assert [head for head in heads if head] == ["prototypes", "ridge"]


def test_no_other_file_lies_in_the_suite() -> None:
    assert {p.stem for p in FOLDER.glob("*")} == set(PROTOCOLS)
