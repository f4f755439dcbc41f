"""``tangentcl plan``: which recipe learns the next task and forgets no more than allowed, by forecasts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tangentcl.errors import ConfigError

ABOUT = """Which recipe learns the next task and forgets no more than allowed? Recipes are forecast, not trained.

  tangentcl plan EXPERIMENT.toml --task 3 --max-forgetting 0.02
  tangentcl plan EXPERIMENT.toml --task 3 --lr 1e-4 3e-4 1e-3 --epochs 1 3 --rank 4 8
  tangentcl plan EXPERIMENT.toml --task 3 --method spectral --strength 0.01 0.03 0.1 --train --out plan
  tangentcl plan RUN --task 3                          from the learner that a run stored before the task

The tasks before T are trained with the experiment's own recipe, once for every setting of the method; a strength is one
of the coming task, for which they are not trained again. Exit code 1: no recipe meets the demands, and what comes
closest is shown; or, with --train, the trained recipe forgot more than allowed."""

PLAN = {"lr": float, "head-lr": float, "epochs": int, "weight-decay": float, "optimizer": str}
METHOD = {"strength": float, "rank": int, "targets": str, "logits": str, "tune": str}


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl plan``."""
    parser = commands.add_parser(
        "plan",
        help="choose a recipe by forecasts: learns the next task, keeps the old ones",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="EXPERIMENT", help="experiment file, or the folder of a run")
    parser.add_argument("--task", type=int, required=True, metavar="T", help="the task to be learned, counted from 0")
    parser.add_argument(
        "--method", metavar="LABEL", help="method of the file, by label or name (default: the first finetune)"
    )
    add_grid(parser)
    parser.add_argument("--train", action="store_true", help="train the chosen recipe and compare with its forecast")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="change any setting for all recipes and for the tasks before, e.g. plan.schedule=constant",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the experiment's first")
    parser.add_argument(
        "--on",
        choices=("validation", "test"),
        help="samples whose accuracy decides (default: validation where the stream has it, else test)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the trade-off curve")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write plan.json and a page, plan.html")


def add_grid(parser: argparse.ArgumentParser) -> None:
    """The options that say what is demanded, and which recipes are considered."""
    parser.add_argument("--max-forgetting", type=float, default=0.02, metavar="X", help="share of old samples (0.02)")
    parser.add_argument(
        "--min-learned",
        type=float,
        default=0.8,
        metavar="X",
        help="share of the best new accuracy among believable recipes that has to be reached (0.8)",
    )
    parser.add_argument(
        "--refine",
        type=float,
        default=0.0,
        metavar="X",
        help="where a forecast is of low trust, really do this share of the training and forecast the rest (0)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.0,
        metavar="X",
        help="probability that the tolerance also holds on other old samples; a margin is kept for it (0: none)",
    )
    grid = parser.add_argument_group("recipes to consider (default: around the experiment's)")
    for name, kind in {**PLAN, **METHOD}.items():
        shown = "A,B" if name == "targets" else "X"
        grid.add_argument(f"--{name}", type=kind, nargs="+", metavar=shown, help=_help(name))
    grid.add_argument(
        "--vary",
        nargs="+",
        action="extend",
        default=[],
        metavar="TABLE.KEY=V,V",
        help="values of any other setting, e.g. plan.batch_size=16,64 method.alpha=8,16",
    )


def _help(name: str) -> str:
    about = {
        "lr": "learning rates; head-lr keeps its ratio to them",
        "strength": "of a penalty on forgetting, as in spectral, for the coming task",
        "targets": "adapted layers, several joined by commas: query,value key",
        "tune": "head, lora or full",
        "logits": "all or current",
    }
    return about.get(name, f"values of {name}")


def varied(options: argparse.Namespace) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """What the options vary: settings of the plan and of the method, by their names in an experiment file.

    Raises:
        ConfigError: a --vary of something else.
    """
    from tangentcl.experiments.config import toml_value

    found: dict[str, dict[str, list[Any]]] = {"plan": {}, "method": {}}
    for table, names in (("plan", PLAN), ("method", METHOD)):
        for name in (name.replace("-", "_") for name in names):
            if (values := getattr(options, name)) is not None:
                found[table][name] = [v.split(",") for v in values] if name == "targets" else values
    for setting in options.vary:
        key, equals, text = setting.partition("=")
        table, _, name = key.partition(".")
        if not equals or not name or table not in found:
            raise ConfigError(f"--vary expects plan.KEY=V,V or method.KEY=V,V, got {setting!r}")
        found[table][name] = [toml_value(value) for value in text.split(",")]
    return found["plan"], found["method"]


def run(options: argparse.Namespace) -> int:
    """Forecast, choose, train where asked to, and print; returns the exit code."""
    sys.path.append(os.getcwd())  # where a user's own method, "my_module:MyMethod", most often lies
    from tangentcl.cli.plan_outcome import carry_out
    from tangentcl.cli.plan_recipes import consider, snippet
    from tangentcl.cli.plan_subject import subject_of

    considered = consider(subject_of(options), options, *varied(options))
    choice = considered.choice
    best = choice.chosen or choice.closest
    outcome = carry_out(considered, choice.chosen) if options.train and choice.chosen is not None else None
    plan = {
        "title": considered.title,
        **choice.to_dict(),
        "recipe": None if best is None else snippet(considered, best),
        "outcome": None if outcome is None else outcome.to_dict(),
    }
    written = _write(plan, options)
    if options.json:
        print(json.dumps({**plan, **written}, indent=1, allow_nan=False))
    else:
        _print(plan)
        print("".join(f"\n{what}: {path}" for what, path in written.items()), end="\n" if written else "")
    return 0 if choice.chosen is not None and (outcome is None or outcome.within) else 1


def _print(plan: Mapping[str, Any]) -> None:
    from tangentcl.reports.plan_text import plan_text

    print(f"{plan['title']}\n")
    print(plan_text(plan), end="")
    for note in plan["notes"]:
        print(f"note: {note}")
    if plan["recipe"] is not None:
        heading = "for the experiment file" if plan["chosen"] is not None else "the closest, for the experiment file"
        print(f"\n# {heading}\n{plan['recipe']}", end="")


def _write(plan: Mapping[str, Any], options: argparse.Namespace) -> dict[str, str]:
    """Write the files that were asked for; their paths by what they are."""
    from tangentcl.records.files import atomic_write
    from tangentcl.reports.plan_figure import plan_figure
    from tangentcl.reports.plan_page import write_plan_report

    written = {}
    if options.svg is not None:
        atomic_write(options.svg, plan_figure(plan, plan["title"]))
        written["figure"] = str(options.svg)
    if options.out is not None:
        written["page"] = str(write_plan_report(plan, options.out))
    return written
