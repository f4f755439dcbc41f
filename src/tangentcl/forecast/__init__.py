"""Forecasts of forgetting: a training recipe, new samples and old samples in, the drift of old outputs out."""

from tangentcl.forecast.closed_form import GradientFlow, Ridge
from tangentcl.forecast.dynamics import Displacement, Dynamics, batch_order
from tangentcl.forecast.effective_time import effective_time
from tangentcl.forecast.feature_blocks import ArrayBlocks, SampleBlocks
from tangentcl.forecast.forecast import Cost, Forecast
from tangentcl.forecast.forgetting import Prepared, forecast_forgetting, prepare_forecast
from tangentcl.forecast.from_moments import forecast_from_moments
from tangentcl.forecast.gradient_descent import GradientDescent
from tangentcl.forecast.harmless_ranks import HarmlessRanks, harmless_ranks
from tangentcl.forecast.layer_moments import LayerForecast, forecast_layers
from tangentcl.forecast.linear import forecast_linear
from tangentcl.forecast.lora_ranks import PrunedRanks, group_shrink, prune_ranks, rank_scores
from tangentcl.forecast.moment_forecast import MomentForecast, moment_forecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.forecast.penalised import Penalised
from tangentcl.forecast.planning import Candidate, plan_training
from tangentcl.forecast.problem import LinearProblem, linear_problem
from tangentcl.forecast.protected_ridge import ProtectedRidge
from tangentcl.forecast.sgd import SGD, AdamW
from tangentcl.forecast.streamed import forecast_streamed
from tangentcl.forecast.streamed_forecast import StreamedForecast
from tangentcl.forecast.training_choice import Prospect, TrainingChoice, joined_choice
from tangentcl.forecast.trust import Trust
from tangentcl.forecast.vulnerability import Vulnerability, rank_bound, vulnerability

__all__ = [
    "SGD",
    "AdamW",
    "ArrayBlocks",
    "Candidate",
    "Cost",
    "Displacement",
    "Dynamics",
    "Forecast",
    "GradientDescent",
    "GradientFlow",
    "HarmlessRanks",
    "LayerForecast",
    "LinearProblem",
    "MomentForecast",
    "Penalised",
    "Prepared",
    "Prospect",
    "ProtectedRidge",
    "PrunedRanks",
    "Ridge",
    "SampleBlocks",
    "StreamedForecast",
    "TaskMoments",
    "TrainingChoice",
    "Trust",
    "Vulnerability",
    "batch_order",
    "effective_time",
    "forecast_forgetting",
    "forecast_from_moments",
    "forecast_layers",
    "forecast_linear",
    "forecast_streamed",
    "group_shrink",
    "harmless_ranks",
    "joined_choice",
    "linear_problem",
    "moment_forecast",
    "plan_training",
    "prepare_forecast",
    "prune_ranks",
    "rank_bound",
    "rank_scores",
    "vulnerability",
]
