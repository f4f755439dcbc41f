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
    from tangentcl import hf  # noqa: F401
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
        Penalised,
        Prepared,
        ProtectedRidge,
        Ridge,
        StreamedForecast,
        TrainingChoice,
        Trust,
        batch_order,
        effective_time,
        forecast_forgetting,
        forecast_from_moments,
        forecast_linear,
        forecast_streamed,
        harmless_ranks,
        plan_training,
        prepare_forecast,
        prune_ranks,
        rank_bound,
        rank_scores,
        vulnerability,
    )
    from tangentcl.kernels import ConjugateKernel, EmpiricalNTK, FeatureKernel, Kernel, PseudoNTK, SketchedNTK
    from tangentcl.methods import (
        APER,
        DERPP,
        EASE,
        EWC,
        GPM,
        L2P,
        L2SP,
        LAE,
        METHODS,
        NCM,
        NTKCL,
        NTKFSCIL,
        OGD,
        SLCA,
        SLDA,
        CODAPrompt,
        DualPrompt,
        EWCLoRA,
        FeCAM,
        Finetune,
        InfLoRA,
        Joint,
        LoRanPAC,
        LwF,
        Method,
        Nystrom,
        OLoRA,
        RanPAC,
        Replay,
        SDLoRA,
        Spectral,
    )
    from tangentcl.nn import Backbone, add_lora, add_peft, backbone, from_module
    from tangentcl.protect.spectral import SpectralRegularizer
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
        "Forecast StreamedForecast Trust Ridge ProtectedRidge GradientFlow GradientDescent SGD AdamW Penalised "
        "batch_order vulnerability rank_bound plan_training Candidate TrainingChoice"
    ),
    "forecast.lora_ranks": "prune_ranks rank_scores",
    "forecast.harmless_ranks": "harmless_ranks",
    "forecast.effective_time": "effective_time",
    "protect.spectral": "SpectralRegularizer",
    "methods": (
        "METHODS Method Finetune NCM Joint Replay DERPP L2SP EWC EWCLoRA LwF NTKCL RanPAC SLDA FeCAM Nystrom "
        "LoRanPAC NTKFSCIL Spectral GPM OGD OLoRA InfLoRA SDLoRA SLCA LAE APER EASE L2P DualPrompt CODAPrompt"
    ),
    "training": "TrainingPlan run_stream StreamResult",
    "training.recipe": "recipe",
    "training.moments": "load_moments",
    "experiments": "load_experiment Experiment",
    "experiments.run": "run_experiment",
    "records": "Record",
    "serving": "export_run load_predictor Predictor",
}
_MODULES = ("hf",)  # what is reached by its own name, as in tangentcl.hf.ForgettingGuard
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = [
    "APER",
    "DERPP",
    "EASE",
    "EWC",
    "GPM",
    "L2P",
    "L2SP",
    "LAE",
    "METHODS",
    "NCM",
    "NTKCL",
    "NTKFSCIL",
    "OGD",
    "SGD",
    "SLCA",
    "SLDA",
    "AdamW",
    "Backbone",
    "CODAPrompt",
    "Candidate",
    "ConjugateKernel",
    "DualPrompt",
    "EWCLoRA",
    "EmpiricalNTK",
    "Experiment",
    "FeCAM",
    "FeatureKernel",
    "Finetune",
    "Forecast",
    "GradientDescent",
    "GradientFlow",
    "InfLoRA",
    "Joint",
    "Kernel",
    "LoRanPAC",
    "LwF",
    "Method",
    "Nystrom",
    "OLoRA",
    "Penalised",
    "Predictor",
    "Prepared",
    "ProtectedRidge",
    "PseudoNTK",
    "RanPAC",
    "Record",
    "Replay",
    "Ridge",
    "SDLoRA",
    "SketchedNTK",
    "Source",
    "Spectral",
    "SpectralRegularizer",
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
    "effective_time",
    "export_run",
    "few_shot",
    "forecast_forgetting",
    "forecast_from_moments",
    "forecast_linear",
    "forecast_streamed",
    "from_arrays",
    "from_module",
    "harmless_ranks",
    "load",
    "load_experiment",
    "load_moments",
    "load_predictor",
    "plan_training",
    "prepare_forecast",
    "prune_ranks",
    "rank_bound",
    "rank_scores",
    "recipe",
    "run_experiment",
    "run_stream",
    "task_incremental",
    "vulnerability",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"tangentcl.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tangentcl.{name}")
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(f"module 'tangentcl' has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
