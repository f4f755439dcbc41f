"""Forecasts of forgetting: a training recipe, new samples and old samples in, the drift of old outputs out."""

from tangentcl.forecast.closed_form import GradientFlow, Ridge
from tangentcl.forecast.dynamics import Displacement, Dynamics, batch_order
from tangentcl.forecast.forecast import Forecast
from tangentcl.forecast.forgetting import forecast_forgetting, forecast_linear
from tangentcl.forecast.gradient_descent import GradientDescent
from tangentcl.forecast.problem import LinearProblem, linear_problem
from tangentcl.forecast.sgd import SGD, AdamW
from tangentcl.forecast.vulnerability import Vulnerability, rank_bound, vulnerability

__all__ = [
    "SGD",
    "AdamW",
    "Displacement",
    "Dynamics",
    "Forecast",
    "GradientDescent",
    "GradientFlow",
    "LinearProblem",
    "Ridge",
    "Vulnerability",
    "batch_order",
    "forecast_forgetting",
    "forecast_linear",
    "linear_problem",
    "rank_bound",
    "vulnerability",
]
