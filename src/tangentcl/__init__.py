"""tangentcl: parameter-efficient continual learning seen through the Neural Tangent Kernel.

The public names below are loaded when they are first used, so that importing the package costs nothing.

>>> import tangentcl
>>> tangentcl.class_incremental(tangentcl.load("digits"), n_tasks=5).n_classes
10
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tangentcl.errors import TangentclError, nearest

if TYPE_CHECKING:
    from tangentcl.data import (
        Source,
        Task,
        TaskStream,
        class_incremental,
        domain_incremental,
        few_shot,
        from_arrays,
        load,
        task_incremental,
    )
    from tangentcl.experiments import Experiment, load_experiment
    from tangentcl.experiments.run import run_experiment
    from tangentcl.forecast import (
        SGD,
        AdamW,
        Candidate,
        Forecast,
        GradientDescent,
        GradientFlow,
        Prepared,
        ProtectedRidge,
        Ridge,
        StreamedForecast,
        TrainingChoice,
        Trust,
        batch_order,
        forecast_forgetting,
        forecast_from_moments,
        forecast_linear,
        forecast_streamed,
        plan_training,
        prepare_forecast,
        rank_bound,
        vulnerability,
    )
    from tangentcl.kernels import ConjugateKernel, EmpiricalNTK, FeatureKernel, Kernel, PseudoNTK, SketchedNTK
    from tangentcl.methods import (
        DERPP,
        EWC,
        GPM,
        L2SP,
        METHODS,
        NCM,
        NTKCL,
        NTKFSCIL,
        OGD,
        SLDA,
        EWCLoRA,
        FeCAM,
        Finetune,
        Joint,
        LoRanPAC,
        LwF,
        Method,
        Nystrom,
        RanPAC,
        Replay,
    )
    from tangentcl.nn import Backbone, add_lora, add_peft, backbone, from_module
    from tangentcl.records import Record
    from tangentcl.serving import Predictor, export_run, load_predictor
    from tangentcl.training import StreamResult, TrainingPlan, run_stream
    from tangentcl.training.moments import load_moments
    from tangentcl.training.recipe import recipe

__version__ = "0.1.0"

_ROOMS = {
    "data": ("load from_arrays class_incremental domain_incremental task_incremental few_shot Task TaskStream Source"),
    "nn": "backbone from_module Backbone add_lora add_peft",
    "kernels": "Kernel FeatureKernel EmpiricalNTK ConjugateKernel PseudoNTK SketchedNTK",
    "forecast": (
        "forecast_forgetting prepare_forecast Prepared forecast_linear forecast_streamed forecast_from_moments "
        "Forecast StreamedForecast Trust Ridge ProtectedRidge GradientFlow GradientDescent SGD AdamW batch_order "
        "vulnerability rank_bound plan_training Candidate TrainingChoice"
    ),
    "methods": (
        "METHODS Method Finetune NCM Joint Replay DERPP L2SP EWC EWCLoRA LwF NTKCL RanPAC SLDA FeCAM Nystrom LoRanPAC "
        "NTKFSCIL GPM OGD"
    ),
    "training": "TrainingPlan run_stream StreamResult",
    "training.recipe": "recipe",
    "training.moments": "load_moments",
    "experiments": "load_experiment Experiment",
    "experiments.run": "run_experiment",
    "records": "Record",
    "serving": "export_run load_predictor Predictor",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = [
    "DERPP",
    "EWC",
    "GPM",
    "L2SP",
    "METHODS",
    "NCM",
    "NTKCL",
    "NTKFSCIL",
    "OGD",
    "SGD",
    "SLDA",
    "AdamW",
    "Backbone",
    "Candidate",
    "ConjugateKernel",
    "EWCLoRA",
    "EmpiricalNTK",
    "Experiment",
    "FeCAM",
    "FeatureKernel",
    "Finetune",
    "Forecast",
    "GradientDescent",
    "GradientFlow",
    "Joint",
    "Kernel",
    "LoRanPAC",
    "LwF",
    "Method",
    "Nystrom",
    "Predictor",
    "Prepared",
    "ProtectedRidge",
    "PseudoNTK",
    "RanPAC",
    "Record",
    "Replay",
    "Ridge",
    "SketchedNTK",
    "Source",
    "StreamResult",
    "StreamedForecast",
    "TangentclError",
    "Task",
    "TaskStream",
    "TrainingChoice",
    "TrainingPlan",
    "Trust",
    "add_lora",
    "add_peft",
    "backbone",
    "batch_order",
    "class_incremental",
    "domain_incremental",
    "export_run",
    "few_shot",
    "forecast_forgetting",
    "forecast_from_moments",
    "forecast_linear",
    "forecast_streamed",
    "from_arrays",
    "from_module",
    "load",
    "load_experiment",
    "load_moments",
    "load_predictor",
    "plan_training",
    "prepare_forecast",
    "rank_bound",
    "recipe",
    "run_experiment",
    "run_stream",
    "task_incremental",
    "vulnerability",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"tangentcl.{_HOME[name]}"), name)
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(f"module 'tangentcl' has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
