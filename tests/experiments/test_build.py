"""Tables to objects: what the constructors fill in is recorded, what a table leaves out stays the backbone's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tangentcl.data import ImageTransform
from tangentcl.errors import ConfigError
from tangentcl.experiments.build import transforms, with_defaults
from tangentcl.experiments.config import experiment_from
from tangentcl.nn import Backbone, from_module


def test_the_record_names_what_the_file_leaves_out() -> None:
    experiment = experiment_from({"plan": {"epochs": 2}, "method": [{"name": "finetune", "rank": 3}, {"name": "ncm"}]})
    settings = with_defaults(experiment.resolved(experiment.methods[0], 4))
    assert settings["plan"]["lr"] == 1e-3
    assert settings["plan"]["epochs"] == 2
    assert "seed" not in settings["plan"]
    assert settings["seed"] == 4
    assert settings["method"] == {
        "name": "finetune", "tune": "lora", "rank": 3, "targets": ("query", "value"), "dropout": 0.0, "logits": "all",
        "new_bias": 0.0,
    }  # fmt: skip
    assert settings["stream"]["validation"] == 0.0
    assert settings["backbone"]["name"] == "bundled"
    assert with_defaults(experiment.resolved(experiment.methods[1], 4))["method"] == {"name": "ncm", "metric": "cosine"}


@pytest.fixture
def image_backbone() -> Backbone:
    own = {"size": 8, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_ratio": 1.0}
    train = ImageTransform(**own, train=True, scale=(0.7, 1.0), flip=0.0, interpolation="bilinear")
    flat = nn.Flatten()
    return from_module(
        flat, None, 192, name="pixels", modality="image", train_transform=train, eval_transform=ImageTransform(**own),
        sample=torch.zeros(1, 3, 8, 8),
    )  # fmt: skip


def test_a_transform_table_changes_only_what_it_names(image_backbone: Backbone) -> None:
    train, evaluation = transforms(image_backbone, {"flip": 0.5})
    assert isinstance(train, ImageTransform)
    assert isinstance(evaluation, ImageTransform)
    assert (train.train, train.flip, train.scale, train.interpolation) == (True, 0.5, (0.7, 1.0), "bilinear")
    assert (train.mean, train.std, train.crop_ratio) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1.0)
    assert not evaluation.train
    plain, _ = transforms(image_backbone, {"augment": False})
    assert isinstance(plain, ImageTransform)
    assert not plain.train
    bare = transforms(image_backbone, {"normalize": False, "flip": 0.5})
    for made in bare:
        assert isinstance(made, ImageTransform)
        assert (made.mean, made.std, made.crop_ratio) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)
    for key in ("augment", "normalize"):
        with pytest.raises(ConfigError, match=f"{key} must be true or false"):
            transforms(image_backbone, {key: 1})
    with pytest.raises(ConfigError, match="Did you mean 'flip'"):
        transforms(image_backbone, {"flipp": 0.5})
