"""Experiment files, the runs they describe, and what is recorded of each."""

from tangentcl.experiments.config import Experiment, MethodEntry, load_experiment

__all__ = ["Experiment", "MethodEntry", "load_experiment"]
