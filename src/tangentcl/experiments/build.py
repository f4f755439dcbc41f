"""Tables of an experiment -> stream, backbone, plan and method."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tangentcl.data import STREAMS, ImageTransform, Source, TaskStream, Transform, load
from tangentcl.errors import ConfigError, TangentclError, nearest
from tangentcl.experiments.call import call, defaults
from tangentcl.experiments.config import Table
from tangentcl.methods import Method, method_class
from tangentcl.nn import Backbone, backbone
from tangentcl.training import ForecastOptions, TheoryOptions, TrainingPlan
from tangentcl.training.order import derived_seed


def build_source(table: Table) -> Source:
    """The data of ``[source]``.

    Raises:
        ConfigError: unknown name or key. DataError: missing or damaged data.
    """
    options = dict(table)
    name = _name(options.pop("name"), "source")
    return call(load, options, table="source", given=(name,), aliases=("name",))


def build_stream(data: Source, table: Table, seed: int) -> TaskStream:
    """The task stream of ``[stream]`` on ``data``.

    ``order_seed = "seed"`` draws another class order for every seed of the experiment.

    Raises:
        ConfigError: unknown kind or key. DataError: what the stream refuses.
    """
    keywords = dict(table)
    kind = keywords.pop("kind")
    if not isinstance(kind, str) or kind not in STREAMS:
        raise ConfigError(f"[stream] kind is {kind!r}.{nearest(str(kind), STREAMS)}")
    order = keywords.get("order_seed")
    if order == "seed":
        keywords["order_seed"] = seed
    elif isinstance(order, str):
        raise ConfigError(f'[stream] order_seed must be a whole number, or "seed" to follow the run\'s, got {order!r}')
    return call(STREAMS[kind], keywords, table="stream", given=(data,), aliases=("kind",))


def build_plan(table: Table, seed: int) -> TrainingPlan:
    """The plan of ``[plan]`` with the run's seed.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    if "seed" in table:
        raise ConfigError("[plan] does not take a seed; use seeds = [...] at the top of the file, or --seed")
    return call(TrainingPlan, {**table, "seed": seed}, table="plan")


def build_forecast(table: Table | None) -> ForecastOptions | None:
    """What ``[forecast]`` asks for; None without the table.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    return None if table is None else call(ForecastOptions, table, table="forecast")


def build_theory(table: Table | None) -> TheoryOptions | None:
    """What ``[theory]`` asks for; None without the table.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    return None if table is None else call(TheoryOptions, table, table="theory")


def build_method(keywords: Table, features: Backbone, seed: int) -> Method:
    """The method of ``[[method]]`` on ``features``; weights it adds are drawn from ``seed``.

    Raises:
        ConfigError: unknown name or key, or what the method refuses, with the place where it does.
    """
    keywords = dict(keywords)
    name = keywords.pop("name")
    torch.manual_seed(derived_seed(seed, "method"))
    try:
        return call(method_class(name), keywords, table=f"method {name}", given=(features,), aliases=("name", "label"))
    except TangentclError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"[method {name}] cannot be constructed: {type(error).__name__}: {error} "
            f"({Path(place.filename).name}, line {place.lineno})"
        ) from error


def build_backbone(table: Table) -> Backbone:
    """A fresh backbone of ``[backbone]``.

    Raises:
        ConfigError: unknown key. ModelError: nothing under that name, damaged weights.
    """
    _name(table.get("name", "bundled"), "backbone")
    return call(backbone, table, table="backbone")


def transforms(features: Backbone, table: Table) -> tuple[Transform | None, Transform | None]:
    """Training and evaluation transforms of the backbone, as changed by ``[transform]``; the rest stays the backbone's.

    Keys are those of `tangentcl.data.ImageTransform` except size, mean and std, which belong to the backbone; further
    ``augment = false`` trains under the evaluation transform, and ``normalize = false`` leaves pixels in [0, 1], as
    some published code does whatever the weights were made with.

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
    augment, normalize = keywords.pop("augment", True), keywords.pop("normalize", True)
    for key, value in (("augment", augment), ("normalize", normalize)):
        if not isinstance(value, bool):
            raise ConfigError(f"[transform] {key} must be true or false, got {value!r}")
    for key in ("size", "mean", "std", "train"):
        if key in keywords:
            raise ConfigError(f"[transform] does not take {key!r}: it belongs to the backbone ([backbone] image_size)")
    own: dict[str, Any] = {
        key: getattr(train, key)
        for key in ("size", "mean", "std", "scale", "ratio", "flip", "interpolation", "crop_ratio")
    }
    if not normalize:
        own |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    made = [
        call(
            ImageTransform, {**own, **keywords, "train": training}, table="transform", aliases=("augment", "normalize")
        )
        for training in (augment, False)
    ]
    return made[0], made[1]


def with_defaults(settings: Table) -> Table:
    """The settings of one run with every keyword that the constructors fill in, as the record keeps them.

    So the record shows the learning rate of a file that names none, and a default that changes with a later version
    counts as another setting.
    """
    makers: dict[str, Callable[..., Any]] = {
        "source": load,
        "stream": STREAMS[settings["stream"]["kind"]],
        "backbone": backbone,
        "plan": TrainingPlan,
        "method": method_class(settings["method"]["name"]),
    }
    if "forecast" in settings:
        makers["forecast"] = ForecastOptions
    if "theory" in settings:
        makers["theory"] = TheoryOptions
    filled = {table: {**defaults(maker), **settings[table]} for table, maker in makers.items()}
    del filled["plan"]["seed"]  # the run's own, one level up
    return {**settings, **filled}


def _name(name: Any, table: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"[{table}] name must be a text that is not empty, got {name!r}")
    return name
