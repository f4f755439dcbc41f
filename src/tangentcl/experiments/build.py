"""Tables of an experiment -> stream, backbone, plan and method."""

from __future__ import annotations

from typing import Any

import torch

from tangentcl.data import STREAMS, ImageTransform, TaskStream, Transform, load
from tangentcl.errors import ConfigError, nearest
from tangentcl.experiments.config import Table, call
from tangentcl.methods import Method, method_class
from tangentcl.nn import Backbone, backbone
from tangentcl.training import TrainingPlan
from tangentcl.training.order import derived_seed


def build_stream(source: Table, stream: Table, seed: int) -> TaskStream:
    """The task stream of the tables ``[source]`` and ``[stream]``.

    ``order_seed = "seed"`` draws another class order for every seed of the experiment.

    Raises:
        ConfigError: unknown kind or key. DataError: what the source or the stream refuses.
    """
    keywords = dict(stream)
    kind = keywords.pop("kind")
    if kind not in STREAMS:
        raise ConfigError(f"[stream] kind is {kind!r}.{nearest(str(kind), STREAMS)}")
    if keywords.get("order_seed") == "seed":
        keywords["order_seed"] = seed
    options = dict(source)
    data = call(load, options, table="source", given=(options.pop("name"),), aliases=("name",))
    return call(STREAMS[kind], keywords, table="stream", given=(data,), aliases=("kind",))


def build_plan(table: Table, seed: int) -> TrainingPlan:
    """The plan of ``[plan]`` with the run's seed.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    if "seed" in table:
        raise ConfigError("[plan] does not take a seed; use seeds = [...] at the top of the file, or --seed")
    try:
        return call(TrainingPlan, {**table, "seed": seed}, table="plan")
    except TypeError as error:
        raise ConfigError(f"[plan] holds a value of a wrong type: {error}") from error


def build_method(keywords: Table, features: Backbone, seed: int) -> Method:
    """The method of ``[[method]]`` on ``features``; weights it adds are drawn from ``seed``.

    Raises:
        ConfigError: unknown name or key, or what the method refuses.
    """
    keywords = dict(keywords)
    name = keywords.pop("name")
    torch.manual_seed(derived_seed(seed, "method"))
    try:
        return call(method_class(name), keywords, table=f"method {name}", given=(features,), aliases=("name", "label"))
    except TypeError as error:
        raise ConfigError(f"[method {name}] holds a value of a wrong type: {error}") from error


def build_backbone(table: Table) -> Backbone:
    """A fresh backbone of ``[backbone]``.

    Raises:
        ConfigError: unknown key. ModelError: nothing under that name, damaged weights.
    """
    return call(backbone, table, table="backbone")


def transforms(features: Backbone, table: Table) -> tuple[Transform | None, Transform | None]:
    """Training and evaluation transforms of the backbone, as changed by ``[transform]``.

    Keys are those of `tangentcl.data.ImageTransform` except size, mean and std, which belong to the backbone; further
    ``augment = false`` trains under the evaluation transform.

    Raises:
        ConfigError: unknown key, or a table for a backbone that does not take images.
    """
    train, evaluation = features.train_transform, features.eval_transform
    if not table:
        return train, evaluation
    if not isinstance(train, ImageTransform):
        raise ConfigError(
            f"[transform] is for images; the backbone {features.card.name} takes {features.card.modality}"
        )
    keywords = dict(table)
    augment = keywords.pop("augment", True)
    for key in ("size", "mean", "std", "train"):
        if key in keywords:
            raise ConfigError(f"[transform] does not take {key!r}: it belongs to the backbone ([backbone] image_size)")
    own: dict[str, Any] = {"size": train.size, "mean": train.mean, "std": train.std, "crop_ratio": train.crop_ratio}
    made = [
        call(ImageTransform, {**own, **keywords, "train": training}, table="transform", aliases=("augment",))
        for training in (augment, False)
    ]
    return made[0], made[1]
