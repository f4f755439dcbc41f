"""Trained learners in use: exported as folders that stand on their own, loaded, and asked."""

from tangentcl.serving.export import Exported, export_run
from tangentcl.serving.load import load_predictor
from tangentcl.serving.predictor import Predictor

__all__ = ["Exported", "Predictor", "export_run", "load_predictor"]
