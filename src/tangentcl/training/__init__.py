"""The outer shell of learning: the plan, the only loop, evaluation, devices and processes."""

from tangentcl.training.evaluate import count_correct, predicted_classes
from tangentcl.training.loop import TaskFit
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.runtime import Runtime, process_group
from tangentcl.training.stream import StreamResult, run_stream

__all__ = [
    "Runtime",
    "StreamResult",
    "TaskFit",
    "TrainingPlan",
    "count_correct",
    "predicted_classes",
    "process_group",
    "run_stream",
]
