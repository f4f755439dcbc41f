"""Data: sources, streams of tasks, and transforms."""

from __future__ import annotations

from tangentcl.data.domains import join_domains, permuted, rotated
from tangentcl.data.preset import PRESETS, Preset
from tangentcl.data.samples import Samples, Transform
from tangentcl.data.sources import SOURCES, from_arrays, load
from tangentcl.data.streams import STREAMS, class_incremental, domain_incremental, few_shot, task_incremental
from tangentcl.data.table import Source, Table
from tangentcl.data.task import Task, TaskStream
from tangentcl.data.transforms import ArrayTransform, ImageTransform, TokenTransform

__all__ = [
    "PRESETS",
    "SOURCES",
    "STREAMS",
    "ArrayTransform",
    "ImageTransform",
    "Preset",
    "Samples",
    "Source",
    "Table",
    "Task",
    "TaskStream",
    "TokenTransform",
    "Transform",
    "class_incremental",
    "domain_incremental",
    "few_shot",
    "from_arrays",
    "join_domains",
    "load",
    "permuted",
    "rotated",
    "task_incremental",
]
