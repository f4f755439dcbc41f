"""The outer shell of learning: the plan, the only loop, evaluation, devices and processes, forecasts of each task."""

from tangentcl.training.evaluate import count_correct, predicted_classes
from tangentcl.training.forecasting import Forecasting, ForecastOptions, StageForecast, forecast_stage
from tangentcl.training.loop import TaskFit
from tangentcl.training.moments import MomentsWriter, load_moments, save_moments
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.recipe import recipe, recipe_notes
from tangentcl.training.resume import Checkpoints
from tangentcl.training.runtime import Runtime, process_group
from tangentcl.training.stage import Stage, StageWatcher
from tangentcl.training.stream import StreamResult, run_stream
from tangentcl.training.theory import StageTheory, TheoryOptions, TheoryReport

__all__ = [
    "Checkpoints",
    "ForecastOptions",
    "Forecasting",
    "MomentsWriter",
    "Runtime",
    "Stage",
    "StageForecast",
    "StageTheory",
    "StageWatcher",
    "StreamResult",
    "TaskFit",
    "TheoryOptions",
    "TheoryReport",
    "TrainingPlan",
    "count_correct",
    "forecast_stage",
    "load_moments",
    "predicted_classes",
    "process_group",
    "recipe",
    "recipe_notes",
    "run_stream",
    "save_moments",
]
