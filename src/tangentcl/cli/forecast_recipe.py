"""The training plan that a forecast on the command line is for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tangentcl.errors import ConfigError, RecordError
from tangentcl.experiments.build import build_plan
from tangentcl.experiments.config import apply_setting
from tangentcl.records import Record
from tangentcl.training import TrainingPlan

OPTIONS = ("lr", "head_lr", "epochs", "batch_size", "weight_decay", "optimizer")


def recorded_plan(record: Record) -> TrainingPlan:
    """The plan of a run.

    Raises:
        RecordError: the record holds none.
    """
    table = record.config.get("plan")
    if not isinstance(table, Mapping):
        raise RecordError(f"{record.folder / 'config.toml'} has no table [plan], so what was trained is not known.")
    return build_plan(dict(table), record.seed)


def changed_plan(options: argparse.Namespace, plan: TrainingPlan) -> TrainingPlan:
    """``plan`` with what the options change.

    Raises:
        ConfigError: a setting of another table, or one that a plan refuses.
    """
    table: dict[str, Any] = {key: value for key, value in asdict(plan).items() if value is not None}
    seed = table.pop("seed")
    document = {"plan": table}
    for setting in options.settings:
        if not setting.startswith("plan."):
            raise ConfigError(
                f"--set {setting}: a forecast changes the recipe only, plan.KEY=VALUE. Another method, backbone or "
                "stream is another run: tangentcl run"
            )
        apply_setting(document, setting)
    for option in OPTIONS:
        value = getattr(options, option)
        if value is not None:
            table[option] = value
    return build_plan(table, seed if options.seed is None else options.seed)
