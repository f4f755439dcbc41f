"""The files of experiments/: what they set is what the papers give, and they run where there are data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tangentcl.experiments.build import with_defaults
from tangentcl.experiments.config import load_experiment, load_published, slug
from tangentcl.experiments.run import run_experiment
from tangentcl.records import Record

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PAPER = EXPERIMENTS / "paper" / "ntk_cl"

# classes of the first task and of the others, tasks, lr, batch, epochs, pre-trained section, weight decay, eta
SETTINGS = {
    "cifar100": (10, 10, 10, 0.025, 16, 20, False, 5e-4, 0.03),
    "imagenet_r": (20, 20, 10, 0.02, 16, 20, False, 5e-3, 0.2),
    "imagenet_a": (20, 20, 10, 0.02, 16, 20, False, 5e-3, 0.2),
    "domainnet": (23, 23, 15, 0.02, 96, 50, False, 5e-3, 0.2),
    "oxford_pets": (7, 5, 7, 0.02, 96, 5, True, 5e-3, 0.2),
    "eurosat": (2, 2, 5, 1e-4, 96, 5, True, 5e-3, 0.2),
    "plantvillage": (3, 3, 5, 5e-3, 96, 5, True, 5e-3, 0.2),
    "vtab": (10, 10, 5, 0.03, 96, 45, True, 5e-3, 0.2),
    "kvasir": (2, 2, 4, 5e-3, 96, 5, True, 5e-3, 0.2),
}
BACKBONES = {"in21k": "augreg_in21k", "in21k_in1k": "augreg_in21k_ft_in1k"}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for every data set: 12 classes of small pictures."""
    monkeypatch.setenv("TANGENTCL_DATA", str(tmp_path))
    monkeypatch.setenv("TANGENTCL_MODELS", str(tmp_path))
    rng = np.random.default_rng(0)
    for split, n in (("train", 3), ("test", 2)):
        for c in range(8):
            folder = tmp_path / "kvasir" / split / f"class-{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8) // 4 + 20 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("data", SETTINGS)
def test_the_settings_of_the_paper(data: str, backbone: str, pictures: Path) -> None:
    path = PAPER / f"{data}_{backbone}.toml"
    experiment = load_experiment(path)
    first, rest, _, lr, batch, epochs, section, decay, eta = SETTINGS[data]
    assert (experiment.name, experiment.seeds) == (slug(f"paper_ntk_cl_{data}_{backbone}"), (0, 1, 2, 3, 4))
    assert experiment.backbone["name"] == f"timm:vit_base_patch16_224.{BACKBONES[backbone]}"
    assert (experiment.stream["base"], experiment.stream["increment"]) == (first, rest)
    assert experiment.stream["order_seed"] == "seed"
    released = with_defaults(experiment.resolved(experiment.methods[0], 0))
    plan, method = released["plan"], released["method"]
    assert (plan["lr"], plan["batch_size"], plan["epochs"], plan["weight_decay"]) == (lr, batch, epochs, decay)
    assert (plan["optimizer"], plan["momentum"], plan["schedule"]) == ("sgd", 0.9, "cosine")
    assert (method["preset"], method["ptm_section"], method["dissimilarity_weight"]) == ("released", section, eta)
    assert (method["rank"], method["n_prompts"]) == (16, 10)
    ours = with_defaults(experiment.resolved(experiment.methods[1], 0))
    assert (ours["method"]["preset"], ours["plan"]["weight_decay"]) == ("intended", 0.0)
    assert experiment.published[0].ours == experiment.methods[0].label
    labels = {method.label for method in experiment.methods}
    assert {result.ours for result in experiment.published} - {""} <= labels
    assert load_published(path) == (experiment.name, experiment.published)


def test_no_other_file_lies_in_the_suite() -> None:
    assert {p.stem for p in PAPER.glob("*")} == {f"{data}_{b}" for data in SETTINGS for b in BACKBONES}


def test_the_number_of_tasks_is_the_papers() -> None:
    classes = {"cifar100": 100, "imagenet_r": 200, "imagenet_a": 200, "domainnet": 345, "oxford_pets": 37}
    classes |= {"eurosat": 10, "plantvillage": 15, "vtab": 50, "kvasir": 8}
    for data, (first, rest, tasks, *_) in SETTINGS.items():
        assert 1 + -(-(classes[data] - first) // rest) == tasks, data


def test_a_file_of_the_suite_runs_from_end_to_end(pictures: Path) -> None:
    settings = ["backbone.name=bundled", "plan.epochs=1", "method.plan.epochs=1", "method.ntk-cl.n_prompts=2"]
    experiment = load_experiment(PAPER / "kvasir_in21k.toml", settings=settings, seeds=[0])
    outcomes = run_experiment(experiment, pictures / "runs")
    assert [(o.label, o.status, o.reason) for o in outcomes] == [
        (label, "done", None) for label in ("NTK-CL as released", "NTK-CL", "nearest class mean")
    ]
    record = Record.read(outcomes[0].folder)
    assert record.published == list(experiment.published)
    assert record.environment["protocol"]["normalisation"] == "mean [0.0, 0.0, 0.0] std [1.0, 1.0, 1.0]"
    assert len(record.environment["stream"]["tasks"]) == 4


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.toml")), ids=lambda p: str(p.relative_to(EXPERIMENTS)))
def test_every_experiment_file_is_read(path: Path, pictures: Path) -> None:
    experiment = load_experiment(path)
    for entry in experiment.methods:
        with_defaults(experiment.resolved(entry, 0))
